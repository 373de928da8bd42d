"""Warm-up, cosine, decay mask, clipping."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from rankclip_jax import optim
from rankclip_jax.models import sizes, two_tower


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
  _, shapes = two_tower.abstract(sizes.SIZES["nano"], with_bias=True)
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


@pytest.mark.parametrize("name", ["nano", "nano-resnet"])
def test_statistics_and_frozen_towers_do_not_move(name):
  params = two_tower.init(jax.random.key(0), sizes.SIZES[name], initial_scale=10.0)
  for frozen, tower in (("none", None), ("image", "vision"), ("text", "text")):
    tx = optim.optimizer(lambda _: 0.1, weight_decay=0.5, frozen=frozen)
    learns = optim.trained(params, frozen)
    grads = jax.tree.map(lambda x, on: jnp.full_like(x, on), params, learns)
    updates, state = tx.update(grads, tx.init(params), params)
    moved = {path: bool(jnp.any(u)) for path, u in flatten_dict(updates).items()}
    still = {path for path, on in moved.items() if not on}
    assert still == {
      path for path in moved if path[0] == tower or path[-1] in ("mean", "var")
    }
    count = sum(moved.values())
    assert len(jax.tree.leaves(state)) == 2 * count + 2  # two moments; two step counts


def test_layer_decay_of_a_transformer_by_hand():
  size = sizes.TwoTowerSize(
    sizes.ViTSize(16, 8, 8, depth=3, heads=2), sizes.TextSize(8, 2, 2), embed_dim=4
  )
  _, shapes = two_tower.abstract(size)
  scales = optim.layer_scales(shapes, 0.5)
  vision, text = scales["vision"], scales["text"]
  blocks = vision["transformer"]["blocks"]
  kernel = blocks["mlp"]["up"]["kernel"]
  assert kernel.shape == (3, 1, 1)
  np.testing.assert_allclose(kernel[:, 0, 0], [1 / 8, 1 / 4, 1 / 2])
  np.testing.assert_allclose(blocks["ln_mlp"]["scale"][:, 0], [1 / 8, 1 / 4, 1 / 2])
  np.testing.assert_allclose(
    text["transformer"]["blocks"]["attention"]["qkv"]["bias"][:, 0], [1 / 4, 1 / 2]
  )
  below = [vision[k] for k in ("class_embedding", "positional_embedding")]
  assert [*below, vision["patches"]["kernel"], vision["ln_pre"]["scale"]] == [1 / 16] * 4
  assert text["tokens"]["embedding"] == text["positional_embedding"] == 1 / 8
  above = [vision["ln_post"]["scale"], vision["projection"]["kernel"]]
  above += [text["ln_final"]["bias"], text["projection"]["kernel"]]
  assert [*above, scales["logit_scale"]] == [1.0] * 5


def test_layer_decay_of_a_resnet_goes_by_stages():
  _, shapes = two_tower.abstract(sizes.SIZES["nano-resnet"])
  vision = optim.layer_scales(shapes, 0.5)["vision"]
  found = [vision[f"stage{i}"]["first"]["conv1"]["kernel"] for i in (1, 2, 3, 4)]
  assert found == [1 / 16, 1 / 8, 1 / 4, 1 / 2]
  assert vision["stage4"]["blocks"]["bn1"]["scale"] == 1 / 2
  assert vision["conv1"]["kernel"] == vision["bn3"]["bias"] == 1 / 32
  assert vision["pool"]["query"]["kernel"] == 1.0


def test_layer_decay_slows_the_steps_that_adamw_takes():
  params = two_tower.init(jax.random.key(0), sizes.SIZES["nano"], initial_scale=10.0)
  grads = jax.tree.map(jnp.ones_like, params)

  def updates(**options):
    tx = optim.optimizer(lambda _: 0.1, weight_decay=0.3, **options)
    return tx.update(grads, tx.init(params), params)[0]

  expected = jax.tree.map(jnp.multiply, updates(), optim.layer_scales(params, 0.5))
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6)
  jax.tree.map(close, updates(layer_decay=0.5), expected)


def test_warm_up_in_steps():
  rate = optim.schedule(
    learning_rate=2.0, num_steps=100, warmup_fraction=0.5, warmup_steps=4
  )
  assert rate(4) == pytest.approx(2.0)
  assert rate(2) == pytest.approx(0.5 + 1.5 * 2 / 4)
  with pytest.raises(ValueError, match="warmup_steps 100 leaves none of the 100 steps"):
    optim.schedule(
      learning_rate=2.0, num_steps=100, warmup_fraction=0.5, warmup_steps=100
    )
