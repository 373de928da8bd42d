"""Protocol `released`: a linear layer by AdamW, as the code that RankCLIP is built on.

CyCLIP's released probe, which RankCLIP's results use: learning rate 5e-3 with a cosine to
zero and no warm-up, weight decay 0.01 on weights and none on the bias, 32 epochs of
shuffled batches with the last, shorter one kept, and PyTorch's initialisation of a linear
layer. Its features are projected and not normalised. Its batch size is that of training,
128 unless told otherwise; which one the printed tables used was not found.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from rankclip_jax import sharding
from rankclip_jax.probes.probe import Probe, checked

EPOCHS = 32
BATCH_SIZE = 128
LEARNING_RATE = 5e-3
WEIGHT_DECAY = 0.01


class _Linear(NamedTuple):
  weights: Float[Array | np.ndarray, "classes dim"]
  bias: Float[Array | np.ndarray, " classes"]


class _Batches(NamedTuple):
  """One epoch; rows over all devices."""

  features: Float[Array, "steps rows dim"]
  labels: Int[Array, "steps rows"]
  mask: Bool[Array, "steps rows"]  # False for padding


def fit(
  features: npt.ArrayLike,
  labels: npt.ArrayLike,
  *,
  classes: int,
  seed: int = 0,
  epochs: int = EPOCHS,
  batch_size: int = BATCH_SIZE,
  learning_rate: float = LEARNING_RATE,
  weight_decay: float = WEIGHT_DECAY,
  mesh: Mesh | None = None,
) -> Probe:
  """Trains on all examples; `losses` of the result is each epoch's mean cross-entropy.

  Args:
    features: [examples, dim], as they are to be classified.
    labels: [examples] integers from 0 to classes - 1.
    classes: their number; one without examples is learned to be unlikely.
    seed: of the initial layer and of every epoch's order.
    batch_size: examples a step.
    mesh: over whose devices a batch is spread; None for all devices.

  Raises:
    ValueError: see `probe.checked`; or fewer than one epoch or example a step.
  """
  if epochs < 1 or batch_size < 1:
    raise ValueError(
      f"expected at least 1 epoch and 1 example a step, got epochs={epochs} and "
      f"batch_size={batch_size}"
    )
  features, labels = checked(features, labels, classes)
  mesh = mesh or sharding.make_mesh()
  rng = np.random.default_rng(seed)
  params = jax.device_put(
    _initial(rng, classes, features.shape[1]), sharding.replicated(mesh)
  )
  steps = -(-len(features) // batch_size)
  optimizer = _Optimizer(learning_rate, weight_decay, epochs * steps)
  state = jax.device_put(optimizer.transform().init(params), sharding.replicated(mesh))
  losses = []
  for _ in range(epochs):
    order = rng.permutation(len(features))
    batches = _batches(features[order], labels[order], batch_size, mesh)
    params, state, loss = _epoch(optimizer, mesh, params, state, batches)
    losses.append(float(loss))
  return Probe(
    weights=np.asarray(params.weights),
    bias=np.asarray(params.bias),
    losses=np.array(losses),
    final_loss=losses[-1],
  )


@dataclasses.dataclass(frozen=True)
class _Optimizer:
  learning_rate: float
  weight_decay: float
  steps: int

  def transform(self) -> optax.GradientTransformation:
    return optax.adamw(
      optax.cosine_decay_schedule(self.learning_rate, self.steps),
      weight_decay=self.weight_decay,
      mask=lambda params: jax.tree.map(lambda x: x.ndim > 1, params),  # not the bias
    )


def _initial(rng: np.random.Generator, classes: int, dim: int) -> _Linear:
  """As torch.nn.Linear: weights and bias uniform within ±1 / √dim."""
  bound = dim**-0.5
  draw = lambda *shape: rng.uniform(-bound, bound, shape).astype(np.float32)
  return _Linear(draw(classes, dim), draw(classes))


def _batches(
  features: np.ndarray, labels: np.ndarray, batch_size: int, mesh: Mesh
) -> _Batches:
  """Cuts examples into batches [steps, rows, ...] that the devices share equally."""
  examples = len(features)
  steps = -(-examples // batch_size)
  rows = -(-batch_size // mesh.size) * mesh.size
  at = np.arange(examples)
  at = at // batch_size, at % batch_size
  spread = NamedSharding(mesh, P(None, sharding.BATCH_AXES))

  def put(values: np.ndarray) -> Array:
    padded = np.zeros((steps, rows, *values.shape[1:]), values.dtype)
    padded[at] = values
    return jax.make_array_from_callback(padded.shape, spread, lambda part: padded[part])

  return _Batches(put(features), put(labels), put(np.ones(examples, bool)))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _epoch(
  optimizer: _Optimizer, mesh: Mesh, params: Any, state: Any, batches: _Batches
) -> tuple[Any, Any, Float[Array, ""]]:
  """A `_Linear` and optimizer state after the batches, and their mean loss a row."""
  transform = optimizer.transform()

  def step(carry, batch: _Batches):
    params, state = carry
    loss, gradient = jax.value_and_grad(_loss)(params, batch)
    updates, state = transform.update(gradient, state, params)
    return (optax.apply_updates(params, updates), state), loss * batch.mask.sum()

  (params, state), losses = jax.lax.scan(step, (params, state), batches)
  done = (params, state, losses.sum() / batches.mask.sum())
  return jax.lax.with_sharding_constraint(done, sharding.replicated(mesh))


def _loss(params: _Linear, batch: _Batches) -> Float[Array, ""]:
  """Mean cross-entropy of a batch, padding left out."""
  # TF32 or bf16 passes would be another protocol.
  exact = jax.lax.Precision.HIGHEST
  logits = jnp.matmul(batch.features, params.weights.T, precision=exact)
  losses = optax.softmax_cross_entropy_with_integer_labels(
    logits + params.bias[None], batch.labels
  )
  return jnp.sum(losses * batch.mask) / batch.mask.sum()
