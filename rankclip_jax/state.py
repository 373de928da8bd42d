"""The train state: plain trees, made straight into their shards."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Int, PRNGKeyArray, UInt32

from rankclip_jax import sharding
from rankclip_jax.losses.objective import Objective
from rankclip_jax.models import sizes, two_tower


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """All that a step reads and writes.

  Attributes:
    step: how many steps have been taken; also the position in the data.
    params: nested dict of float32 arrays, running statistics among them.
    opt_state: optax's.
    rng: raw data of the key that ties are broken with; step is folded in.
  """

  step: Int[Array, ""]
  params: Any
  opt_state: Any
  rng: UInt32[Array, "2"]


def init(
  key: PRNGKeyArray,
  size: sizes.TwoTowerSize,
  objective: Objective,
  optimizer: optax.GradientTransformation,
) -> TrainState:
  """A state at step 0; the temperature starts where the objective wants it."""
  params_key, rng = jax.random.split(key)
  params = two_tower.init(
    params_key,
    size,
    initial_scale=objective.initial_scale,
    initial_bias=objective.initial_bias,
  )
  return TrainState(
    step=jnp.int32(0),
    params=params,
    opt_state=optimizer.init(params),
    rng=jax.random.key_data(rng),
  )


@functools.lru_cache(maxsize=8)  # traced at start, at restore and at compilation
def abstract(
  size: sizes.TwoTowerSize,
  objective: Objective,
  optimizer: optax.GradientTransformation,
  mesh: Mesh,
) -> TrainState:
  """Shapes, types and shardings of `init`'s result."""
  shapes = jax.eval_shape(
    lambda key: init(key, size, objective, optimizer), jax.random.key(0)
  )
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    shapes,
    sharding.of_tree(shapes, mesh),
  )


def create(
  seed: int,
  size: sizes.TwoTowerSize,
  objective: Objective,
  optimizer: optax.GradientTransformation,
  mesh: Mesh,
) -> TrainState:
  """`init`, jitted into the shardings of `abstract`: no device ever holds it whole."""
  shardings = jax.tree.map(
    lambda x: x.sharding, abstract(size, objective, optimizer, mesh)
  )
  make = jax.jit(
    lambda key: init(key, size, objective, optimizer), out_shardings=shardings
  )
  return make(jax.random.key(seed))


@jax.jit
def fingerprint(tree: Any) -> UInt32[Array, ""]:
  """A sum over the bits of every array, the same however the arrays are sharded.

  Stored with a checkpoint and computed again when it is read: bytes that changed on
  disk without any reader noticing do not pass. Integer sums commute exactly.
  """
  total = jnp.uint32(0)
  for i, x in enumerate(jax.tree.leaves(tree)):
    # Steps and keys are integers already; everything else is float32.
    bits = x if jnp.issubdtype(x.dtype, jnp.integer) else x.view(jnp.uint32)
    total = total * jnp.uint32(31) + jnp.sum(bits.astype(jnp.uint32)) + jnp.uint32(i)
  return total
