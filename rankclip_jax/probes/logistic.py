"""Multinomial logistic regression at one L2 strength after another, by L-BFGS.

What is minimised, over weights W [classes, dim] and bias b [classes]:

  (1 / n) [ Σ_i −log softmax(W x_i + b)[y_i] + strength / 2 · ||W||² ]

The bias is free. The strength weighs the penalty against the *sum* over examples, as λ
does in CLIP's appendix A.3 and 1 / C in scikit-learn. (With two classes scikit-learn fits
one vector w in place of two; there 1 / C = strength / 2 has the same optimum.)

Embeddings of CLIP models have a few large directions and many small ones, a constant
among them, and L-BFGS takes thousands of steps through such a valley. So it works in
other coordinates of the same problem: features are centred, which the bias absorbs, and
rotated to their principal axes, which leaves ||W|| as it is; then every axis is scaled by
the curvature at W = 0, the axis' variance / classes + strength / n. Optimum and loss are
not touched by it.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from rankclip_jax import sharding

TOLERANCE = 1e-5
"""Norm of the gradient, in the coordinates above, at which a fit has arrived."""

MAX_ITERATIONS = 1000
"""As in CLIP's appendix A.3."""

NEVER = -1e30
"""Bias of a class without examples: the limit that the optimum runs to, still finite."""

_HISTORY = 10  # pairs that L-BFGS remembers
_LINE_SEARCH_STEPS = 20
# Steps in a row that lower neither the loss nor the smallest gradient so far, after which
# float32 has no more to give. The loss alone is too coarse: near the optimum its last bit
# stands still long before the gradient does.
_PATIENCE = 10
_BLOCK_BYTES = 64 * 2**20  # of logits, on each device
_EXACT = jax.lax.Precision.HIGHEST  # TF32 and bf16 passes would move the optimum


class Linear(NamedTuple):
  """A linear classifier of features on their principal axes."""

  weights: Float[Array | np.ndarray, "classes dim"]
  bias: Float[Array | np.ndarray, " classes"]


class Selection(NamedTuple):
  """The rows that a fit sees."""

  mask: Float[Array, "blocks rows"]  # 1 for these rows, 0 for others and for padding
  present: Bool[Array, " classes"]  # whether a class has any; without, no probability


class Fit(NamedTuple):
  """Where L-BFGS came to rest."""

  solution: Linear
  loss: Float[Array, ""]
  gradient_norm: Float[Array, ""]
  iterations: Int[Array, ""]


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=["features", "labels", "axes", "variances", "centre", "examples"],
  meta_fields=["classes", "mesh"],
)
@dataclasses.dataclass(frozen=True)
class Rows:
  """Examples on the devices of a mesh, padded; each fit is told which of them count.

  Attributes:
    features: [blocks, rows, dim] centred, on principal axes; rows over all devices.
    labels: [blocks, rows].
    axes: [dim, dim] the principal axes as columns; whole on every device, as what
      follows.
    variances: [dim] along them.
    centre: [dim] what was subtracted.
    examples: rows that are no padding.
  """

  features: Float[Array, "blocks rows dim"]
  labels: Int[Array, "blocks rows"]
  axes: Float[Array, "dim dim"]
  variances: Float[Array, " dim"]
  centre: Float[Array, " dim"]
  examples: int
  classes: int
  mesh: Mesh

  @classmethod
  def put(
    cls, features: np.ndarray, labels: np.ndarray, classes: int, mesh: Mesh
  ) -> Self:
    """Every process passes all features [examples, dim] and labels [examples]."""
    # In double precision, so that a constant feature becomes exactly 0.
    centre = features.mean(axis=0, dtype=np.float64).astype(np.float32)
    logits_bytes = -(-len(features) // mesh.size) * classes * 4
    blocks = -(-logits_bytes // _BLOCK_BYTES)
    spread = functools.partial(_spread, blocks=blocks, mesh=mesh)
    # What _spread puts behind is zero, which the sum of products does not notice.
    centred = spread(features - centre)
    everywhere = sharding.replicated(mesh)
    gram = jax.jit(_gram, out_shardings=everywhere)(centred)
    variances, axes = np.linalg.eigh(np.asarray(gram, np.float64) / len(features))
    put = lambda x: jax.device_put(x.astype(np.float32), everywhere)
    axes = put(axes)
    return cls(
      features=_rotated(centred, axes),
      labels=spread(labels),
      axes=axes,
      variances=put(np.maximum(variances, 0)),
      centre=put(centre),
      examples=len(features),
      classes=classes,
      mesh=mesh,
    )

  def select(self, labels: np.ndarray, member: np.ndarray) -> Selection:
    """Those with `member` [examples] True, given the labels [examples] once more.

    Raises:
      ValueError: if they are of fewer than two classes.
    """
    present = np.bincount(labels[member], minlength=self.classes) > 0
    if present.sum() < 2:
      raise ValueError(
        f"expected examples of at least 2 of the {self.classes} classes, got "
        f"{np.count_nonzero(member)} examples of {present.sum()}: nothing can be told "
        "apart"
      )
    mask = _spread(member.astype(np.float32), self.features.shape[0], self.mesh)
    return Selection(mask, jax.device_put(present, sharding.replicated(self.mesh)))

  def zero(self) -> Linear:
    """Where every class is as likely as any other."""
    shape = (self.classes, self.features.shape[-1])
    zero = Linear(np.zeros(shape, np.float32), np.zeros(self.classes, np.float32))
    return jax.device_put(zero, sharding.replicated(self.mesh))


@functools.partial(jax.jit, static_argnames="max_iterations")
def fit(
  rows: Rows,
  selection: Selection,
  strength: ArrayLike,
  start: Linear,
  *,
  tolerance: float = TOLERANCE,
  max_iterations: int = MAX_ITERATIONS,
) -> Fit:
  """Minimises from `start`; compiled once for all strengths and selections.

  Args:
    rows: all examples.
    selection: those of them that are fitted.
    strength: of the L2 penalty.
    start: such as the solution at another strength.
    tolerance: norm of the gradient at which to stop.
    max_iterations: of L-BFGS.
  """
  count = selection.mask.sum()
  curvature = rows.variances / rows.classes + strength / count
  scale = Linear(curvature**0.5, jnp.float32(rows.classes**-0.5))
  back = lambda params: Linear(
    params.weights / scale.weights[None], params.bias / scale.bias
  )

  def loss(params: Linear) -> Float[Array, ""]:
    linear = back(params)
    total = _cross_entropy(linear, rows.features, rows.labels, selection)
    return (total + strength / 2 * jnp.sum(linear.weights**2)) / count

  params = Linear(start.weights * scale.weights[None], start.bias * scale.bias)
  end = _minimised(loss, params, tolerance, max_iterations)
  found = Fit(back(end.params), end.loss, optax.tree.norm(end.gradient), end.iterations)
  return jax.lax.with_sharding_constraint(found, sharding.replicated(rows.mesh))


def predict(rows: Rows, selection: Selection, linear: Linear) -> np.ndarray:
  """Classes [examples] of the highest score of all rows, as int32.

  Classes without examples in the selection are not among them.
  """
  found = _predict(rows, selection.present, linear)
  return np.asarray(found).reshape(-1)[: rows.examples]


def in_features(
  rows: Rows, selection: Selection, linear: Linear
) -> tuple[np.ndarray, np.ndarray]:
  """Weights [classes, dim] and bias [classes] for features as they were given."""
  axes, centre = (np.asarray(x, np.float64) for x in (rows.axes, rows.centre))
  weights = np.asarray(linear.weights, np.float64) @ axes.T
  bias = np.asarray(linear.bias) - weights @ centre
  bias = np.where(np.asarray(selection.present), bias, NEVER)
  return weights.astype(np.float32), bias.astype(np.float32)


class _Carry(NamedTuple):
  params: Any  # Linear, scaled
  state: Any
  loss: Any  # []
  gradient: Any  # Linear
  smallest: Any  # [] norm of a gradient so far
  iterations: Int[Array, ""]
  stalled: Int[Array, ""]  # steps in a row that were no better


def _minimised(
  loss: Callable[[Linear], Array],
  params: Linear,
  tolerance: float,
  max_iterations: int,
) -> _Carry:
  """L-BFGS until the gradient is small or float32 ends."""
  optimizer = optax.lbfgs(
    memory_size=_HISTORY,
    linesearch=optax.scale_by_zoom_linesearch(
      _LINE_SEARCH_STEPS, initial_guess_strategy="one"
    ),
  )
  value_and_grad = optax.value_and_grad_from_state(loss)

  def goes_on(carry: _Carry) -> Bool[Array, ""]:
    far = optax.tree.norm(carry.gradient) > tolerance
    return far & (carry.iterations < max_iterations) & (carry.stalled < _PATIENCE)

  def step(carry: _Carry) -> _Carry:
    updates, state = optimizer.update(
      carry.gradient,
      carry.state,
      carry.params,
      value=carry.loss,
      grad=carry.gradient,
      value_fn=loss,
    )
    params = optax.apply_updates(carry.params, updates)
    value, gradient = value_and_grad(params, state=state)
    norm = optax.tree.norm(gradient)
    better = (value < carry.loss) | (norm < carry.smallest)
    return _Carry(
      params=params,
      state=state,
      loss=value,
      gradient=gradient,
      smallest=jnp.minimum(norm, carry.smallest),
      iterations=carry.iterations + 1,
      stalled=jnp.where(better, 0, carry.stalled + 1),
    )

  value, gradient = jax.value_and_grad(loss)(params)
  begin = _Carry(
    params=params,
    state=optimizer.init(params),
    loss=value,
    gradient=gradient,
    smallest=optax.tree.norm(gradient),
    iterations=jnp.int32(0),
    stalled=jnp.int32(0),
  )
  return jax.lax.while_loop(goes_on, step, begin)


def _spread(values: np.ndarray, blocks: int, mesh: Mesh) -> Array:
  """Puts [examples, ...] as [blocks, rows, ...], rows over all devices, zeros behind."""
  unit = blocks * mesh.size
  rows = -(-len(values) // unit) * mesh.size
  padded = np.zeros((blocks * rows, *values.shape[1:]), values.dtype)
  padded[: len(values)] = values
  padded = padded.reshape(blocks, rows, *values.shape[1:])
  spec = NamedSharding(mesh, P(None, sharding.BATCH_AXES))
  return jax.make_array_from_callback(padded.shape, spec, lambda part: padded[part])


def _gram(features: Float[Array, "blocks rows dim"]) -> Float[Array, "dim dim"]:
  return jnp.einsum("brd,bre->de", features, features, precision=_EXACT)


@jax.jit
def _rotated(
  features: Float[Array, "blocks rows dim"], axes: Float[Array, "dim dim"]
) -> Float[Array, "blocks rows dim"]:
  return jnp.matmul(features, axes, precision=_EXACT)


def _logits(
  linear: Linear, features: Float[Array, "rows dim"], present: Bool[Array, " classes"]
) -> Float[Array, "rows classes"]:
  logits = jnp.matmul(features, linear.weights.T, precision=_EXACT)
  return jnp.where(present[None], logits + linear.bias[None], NEVER)


@jax.jit
def _predict(
  rows: Rows, present: Bool[Array, " classes"], linear: Linear
) -> Int[Array, "blocks rows"]:
  of_block = lambda x: _logits(linear, x, present).argmax(-1).astype(jnp.int32)
  found = jax.lax.map(of_block, rows.features)
  return jax.lax.with_sharding_constraint(found, sharding.replicated(rows.mesh))


@jax.custom_vjp
def _cross_entropy(
  linear: Linear,
  features: Float[Array, "blocks rows dim"],
  labels: Int[Array, "blocks rows"],
  selection: Selection,
) -> Float[Array, ""]:
  """Sum over the selected rows, one block after the other."""
  return _with_gradient(linear, features, labels, selection)[0]


def _with_gradient(
  linear: Linear, features: Array, labels: Array, selection: Selection
) -> tuple[Float[Array, ""], Linear]:
  # The gradient comes with the value, so that no block's logits are kept or made twice.
  def of_block(linear: Linear, x: Array, y: Array, counted: Array) -> Float[Array, ""]:
    # −log p[y] as log(1 + Σ_{j≠y} exp(z_j − z_y)): logsumexp(z) − z_y would round small
    # losses away, and with them the optimum of classes that can be told apart.
    logits = _logits(linear, x, selection.present)
    ahead = logits - jnp.take_along_axis(logits, y[:, None], axis=1)
    others = jnp.arange(logits.shape[1])[None] != y[:, None]
    losses = jax.nn.softplus(jax.nn.logsumexp(ahead, axis=1, where=others))
    return jnp.sum(losses * counted)

  def add(total, block):
    return jax.tree.map(
      jnp.add, total, jax.value_and_grad(of_block)(linear, *block)
    ), None

  zero = (jnp.float32(0), jax.tree.map(jnp.zeros_like, linear))
  return jax.lax.scan(add, zero, (features, labels, selection.mask))[0]


_cross_entropy.defvjp(
  _with_gradient,
  lambda gradient, slope: (jax.tree.map(lambda g: slope * g, gradient),) + (None,) * 3,
)
