"""The residual attention block of CLIP's towers, and a stack of them scanned as one.

Parameters are float32; `dtype` is what the arithmetic runs in.
"""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

Activation = Literal["gelu", "quick_gelu"]
Remat = Literal["none", "dots", "full"]
Gather = Callable[[Any], Any]

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
  "gelu": lambda x: jax.nn.gelu(x, approximate=False),
  # What OpenAI's CLIP was trained with; weights do not carry over to exact GELU.
  "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
}
# What the backward pass keeps of a block: everything, the matmuls' results, or nothing.
REMAT: dict[str, Callable[[Callable], Callable]] = {
  "none": lambda f: f,
  "dots": lambda f: jax.checkpoint(
    f, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable
  ),
  "full": jax.checkpoint,
}


class Stack(nnx.Module):
  """Equal blocks, scanned. `gather` is of one trace, see `gather_blocks`."""

  remat: Remat
  dtype: jnp.dtype
  gather: Gather | None = None


def gather_blocks(model: nnx.Module, gather: Gather | None) -> None:
  """Has every stack of `model` pass a block's parameters through `gather`, in the scan.

  Where devices share parameters, each then holds one whole block at a time; the compiler
  left alone would rather keep kernels apart and send activations around.

  Args:
    model: changed in place; of one trace, as `nnx.merge` makes it.
    gather: maps a tree of a block's parameters to the same, whole; None changes nothing.
  """
  for _, module in nnx.iter_modules(model):
    if isinstance(module, Stack):
      module.gather = gather


def scan(step: Callable, x: Array, stacked: Any, stack: Stack) -> tuple[Array, Any]:
  """`jax.lax.scan` of `step` over blocks, gathered one by one if `stack` says so.

  What was gathered is not kept for the backward pass, but gathered again.

  Args:
    step: maps `x` and a block's (parameters, other state) to `x` and an output.
    x: what the blocks hand on.
    stacked: parameters and other state of all blocks.
    stack: of which these are.
  """
  gather = stack.gather
  if gather is None:
    return jax.lax.scan(REMAT[stack.remat](step), x, stacked)
  # Kernels as the arithmetic uses them: half the bytes travel.
  cast = lambda x: x.astype(stack.dtype) if x.ndim > 2 else x
  stacked = jax.tree.map(cast, stacked[0]), stacked[1]

  def gathering(x: Array, state: Any) -> tuple[Array, Any]:
    return step(x, (gather(state[0]), state[1]))

  body = REMAT[stack.remat](gathering)
  if stack.remat == "none":
    # By what JAX calls the primitive of `with_sharding_constraint`.
    keep = lambda primitive, *_, **__: primitive.name != "sharding_constraint"
    body = jax.checkpoint(gathering, policy=keep, prevent_cse=False)
  return jax.lax.scan(body, x, stacked)


def layer_norm(width: int, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.LayerNorm:
  """CLIP's layer norm: epsilon 1e-5, statistics in float32."""
  return nnx.LayerNorm(
    width, epsilon=1e-5, dtype=dtype, use_fast_variance=False, rngs=rngs
  )


class Attention(nnx.Module):
  """Multi-head self-attention, [batch, length, width] to the same."""

  def __init__(
    self, width: int, heads: int, *, causal: bool, out_std: float, dtype, rngs: nnx.Rngs
  ):
    self.heads = heads
    self.causal = causal
    init = nnx.initializers.normal
    self.qkv = nnx.Linear(
      width, 3 * width, kernel_init=init(width**-0.5), dtype=dtype, rngs=rngs
    )
    self.out = nnx.Linear(width, width, kernel_init=init(out_std), dtype=dtype, rngs=rngs)

  def __call__(
    self, x: Float[Array, "batch length width"]
  ) -> Float[Array, "batch length width"]:
    batch, length, width = x.shape
    qkv = self.qkv(x).reshape(batch, length, 3, self.heads, width // self.heads)
    y = jax.nn.dot_product_attention(
      qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], is_causal=self.causal
    )
    return self.out(y.reshape(x.shape))


class Mlp(nnx.Module):
  """Two linear layers, four times as wide between them."""

  def __init__(
    self, width: int, *, activation: Activation, out_std: float, dtype, rngs: nnx.Rngs
  ):
    self.activation = activation
    init = nnx.initializers.normal
    self.up = nnx.Linear(
      width, 4 * width, kernel_init=init((2 * width) ** -0.5), dtype=dtype, rngs=rngs
    )
    self.down = nnx.Linear(
      4 * width, width, kernel_init=init(out_std), dtype=dtype, rngs=rngs
    )

  def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
    return self.down(ACTIVATIONS[self.activation](self.up(x)))


class Block(nnx.Module):
  """Pre-norm residual block: x + attention(ln x), then x + mlp(ln x)."""

  def __init__(
    self,
    width: int,
    heads: int,
    *,
    causal: bool,
    activation: Activation,
    out_std: float,
    dtype,
    rngs: nnx.Rngs,
  ):
    self.ln_attention = layer_norm(width, dtype, rngs)
    self.attention = Attention(
      width, heads, causal=causal, out_std=out_std, dtype=dtype, rngs=rngs
    )
    self.ln_mlp = layer_norm(width, dtype, rngs)
    self.mlp = Mlp(width, activation=activation, out_std=out_std, dtype=dtype, rngs=rngs)

  def __call__(
    self, x: Float[Array, "batch length width"]
  ) -> Float[Array, "batch length width"]:
    x = x + self.attention(self.ln_attention(x))
    return x + self.mlp(self.ln_mlp(x))


class Transformer(Stack):
  """`depth` equal blocks whose parameters are stacked, [depth, ...], and scanned.

  Standard deviations at initialisation follow CLIP's `initialize_parameters`: width^-1/2
  for the input of attention, (2 width)^-1/2 for that of the MLP, and width^-1/2
  (2 depth)^-1/2 for both projections back to the residual stream.
  """

  def __init__(
    self,
    width: int,
    depth: int,
    heads: int,
    *,
    causal: bool,
    activation: Activation,
    remat: Remat,
    dtype,
    rngs: nnx.Rngs,
  ):
    self.remat = remat
    self.dtype = dtype

    def block(rngs: nnx.Rngs) -> Block:
      return Block(
        width,
        heads,
        causal=causal,
        activation=activation,
        out_std=width**-0.5 * (2 * depth) ** -0.5,
        dtype=dtype,
        rngs=rngs,
      )

    self.blocks = nnx.vmap(block, in_axes=0)(rngs.split(depth))

  def __call__(
    self, x: Float[Array, "batch length width"]
  ) -> Float[Array, "batch length width"]:
    graph, stacked = nnx.split(self.blocks)

    def step(x: Array, state: tuple[nnx.State, None]) -> tuple[Array, None]:
      return nnx.merge(graph, state[0])(x), None

    return scan(step, x, (stacked, None), self)[0]
