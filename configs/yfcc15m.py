"""YFCC15M with RankCLIP's released hyper-parameters (`released.py`).

    python main.py --config=configs/yfcc15m.py:rn50,rankclip --workdir=runs/yfcc15m \\
      --config.data.train=/data/yfcc15m/train.csv --config.data.test=/data/yfcc15m/val.csv

What the authors ran on it: RN50 and ViT-B/32, each with clip and rankclip [P, Table 4; ?
that its data is YFCC15M]. Whether with these hyper-parameters, and which 15 million pairs
of YFCC100M, was not found; OpenAI's subset is the usual one. At the default batch of 128
they are 7.5 million steps.
"""

import ml_collections

from configs import released


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """A model and an objective of `released`."""
  return released.get_config(arg)
