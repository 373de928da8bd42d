"""CLIP's causal text transformer (Radford et al. 2021, Sec. 2.4)."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from rankclip_jax.models import layers
from rankclip_jax.models.sizes import TextSize


class TextTransformer(nnx.Module):
  """Tokens [batch, length] to a feature [batch, embed_dim].

  The feature is read at the end-of-text token, which is the largest id of the vocabulary
  and so the argmax of the row, whatever the padding.
  """

  def __init__(
    self,
    size: TextSize,
    *,
    embed_dim: int,
    activation: layers.Activation,
    remat: layers.Remat,
    dtype,
    rngs: nnx.Rngs,
  ):
    self.dtype = dtype
    width = size.width
    init = nnx.initializers.normal
    self.tokens = nnx.Embed(
      size.vocab_size, width, embedding_init=init(0.02), dtype=dtype, rngs=rngs
    )
    self.positional_embedding = nnx.Param(
      0.01 * jax.random.normal(rngs.params(), (size.context_length, width))
    )
    self.transformer = layers.Transformer(
      width,
      size.depth,
      size.heads,
      causal=True,
      activation=activation,
      remat=remat,
      dtype=dtype,
      rngs=rngs,
    )
    self.ln_final = layers.layer_norm(width, dtype, rngs)
    self.projection = nnx.Linear(
      width,
      embed_dim,
      use_bias=False,
      kernel_init=init(width**-0.5),
      dtype=dtype,
      rngs=rngs,
    )

  def __call__(self, tokens: Int[Array, "batch length"]) -> Float[Array, "batch dim"]:
    positions = self.positional_embedding[...].astype(self.dtype)
    x = self.tokens(tokens) + positions[None, : tokens.shape[1]]
    x = self.transformer(x)
    end_of_text = jnp.argmax(tokens, axis=-1)
    x = jnp.take_along_axis(x, end_of_text[:, None, None], axis=1)[:, 0]
    return self.projection(self.ln_final(x))
