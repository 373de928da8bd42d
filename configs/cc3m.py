"""Conceptual Captions 3M with RankCLIP's released hyper-parameters (`released.py`).

    python main.py --config=configs/cc3m.py:vit_b32,rankclip --workdir=runs/cc3m \\
      --config.data.train=/data/cc3m/train.csv --config.data.test=/data/cc3m/val.csv

What the authors ran on it: ViT-B/32 with clip, cyclip and rankclip [P, Tables 1 to 3],
RN50 with clip and rankclip on all of it and on random subsets of 500K, 750K and 1M pairs
[P, Fig. 4]. train.sh trains RN50 with a batch of 64 [C]. It is 2.6 to 3.3 million pairs,
as links rot: at the default batch of 128 about 1.5 million steps.
"""

import ml_collections

from configs import released


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """A model and an objective of `released`."""
  return released.get_config(arg)
