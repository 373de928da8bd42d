"""CLIP's vision transformer (Radford et al. 2021, Sec. 2.4; Dosovitskiy et al. 2021)."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from rankclip_jax.models import layers
from rankclip_jax.models.sizes import ViTSize


class VisionTransformer(nnx.Module):
  """Pixels [batch, height, width, 3] to a feature [batch, embed_dim].

  Patches and a class token, positions, layer norm, pre-norm blocks, layer norm of the
  class token, and a linear projection without bias.
  """

  def __init__(
    self,
    size: ViTSize,
    *,
    embed_dim: int,
    activation: layers.Activation,
    remat: layers.Remat,
    dtype,
    rngs: nnx.Rngs,
  ):
    self.dtype = dtype
    width, patch_size = size.width, size.patch_size
    normal = jax.random.normal
    std = width**-0.5
    self.patch_size = patch_size
    # A convolution whose stride is its kernel is a matmul of flattened patches; written
    # as one it is faster on CPU.
    self.patches = nnx.Linear(
      patch_size * patch_size * 3,
      width,
      use_bias=False,
      # PyTorch's default for convolutions, which CLIP leaves in place.
      kernel_init=nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
      dtype=dtype,
      rngs=rngs,
    )
    self.class_embedding = nnx.Param(std * normal(rngs.params(), (width,)))
    self.positional_embedding = nnx.Param(
      std * normal(rngs.params(), (size.grid**2 + 1, width))
    )
    self.ln_pre = layers.layer_norm(width, dtype, rngs)
    self.transformer = layers.Transformer(
      width,
      size.depth,
      size.heads,
      causal=False,
      activation=activation,
      remat=remat,
      dtype=dtype,
      rngs=rngs,
    )
    self.ln_post = layers.layer_norm(width, dtype, rngs)
    self.projection = nnx.Linear(
      width,
      embed_dim,
      use_bias=False,
      kernel_init=nnx.initializers.normal(std),
      dtype=dtype,
      rngs=rngs,
    )

  def __call__(
    self, pixels: Float[Array, "batch height width 3"]
  ) -> Float[Array, "batch dim"]:
    x = self.patches(_flatten_patches(pixels.astype(self.dtype), self.patch_size))
    first = jnp.broadcast_to(
      self.class_embedding[...].astype(self.dtype), (x.shape[0], 1, x.shape[-1])
    )
    x = jnp.concatenate([first, x], axis=1)
    x = x + self.positional_embedding[...].astype(self.dtype)[None]
    x = self.transformer(self.ln_pre(x))
    return self.projection(self.ln_post(x[:, 0]))


def _flatten_patches(pixels: Array, size: int) -> Array:
  """[batch, rows size, columns size, 3] to [batch, rows columns, size size 3]."""
  batch, height, width, channels = pixels.shape
  x = pixels.reshape(batch, height // size, size, width // size, size, channels)
  return x.swapaxes(2, 3).reshape(batch, -1, size * size * channels)
