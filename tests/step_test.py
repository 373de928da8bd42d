"""The step: the same numbers on any mesh, float32 where it counts, and golden values."""

import dataclasses
import functools

import jax
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from aot import hlo
from rankclip_jax import optim, sharding, state
from rankclip_jax.losses import objective
from rankclip_jax.models import sizes, two_tower
from rankclip_jax.step import train_step

SIZE = sizes.changed(sizes.SIZES["nano"], vocab_size=512)
BATCH, STEPS = 16, 5
SGD = optax.sgd(0.01)
GOLDEN_LOSSES = [3.2653120, 3.1105304, 3.2235455, 3.4267025, 3.3486063]


def batches(count=STEPS, size=SIZE):
  rng = np.random.default_rng(0)
  for _ in range(count):
    tokens = rng.integers(1, size.text.vocab_size - 1, (BATCH, size.context_length))
    tokens[:, rng.integers(3, size.context_length - 1)] = size.text.vocab_size - 1
    shape = (BATCH, size.image_size, size.image_size, 3)
    yield {
      "image": rng.integers(0, 256, shape).astype(np.uint8),
      "tokens": tokens.astype(np.int32),
    }


def run(name, data, fsdp, *, optimizer=SGD, size=SIZE, count=STEPS, same=None, **options):
  """Parameters and metrics of `count` steps on a mesh of data x fsdp devices."""
  mesh = sharding.make_mesh(data, fsdp, jax.devices()[: data * fsdp])
  wanted = objective.PRESETS[name]
  start = state.create(0, size, wanted, optimizer, mesh)
  shardings = jax.tree.map(lambda x: x.sharding, start)
  graph, _ = two_tower.abstract(size, with_bias=wanted.has_bias)
  step = jax.jit(
    functools.partial(
      train_step, graph=graph, objective=wanted, optimizer=optimizer,
      learning_rate=lambda _: 1e-3, mesh=mesh, num_steps=STEPS, epoch_steps=2,
      **options,
    ),
    in_shardings=(shardings, sharding.over_batch(mesh)),
    out_shardings=(shardings, sharding.replicated(mesh)),
    donate_argnums=0,
  )  # fmt: skip
  now, metrics = start, []
  for batch in batches(count, size):
    if same is not None:
      batch["same"] = same
    now, numbers = step(now, jax.device_put(batch, sharding.over_batch(mesh)))
    metrics.append({k: float(v) for k, v in numbers.items()})
  return jax.device_get(now), metrics


@functools.cache
def alone(name):
  return run(name, 1, 1)


def assert_same_params(a, b):
  close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
  jax.tree.map(close, a.params, b.params)


@pytest.mark.parametrize(
  "name, mesh",
  [
    *(("rankclip", mesh) for mesh in ((2, 1), (1, 4), (2, 4))),
    *((name, (2, 4)) for name in ("cyclip", "rankclip_released", "siglip")),
  ],
)
def test_any_mesh_gives_the_numbers_of_one_device(name, mesh):
  """With plain SGD the parameters are the sum of the gradients.

  accumulate_test has every preset's gradient on eight devices.
  """
  (one, numbers_one), (many, numbers_many) = alone(name), run(name, *mesh)
  for a, b in zip(numbers_one, numbers_many, strict=True):
    assert a.keys() == b.keys()
    for key in a:
      assert b[key] == pytest.approx(a[key], rel=1e-5, abs=1e-6), key
  assert_same_params(many, one)


def test_masks_are_global_over_devices_and_pieces():
  """Rows 0 and 15, on the first and the last device, show the same picture."""
  same = np.stack([np.arange(BATCH), np.arange(BATCH) // 2], 1).astype(np.int32)
  same[15, 0] = 0
  one, numbers = run("rankclip", 1, 1, count=2, same=same)
  for mesh, pieces in (((2, 4), 1), ((1, 2), 4)):
    many, again = run("rankclip", *mesh, count=2, same=same, micro_batches=pieces)
    assert again[1]["train/loss"] == pytest.approx(numbers[1]["train/loss"], rel=1e-5)
    assert_same_params(many, one)
  assert numbers[0]["train/loss"] < alone("rankclip")[1][0]["train/loss"] - 0.01


@pytest.mark.parametrize(
  "mesh, size",
  [
    *(((2, 4), {"remat": remat}) for remat in ("none", "dots", "full")),
    ((1, 8), {"remat": "none", "dtype": "bfloat16"}),
  ],
)
def test_fsdp_gathers_a_block_at_a_time_and_sends_no_activations(mesh, size):
  size = dataclasses.replace(SIZE, **size)
  rows = 64  # of a device, so that activations are larger than any kernel
  mesh = sharding.make_mesh(*mesh)
  shapes = state.abstract(size, objective.PRESETS["clip"], SGD, mesh)
  graph, _ = two_tower.abstract(size)
  step = functools.partial(
    train_step, graph=graph, objective=objective.PRESETS["clip"], optimizer=SGD,
    learning_rate=lambda _: 1e-3, mesh=mesh, num_steps=STEPS, epoch_steps=2,
  )  # fmt: skip
  batch = {
    name: jax.ShapeDtypeStruct(
      (rows * mesh.size, *x.shape[1:]), x.dtype, sharding=sharding.over_batch(mesh)
    )
    for name, x in next(batches(size=size)).items()
  }
  shardings = jax.tree.map(lambda x: x.sharding, shapes)
  jitted = jax.jit(step, out_shardings=(shardings, sharding.replicated(mesh)))
  program = hlo.instructions(jitted.lower(shapes, batch).compile().as_text())
  sent = hlo.collectives(program)
  of_blocks = [x for found in sent.values() for x in found if x.looped]
  width, depth = size.vision.width, size.vision.depth
  assert any(x.elements == 4 * width**2 for x in of_blocks)
  assert max(x.elements for x in of_blocks) <= 4 * width**2 < rows * width * 5
  # Nothing that was gathered is kept for the backward pass.
  whole = [(depth, width, 4 * width), (depth, 4 * width, width)]
  assert not [str(x) for x in program if {s.sizes for s in x.shapes} & set(whole)]


def test_adamw_with_clipping_on_eight_devices():
  # The gradient of the key biases is exactly zero, so Adam divides rounding noise by
  # its own size; an epsilon above that noise leaves only real differences.
  adamw = optim.optimizer(lambda _: 1e-3, clip_norm=1.0, eps=1e-5)
  one, _ = run("rankclip", 1, 1, optimizer=adamw)
  many, _ = run("rankclip", 2, 4, optimizer=adamw)
  assert_same_params(many, one)
  assert int(many.step) == STEPS


def test_golden_numbers():
  """Guards refactors: these are what this code gave when it was written."""
  _, numbers = alone("rankclip")
  losses = [n["train/loss"] for n in numbers]
  np.testing.assert_allclose(losses, GOLDEN_LOSSES, rtol=2e-4)
  assert [n["train/rank_weight"] for n in numbers] == [0.0, 0.75, 1.5, 2.0, 2.0]
  assert numbers[0]["logit_scale"] == pytest.approx(1 / 0.07)


def test_the_loss_is_the_weighted_sum_of_its_terms():
  _, numbers = alone("rankclip")
  for n in numbers:
    rank = n["train/rank_weight"] / 16
    rank *= n["train/cross_modal_loss"] + n["train/in_modal_loss"]
    assert n["train/rank_loss"] == pytest.approx(rank, rel=1e-5)
    assert n["train/loss"] == pytest.approx(n["train/contrastive_loss"] + rank, rel=1e-5)


def test_the_temperature_is_clamped():
  eager = optax.sgd(1e4)
  (after, _) = run("clip", 1, 1, optimizer=eager, count=1)
  low, high = objective.PRESETS["clip"].log_scale_range
  assert float(after.params["logit_scale"]) in (np.float32(low), np.float32(high))


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_remat_changes_memory_and_not_numbers(remat):
  size = dataclasses.replace(SIZE, remat=remat)
  again, numbers = run("clip", 1, 1, size=size)
  assert_same_params(again, alone("clip")[0])
  assert numbers[-1]["train/loss"] == pytest.approx(alone("clip")[1][-1]["train/loss"])


def test_bf16_computes_close_to_f32_and_keeps_f32_parameters():
  size = dataclasses.replace(SIZE, dtype="bfloat16")
  after, numbers = run("rankclip", 2, 4, size=size, count=1)
  assert all(x.dtype == np.float32 for x in jax.tree.leaves(after.params))
  full = alone("rankclip")[1][0]["train/loss"]
  assert numbers[0]["train/loss"] == pytest.approx(full, rel=2e-2)
  assert numbers[0]["train/loss"] != full


RESNET = sizes.changed(sizes.SIZES["nano-resnet"], vocab_size=512)
# So that the last norms, whose gains begin at zero, open and every statistic matters.
FAST = optax.sgd(0.05)


def statistics(params):
  flat = flatten_dict(params["vision"])
  return {path: x for path, x in flat.items() if path[-1] in ("mean", "var")}


@functools.cache
def resnet(data=1, fsdp=1, groups=1, frozen="none"):
  # Norms over four rows multiply rounding errors at every step: two, so that they stay
  # far below the tolerance on any machine.
  return run(
    "rankclip", data, fsdp, size=RESNET, count=2, optimizer=FAST,
    batch_norm_groups=groups, frozen=frozen,
  )  # fmt: skip


@pytest.mark.parametrize("mesh", [(8, 1), (2, 4)])
def test_batch_norm_is_global_on_any_mesh(mesh):
  (one, numbers_one), (many, numbers_many) = resnet(), resnet(*mesh)
  for a, b in zip(numbers_one, numbers_many, strict=True):
    assert b["train/loss"] == pytest.approx(a["train/loss"], rel=1e-4)
  close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4)
  jax.tree.map(close, many.params, one.params)


def test_statistics_move_with_training_and_stay_when_frozen():
  start, _ = run("rankclip", 1, 1, size=RESNET, count=0)
  before = statistics(start.params)
  after = statistics(resnet()[0].params)
  assert all(not np.allclose(before[path], after[path]) for path in before)
  still = statistics(resnet(groups=0)[0].params)
  assert all(np.array_equal(before[path], still[path]) for path in before)


def test_statistics_of_each_device_are_others_than_those_of_all():
  alone, apart = resnet()[0].params, resnet(4, 1, groups=4)[0].params
  same = resnet(1, 1, groups=4)[0].params  # a device that works in four groups
  close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4)
  jax.tree.map(close, apart, same)
  kernel = lambda params: params["vision"]["conv1"]["kernel"]
  assert not np.allclose(kernel(alone), kernel(apart), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("tower, other", [("image", "text"), ("text", "vision")])
def test_a_frozen_tower_stays_and_the_other_learns(tower, other):
  mine = {"image": "vision", "text": "text"}[tower]
  optimizer = optim.optimizer(lambda _: 1e-2, weight_decay=0.5, frozen=tower)
  after, _ = run("rankclip", 2, 1, optimizer=optimizer, count=2, frozen=tower)
  before = run("rankclip", 1, 1, count=0)[0].params
  jax.tree.map(np.testing.assert_array_equal, after.params[mine], before[mine])
  kernel = lambda params: params[other]["projection"]["kernel"]
  assert not np.allclose(kernel(after.params), kernel(before))
  assert float(after.params["logit_scale"]) != float(before["logit_scale"])


def test_a_frozen_tower_has_no_backward_pass():
  size = sizes.changed(SIZE, image_size=64)  # the image tower is most of the work

  def flops(frozen):
    optimizer = optim.optimizer(lambda _: 1e-2, frozen=frozen)
    mesh = sharding.make_mesh(1, 1, jax.devices()[:1])
    shapes = state.abstract(size, objective.PRESETS["clip"], optimizer, mesh)
    graph, _ = two_tower.abstract(size)
    step = functools.partial(
      train_step, graph=graph, objective=objective.PRESETS["clip"], optimizer=optimizer,
      learning_rate=lambda _: 1e-3, mesh=mesh, num_steps=STEPS, epoch_steps=2,
      frozen=frozen,
    )  # fmt: skip
    lowered = jax.jit(step).lower(shapes, next(batches(size=size)))
    return lowered.compile().cost_analysis()["flops"]

  assert flops("image") < 0.7 * flops("none")
