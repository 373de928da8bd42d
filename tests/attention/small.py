"""Models without a compiled initialisation: a transformer of one block, and a ResNet."""

import dataclasses
import math

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from rankclip_jax.models import sizes, two_tower

VIT = sizes.TwoTowerSize(
  sizes.ViTSize(32, 8, 32, 1, 2),
  sizes.TextSize(32, 2, 2, context_length=16),
  embed_dim=32,
  activation="gelu",
  mean=(0.0, 0.0, 0.0),
)
RESNET = dataclasses.replace(
  VIT, vision=sizes.ResNetSize(128, (1, 1, 1, 1), width=4, heads=2)
)
TEXTS = 5  # that are mapped at once, so that all tests share a compiled function


def params_of(size, seed=0):
  """Random weights, no biases; a ResNet's blocks are their shortcuts, as at first."""
  rng = np.random.default_rng(seed)

  def draw(path, shape):
    if path[-1] in ("bias", "mean") or (path[1].startswith("stage") and "bn3" in path):
      return np.ones(shape) if path[-1] == "var" else np.zeros(shape)
    if path[-1] in ("scale", "var"):
      return np.ones(shape)
    return rng.normal(size=shape) * shape[-2 if len(shape) > 1 else -1] ** -0.5

  shapes = flatten_dict(two_tower.abstract(size)[1])
  del shapes[("logit_scale",)]
  drawn = {path: draw(path, x.shape).astype(np.float32) for path, x in shapes.items()}
  return unflatten_dict(drawn | {("logit_scale",): np.float32(math.log(20))})
