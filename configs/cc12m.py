"""Conceptual 12M with RankCLIP's released hyper-parameters (`released.py`).

    python main.py --config=configs/cc12m.py:vit_b32,rankclip --workdir=runs/cc12m \\
      --config.data.train=/data/cc12m/train.csv --config.data.test=/data/cc3m/val.csv

The RankCLIP paper has no run on this data: there is nothing to compare with but your own
baselines. The data has no held-out part; CC3M's will do. An example in open_clip's README
trains on 10,968,539 pairs of it, by batches of 1,280 (4 GPUs of 320); at our default
batch of 128 so many are 5.5 million steps.
"""

import ml_collections

from configs import released


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """A model and an objective of `released`."""
  return released.get_config(arg)
