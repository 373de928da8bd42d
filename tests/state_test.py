"""The train state and its fingerprint."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from rankclip_jax import optim, sharding, state
from rankclip_jax.losses import objective
from rankclip_jax.models import sizes

ARGS = (
  sizes.SIZES["nano"],
  objective.PRESETS["siglip"],
  optim.optimizer(lambda _: 1e-3),
)


def test_state_is_the_same_however_it_is_sharded():
  one = state.create(3, *ARGS, sharding.make_mesh(8, 1))
  many = state.create(3, *ARGS, sharding.make_mesh(1, 8))
  kernel = lambda s: s.params["text"]["tokens"]["embedding"]
  assert kernel(many).sharding.spec == P("fsdp")
  assert kernel(many).addressable_shards[0].data.shape == (49408 // 8, 32)
  # Adam's moments are sharded like the parameters they belong to.
  moments = many.opt_state.inner_state[0][0].mu["text"]["tokens"]["embedding"]
  assert moments.sharding.spec == P("fsdp")
  jax.tree.map(np.testing.assert_array_equal, one.params, many.params)
  assert int(one.step) == 0


def test_seed_and_objective_decide_the_start():
  mesh = sharding.make_mesh()
  a, b = (state.create(s, *ARGS, mesh) for s in (0, 1))
  assert not np.array_equal(
    a.params["vision"]["class_embedding"], b.params["vision"]["class_embedding"]
  )
  assert float(jnp.exp(a.params["logit_scale"])) == pytest.approx(10.0)
  assert float(a.params["logit_bias"]) == -10.0
  assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(a.params))


def test_fingerprint_sees_one_bit_and_not_the_sharding():
  rows = np.random.default_rng(0).normal(size=(64, 128)).astype(np.float32)
  tree = {"a": rows, "step": np.int32(5), "rng": np.array([1, 2], np.uint32)}
  mesh = sharding.make_mesh(1, 8)
  spread = {**tree, "a": jax.device_put(rows, sharding.over_batch(mesh))}
  assert int(state.fingerprint(tree)) == int(state.fingerprint(spread))
  for name, changed in (
    ("a", rows.view(np.uint32) ^ (np.arange(rows.size).reshape(rows.shape) == 77)),
    ("step", np.int32(6)),
    ("rng", np.array([1, 3], np.uint32)),
  ):
    other = {**tree, name: changed.view(tree[name].dtype)}
    assert int(state.fingerprint(other)) != int(state.fingerprint(tree))
