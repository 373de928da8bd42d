"""An image tower, a text tower, and a learned temperature: CLIP as one module.

The module is a description; training and evaluation use it functionally:
`graph, shapes = abstract(size)` and `nnx.merge(graph, params)` inside `jax.jit`, where
`params` is a plain nested dict of arrays. `models.sizes` has the sizes.
"""

import functools
import logging
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt8

from rankclip_jax.models.resnet import ModifiedResNet
from rankclip_jax.models.sizes import TwoTowerSize, ViTSize
from rankclip_jax.models.text import TextTransformer
from rankclip_jax.models.vision_transformer import VisionTransformer

log = logging.getLogger(__name__)


class TwoTower(nnx.Module):
  """Embeddings of pictures and captions, with the scale (and bias) of their logits."""

  def __init__(
    self,
    size: TwoTowerSize,
    *,
    initial_scale: float,
    initial_bias: float | None = None,
    rngs: nnx.Rngs,
  ):
    self.mean = size.mean
    self.std = size.std
    dtype = jnp.dtype(size.dtype)
    shared: dict[str, Any] = dict(
      embed_dim=size.embed_dim, remat=size.remat, dtype=dtype, rngs=rngs
    )
    if isinstance(size.vision, ViTSize):
      self.vision = VisionTransformer(size.vision, activation=size.activation, **shared)
    else:
      self.vision = ModifiedResNet(size.vision, **shared)
    self.text = TextTransformer(size.text, activation=size.activation, **shared)
    self.logit_scale = nnx.Param(jnp.float32(math.log(initial_scale)))
    if initial_bias is not None:
      self.logit_bias = nnx.Param(jnp.float32(initial_bias))

  def encode_image(
    self, images: UInt8[Array, "batch height width 3"], batch_norm_groups: int = 0
  ) -> Float[Array, "batch dim"]:
    """L2-normalised float32 embeddings of 8-bit pictures.

    Args:
      images: of any height and width that the tower was made for.
      batch_norm_groups: of `resnet.BatchNorm`, for training; 0 uses, and leaves, the
        running statistics. A vision transformer has none.
    """
    pixels = images.astype(jnp.float32) / 255.0
    mean, std = jnp.array(self.mean), jnp.array(self.std)
    pixels = (pixels - mean[None, None, None]) / std[None, None, None]
    if isinstance(self.vision, ModifiedResNet):
      return _l2_normalise(self.vision(pixels, batch_norm_groups))
    return _l2_normalise(self.vision(pixels))

  def encode_text(self, tokens: Int[Array, "batch length"]) -> Float[Array, "batch dim"]:
    """L2-normalised float32 embeddings of tokenised captions."""
    return _l2_normalise(self.text(tokens))


@functools.lru_cache(maxsize=8)
def abstract(size: TwoTowerSize, *, with_bias: bool = False) -> tuple[nnx.GraphDef, dict]:
  """The module's graph and the shapes of its parameters, without computing anything."""
  model = nnx.eval_shape(
    lambda: TwoTower(
      size, initial_scale=1.0, initial_bias=0.0 if with_bias else None, rngs=nnx.Rngs(0)
    )
  )
  graph, params = nnx.split(model)
  return graph, nnx.to_pure_dict(params)


def init(
  key: PRNGKeyArray,
  size: TwoTowerSize,
  *,
  initial_scale: float,
  initial_bias: float | None = None,
) -> dict:
  """Freshly drawn parameters as a plain nested dict of float32 arrays.

  The running statistics of batch normalisation are among them, as in a state dict of
  PyTorch; `statistics_of` tells them apart.
  """
  model = TwoTower(
    size,
    initial_scale=initial_scale,
    initial_bias=initial_bias,
    rngs=nnx.Rngs(params=key),
  )
  return nnx.to_pure_dict(nnx.state(model, (nnx.Param, nnx.BatchStat)))


def statistics_of(model: TwoTower) -> dict:
  """The running statistics of a model, as the part of its parameters that they are."""
  return nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))


def at_resolution(params: Mapping[str, Any], size: TwoTowerSize) -> dict:
  """`params` of the same model at another image size, for pictures of `size.image_size`.

  The image tower's position embeddings are resized by antialiased bicubic interpolation
  of their grid, and that is logged; nothing happens where they fit already.
  """
  place = ("vision",) if isinstance(size.vision, ViTSize) else ("vision", "pool")
  flat: dict[tuple[str, ...], Any] = flatten_dict(params)
  path = (*place, "positional_embedding")
  flat[path] = resize_positions(flat[path], size.vision.grid)
  return unflatten_dict(flat)


def at_length(params: Mapping[str, Any], size: TwoTowerSize) -> dict:
  """`params` of the same model for captions of at most `size.context_length` ids.

  Causal attention never looks ahead, so that shorter captions mean the same with the
  first positions alone.

  Raises:
    ValueError: if captions would be longer than the model has positions for.
  """
  flat: dict[tuple[str, ...], Any] = flatten_dict(params)
  path = ("text", "positional_embedding")
  length, wanted = flat[path].shape[0], size.context_length
  if wanted > length:
    raise ValueError(
      f"The text tower was trained on {length} tokens and has no positions for "
      f"context_length {wanted}; set model.context_length to {length} or less."
    )
  if wanted < length:
    log.info("Captions are cut to the first %d of the model's %d tokens.", wanted, length)
    flat[path] = flat[path][:wanted]
  return unflatten_dict(flat)


def resize_positions(
  positions: Float[Array | np.ndarray, "1+old*old width"], grid: int
) -> Float[Array | np.ndarray, "1+grid*grid width"]:
  """Resizes all but the first of a square grid of position embeddings."""
  old = math.isqrt(positions.shape[0] - 1)
  if old == grid:
    return positions
  log.info(
    "Position embeddings are interpolated from %d x %d to %d x %d: the pictures have "
    "another size than those the model was trained on.",
    old,
    old,
    grid,
    grid,
  )
  first, rest = positions[:1], positions[1:]
  resized = jax.image.resize(
    rest.reshape(old, old, -1), (grid, grid, rest.shape[-1]), "bicubic", antialias=True
  )
  return jnp.concatenate([first, resized.reshape(grid * grid, -1)])


def _l2_normalise(x: Array) -> Array:
  x = x.astype(jnp.float32)
  # The floor keeps the gradient of an all-zero feature finite.
  return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, -1, keepdims=True), 1e-24))
