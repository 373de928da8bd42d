"""An image tower, a text tower, and a learned temperature: CLIP as one module.

The module is a description; training and evaluation use it functionally:
`graph, shapes = abstract(size)` and `nnx.merge(graph, params)` inside `jax.jit`, where
`params` is a plain nested dict of arrays.
"""

import dataclasses
import difflib
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt8

from rankclip_jax.models import layers
from rankclip_jax.models.text import TextTransformer
from rankclip_jax.models.vision_transformer import VisionTransformer

VOCAB_SIZE = 49408  # CLIP's byte-pair encoding with its two special tokens
# Channel statistics of the pictures OpenAI's CLIP saw, on a scale of 0 to 1.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclasses.dataclass(frozen=True)
class TwoTowerSize:
  """Everything that fixes the shapes and the arithmetic of a model.

  Sizes are in pixels (image, patch), tokens (context) and channels (width, embed_dim).
  """

  image_size: int
  patch_size: int
  vision_width: int
  vision_depth: int
  vision_heads: int
  text_width: int
  text_depth: int
  text_heads: int
  embed_dim: int
  context_length: int = 77
  vocab_size: int = VOCAB_SIZE
  activation: layers.Activation = "quick_gelu"
  mean: tuple[float, float, float] = CLIP_MEAN
  std: tuple[float, float, float] = CLIP_STD
  dtype: str = "float32"
  remat: layers.Remat = "none"

  def __post_init__(self):
    if self.image_size % self.patch_size:
      nearest = max(1, round(self.image_size / self.patch_size)) * self.patch_size
      raise ValueError(
        f"image_size {self.image_size} must be a multiple of patch_size "
        f"{self.patch_size}; the nearest is {nearest}."
      )
    for tower in "vision", "text":
      width, heads = getattr(self, f"{tower}_width"), getattr(self, f"{tower}_heads")
      if width % heads:
        raise ValueError(
          f"{tower}_width {width} must be a multiple of its {heads} heads."
        )
    for field, choices in (
      ("activation", layers.ACTIVATIONS),
      ("remat", layers.REMAT),
      ("dtype", ("float32", "bfloat16")),
    ):
      if getattr(self, field) not in choices:
        raise ValueError(
          f"{field} must be one of {', '.join(choices)}, got {getattr(self, field)!r}."
        )


_VIT_B_32 = TwoTowerSize(
  image_size=224,
  patch_size=32,
  vision_width=768,
  vision_depth=12,
  vision_heads=12,
  text_width=512,
  text_depth=12,
  text_heads=8,
  embed_dim=512,
)

SIZES: dict[str, TwoTowerSize] = {
  # For tests: seconds to compile, nothing to learn with.
  "nano": TwoTowerSize(16, 8, 32, 2, 2, 32, 2, 2, 32, context_length=16),
  # For the built-in data set on a laptop.
  "tiny": TwoTowerSize(48, 12, 96, 4, 4, 96, 4, 4, 96, context_length=20),
  # Radford et al. 2021, Table 20.
  "ViT-B-32": _VIT_B_32,
  "ViT-B-16": dataclasses.replace(_VIT_B_32, patch_size=16),
}


def named_size(name: str, **changes: Any) -> TwoTowerSize:
  """The size called `name`, with those of its fields changed that are not None.

  "ViT-B/32" and "ViT-B-32" are the same.

  Raises:
    ValueError: for an unknown name or sizes that do not fit each other.
  """
  key = name.replace("/", "-")
  if key not in SIZES:
    close = difflib.get_close_matches(key, SIZES, n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    raise ValueError(f"Unknown model {name!r}; there are {', '.join(SIZES)}.{hint}")
  changes = {field: value for field, value in changes.items() if value is not None}
  return dataclasses.replace(SIZES[key], **changes)


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
      embed_dim=size.embed_dim,
      activation=size.activation,
      remat=size.remat,
      dtype=dtype,
      rngs=rngs,
    )
    self.vision = VisionTransformer(
      image_size=size.image_size,
      patch_size=size.patch_size,
      width=size.vision_width,
      depth=size.vision_depth,
      heads=size.vision_heads,
      **shared,
    )
    self.text = TextTransformer(
      vocab_size=size.vocab_size,
      context_length=size.context_length,
      width=size.text_width,
      depth=size.text_depth,
      heads=size.text_heads,
      **shared,
    )
    self.logit_scale = nnx.Param(jnp.float32(math.log(initial_scale)))
    if initial_bias is not None:
      self.logit_bias = nnx.Param(jnp.float32(initial_bias))

  def encode_image(
    self, images: UInt8[Array, "batch height width 3"]
  ) -> Float[Array, "batch dim"]:
    """L2-normalised float32 embeddings of 8-bit pictures."""
    pixels = images.astype(jnp.float32) / 255.0
    mean, std = jnp.array(self.mean), jnp.array(self.std)
    pixels = (pixels - mean[None, None, None]) / std[None, None, None]
    return _l2_normalise(self.vision(pixels))

  def encode_text(self, tokens: Int[Array, "batch length"]) -> Float[Array, "batch dim"]:
    """L2-normalised float32 embeddings of tokenised captions."""
    return _l2_normalise(self.text(tokens))


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
  """Freshly drawn parameters as a plain nested dict of float32 arrays."""
  model = TwoTower(
    size,
    initial_scale=initial_scale,
    initial_bias=initial_bias,
    rngs=nnx.Rngs(params=key),
  )
  return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def _l2_normalise(x: Array) -> Array:
  x = x.astype(jnp.float32)
  # The floor keeps the gradient of an all-zero feature finite.
  return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, -1, keepdims=True), 1e-24))
