"""CLIP's modified ResNet (Radford et al. 2021, Sec. 2.4; He et al. 2019; Zhang 2019).

Three changes to a ResNet: a stem of three convolutions, strides that are an average
pool before the convolution (which does not alias), and attention instead of an average
at the end. Everything is [batch, height, width, channels].
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from rankclip_jax.models import layers
from rankclip_jax.models.sizes import ResNetSize

EXPANSION = 4  # of a bottleneck's output over its width
STAGES = ("stage1", "stage2", "stage3", "stage4")

# PyTorch's default for convolutions, which CLIP leaves in place.
_CONV_INIT = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class BatchNorm(nnx.Module):
  """Batch normalisation by the statistics of groups of rows, or by the running ones.

  On a batch that is spread over devices, the mean of an array is that over all of them:
  one group is synchronised batch normalisation without another word. As many groups as
  devices is what unsynchronised data parallelism does. Statistics are float32, and
  momentum and the unbiased running variance as in PyTorch.
  """

  MOMENTUM = 0.1  # the weight of the batch in the running statistics
  EPSILON = 1e-5

  def __init__(self, channels: int, *, zero_scale: bool = False):
    self.scale = nnx.Param((jnp.zeros if zero_scale else jnp.ones)(channels))
    self.bias = nnx.Param(jnp.zeros(channels))
    self.mean = nnx.BatchStat(jnp.zeros(channels))
    self.var = nnx.BatchStat(jnp.ones(channels))

  def __call__(
    self, x: Float[Array, "batch height width channels"], groups: int
  ) -> Float[Array, "batch height width channels"]:
    """Normalises; with `groups` above 0, by the batch, and moves the running statistics.

    Args:
      x: activations.
      groups: 0 for the running statistics, otherwise into how many equal parts, each
        with its own statistics, the rows of the batch fall.
    """
    grouped = x.reshape(max(groups, 1), -1, *x.shape[1:])
    if groups:
      mean, var = self._of_batch(grouped)
    else:
      running = self.mean[...][None], self.var[...][None]
      mean, var = jax.lax.stop_gradient(running)
    factor = jax.lax.rsqrt(var + self.EPSILON) * self.scale[...][None]
    offset = self.bias[...][None] - mean * factor
    over = lambda v: v[:, None, None, None]
    # In float32, whatever comes in: the compiler fuses it, and the sum cancels.
    y = grouped.astype(jnp.float32) * over(factor) + over(offset)
    return y.astype(x.dtype).reshape(x.shape)

  def _of_batch(self, x: Array) -> tuple[Array, Array]:
    """Mean and (biased) variance [groups, channels] of x [groups, rows, h, w, c]."""
    wide = x.astype(jnp.float32)
    mean = jnp.mean(wide, axis=(1, 2, 3))
    # One pass over x, and one sum over devices, for both.
    var = jnp.maximum(jnp.mean(wide * wide, axis=(1, 2, 3)) - mean * mean, 0.0)
    count = x.shape[1] * x.shape[2] * x.shape[3]
    unbiased = var * (count / max(count - 1, 1))
    for running, now in ((self.mean, mean), (self.var, unbiased)):
      step = jax.lax.stop_gradient(jnp.mean(now, axis=0)) - running[...]
      running[...] = running[...] + self.MOMENTUM * step
    return mean, var


class Bottleneck(nnx.Module):
  """1×1, 3×3 and 1×1 convolutions beside an identity, or a 1×1 convolution of it."""

  def __init__(
    self, channels: int, width: int, *, stride: int, shortcut: bool, dtype, rngs: nnx.Rngs
  ):
    out = EXPANSION * width
    self.stride = stride
    self.conv1 = _pointwise(channels, width, dtype, rngs)
    self.bn1 = BatchNorm(width)
    self.conv2 = _conv(width, width, dtype, rngs)
    self.bn2 = BatchNorm(width)
    self.conv3 = _pointwise(width, out, dtype, rngs)
    # Every block begins as its shortcut.
    self.bn3 = BatchNorm(out, zero_scale=True)
    if shortcut:
      self.shortcut = _pointwise(channels, out, dtype, rngs)
      self.bn_shortcut = BatchNorm(out)

  def __call__(
    self, x: Float[Array, "batch height width channels"], groups: int
  ) -> Float[Array, "batch height/stride width/stride out"]:
    y = nnx.relu(self.bn1(self.conv1(x), groups))
    y = nnx.relu(self.bn2(self.conv2(y), groups))
    y = self.bn3(self.conv3(_average(y, self.stride)), groups)
    if hasattr(self, "shortcut"):
      x = self.bn_shortcut(self.shortcut(_average(x, self.stride)), groups)
    return nnx.relu(x + y)


class Stage(layers.Stack):
  """A first bottleneck that changes the shape, and equal ones, stacked and scanned."""

  def __init__(
    self,
    channels: int,
    width: int,
    blocks: int,
    *,
    stride: int,
    remat: layers.Remat,
    dtype,
    rngs: nnx.Rngs,
  ):
    self.remat = remat
    self.dtype = dtype

    self.first = Bottleneck(
      channels, width, stride=stride, shortcut=True, dtype=dtype, rngs=rngs
    )

    def block(rngs: nnx.Rngs) -> Bottleneck:
      channels = EXPANSION * width
      return Bottleneck(channels, width, stride=1, shortcut=False, dtype=dtype, rngs=rngs)

    if blocks > 1:
      self.blocks = nnx.vmap(block, in_axes=0)(rngs.split(blocks - 1))

  def __call__(self, x: Array, groups: int) -> Array:
    x = self.first(x, groups)
    if not hasattr(self, "blocks"):
      return x
    graph, params, statistics = nnx.split(self.blocks, nnx.Param, nnx.BatchStat)

    def step(x: Array, state) -> tuple[Array, nnx.State]:
      block = nnx.merge(graph, *state)
      return block(x, groups), nnx.state(block, nnx.BatchStat)

    x, statistics = layers.scan(step, x, (params, statistics), self)
    nnx.update(self.blocks, statistics)
    return x


class AttentionPool(nnx.Module):
  """One query, the mean of all positions, attends to them and to itself."""

  def __init__(
    self, grid: int, width: int, heads: int, embed_dim: int, *, dtype, rngs: nnx.Rngs
  ):
    self.heads = heads
    std = width**-0.5
    linear = lambda out: nnx.Linear(
      width, out, kernel_init=nnx.initializers.normal(std), dtype=dtype, rngs=rngs
    )
    self.positional_embedding = nnx.Param(
      std * jax.random.normal(rngs.params(), (grid**2 + 1, width))
    )
    self.query, self.key, self.value = linear(width), linear(width), linear(width)
    self.out = linear(embed_dim)

  def __call__(
    self, x: Float[Array, "batch height width channels"]
  ) -> Float[Array, "batch dim"]:
    batch, _, _, width = x.shape
    x = x.reshape(batch, -1, width)
    x = jnp.concatenate([jnp.mean(x, axis=1, keepdims=True), x], axis=1)
    x = x + self.positional_embedding[...].astype(x.dtype)[None]
    split = lambda y: y.reshape(batch, -1, self.heads, width // self.heads)
    y = jax.nn.dot_product_attention(
      split(self.query(x[:, :1])), split(self.key(x)), split(self.value(x))
    )
    return self.out(y.reshape(batch, width))


class ModifiedResNet(nnx.Module):
  """Pixels [batch, height, width, 3] to a feature [batch, embed_dim]."""

  def __init__(
    self,
    size: ResNetSize,
    *,
    embed_dim: int,
    remat: layers.Remat,
    dtype,
    rngs: nnx.Rngs,
  ):
    self.dtype = dtype
    width = size.width
    self.conv1 = _conv(3, width // 2, dtype, rngs, strides=2)
    self.bn1 = BatchNorm(width // 2)
    self.conv2 = _conv(width // 2, width // 2, dtype, rngs)
    self.bn2 = BatchNorm(width // 2)
    self.conv3 = _conv(width // 2, width, dtype, rngs)
    self.bn3 = BatchNorm(width)
    channels = width
    for i, (name, blocks) in enumerate(zip(STAGES, size.blocks, strict=True)):
      stage = Stage(
        channels,
        width * 2**i,
        blocks,
        stride=2 if i else 1,
        remat=remat,
        dtype=dtype,
        rngs=rngs,
      )
      setattr(self, name, stage)
      channels = EXPANSION * width * 2**i
    self.pool = AttentionPool(
      size.grid, channels, size.heads, embed_dim, dtype=dtype, rngs=rngs
    )

  def __call__(
    self, pixels: Float[Array, "batch height width 3"], groups: int = 0
  ) -> Float[Array, "batch dim"]:
    """See `BatchNorm` for `groups`; 0, the running statistics, is for evaluation."""
    x = pixels.astype(self.dtype)
    x = nnx.relu(self.bn1(self.conv1(x), groups))
    x = nnx.relu(self.bn2(self.conv2(x), groups))
    x = nnx.relu(self.bn3(self.conv3(x), groups))
    x = _average(x, 2)
    for name in STAGES:
      x = getattr(self, name)(x, groups)
    return self.pool(x)


def _conv(channels: int, out: int, dtype, rngs: nnx.Rngs, strides: int = 1) -> nnx.Conv:
  return nnx.Conv(
    channels,
    out,
    (3, 3),
    strides=strides,
    padding=1,
    use_bias=False,
    kernel_init=_CONV_INIT,
    dtype=dtype,
    rngs=rngs,
  )


def _pointwise(channels: int, out: int, dtype, rngs: nnx.Rngs) -> nnx.Linear:
  """A 1×1 convolution, which is a linear layer over channels."""
  return nnx.Linear(
    channels, out, use_bias=False, kernel_init=_CONV_INIT, dtype=dtype, rngs=rngs
  )


def _average(x: Array, stride: int) -> Array:
  """The mean of every stride × stride square."""
  if stride == 1:
    return x
  batch, height, width, channels = x.shape
  x = x.reshape(batch, height // stride, stride, width // stride, stride, channels)
  return jnp.mean(x, axis=(2, 4))
