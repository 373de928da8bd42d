"""Warm-up, cosine, decay mask, clipping."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rankclip_jax import optim
from rankclip_jax.models import two_tower


def test_schedule_by_hand():
  rate = optim.schedule(learning_rate=2.0, num_steps=100, warmup_fraction=0.1)
  assert rate(0) == pytest.approx(0.2)
  assert rate(5) == pytest.approx(0.2 + 1.8 * 5 / 10)
  assert rate(10) == pytest.approx(2.0)
  assert rate(55) == pytest.approx(1.0)
  assert rate(100) == pytest.approx(0.0, abs=1e-6)
  assert rate(77) == pytest.approx(1 + math.cos(math.pi * 67 / 90))


@pytest.mark.parametrize("num_steps, fraction", [(1, 0.0), (1, 0.9), (2, 0.5), (3, 0.0)])
def test_tiny_schedules_are_finite(num_steps, fraction):
  rate = optim.schedule(learning_rate=1.0, num_steps=num_steps, warmup_fraction=fraction)
  assert all(0 < float(rate(s)) <= 1 for s in range(num_steps))


def test_decay_leaves_biases_gains_and_the_temperature_alone():
  _, shapes = two_tower.abstract(two_tower.SIZES["nano"], with_bias=True)
  flat, _ = jax.tree_util.tree_flatten_with_path(optim.decay_mask(shapes))
  decayed = {jax.tree_util.keystr(p, simple=True, separator="/") for p, on in flat if on}
  spared = {
    jax.tree_util.keystr(p, simple=True, separator="/") for p, on in flat if not on
  }
  assert {p.rsplit("/", 1)[-1] for p in decayed} == {
    "kernel", "embedding", "positional_embedding", "class_embedding",
  }  # fmt: skip
  assert {"logit_scale", "logit_bias", "vision/ln_pre/scale"} <= spared
  assert "text/transformer/blocks/mlp/up/bias" in spared


def test_weight_decay_moves_only_what_the_mask_says():
  params = {"kernel": jnp.ones(3), "bias": jnp.ones(3)}
  tx = optim.optimizer(lambda _: 0.1, weight_decay=0.5)
  updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
  np.testing.assert_allclose(updates["kernel"], -0.05, rtol=1e-6)
  np.testing.assert_array_equal(updates["bias"], 0)


def test_clipping_bounds_the_norm_that_adam_sees():
  params = {"kernel": jnp.zeros(4)}
  grads = {"kernel": jnp.full(4, 50.0)}
  first_moment = lambda tx: tx.update(grads, tx.init(params), params)[1]
  clipped = first_moment(optim.optimizer(lambda _: 1.0, clip_norm=1.0, b1=0.0))
  mu = next(x for x in jax.tree.leaves(clipped) if x.shape == (4,))
  assert float(jnp.linalg.norm(mu)) == pytest.approx(1.0, rel=1e-5)
