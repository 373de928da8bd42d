"""Pieces of a batch give the whole batch's gradient, in less memory, without traffic."""

import collections
import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from rankclip_jax import accumulate, config, plan, sharding, state
from rankclip_jax.losses import objective
from rankclip_jax.models import sizes, two_tower
from rankclip_jax.step import compile_step, global_loss, train_step

SIZE = sizes.changed(sizes.SIZES["nano"], vocab_size=512)
BATCH = 32
MESHES = {1: (1, 1), 8: (2, 4)}
# Plain descent after a momentum that forgets: its trace is the last step's gradient.
SGD = optax.chain(optax.trace(decay=0.0), optax.scale(-0.01))


def batch_of(rows=BATCH, seed=0):
  rng = np.random.default_rng(seed)
  tokens = rng.integers(1, SIZE.text.vocab_size - 1, (rows, SIZE.context_length))
  tokens[:, rng.integers(3, SIZE.context_length - 1)] = SIZE.text.vocab_size - 1
  shape = (rows, SIZE.image_size, SIZE.image_size, 3)
  return {
    "image": rng.integers(0, 256, shape).astype(np.uint8),
    "tokens": tokens.astype(np.int32),
  }


def mesh_of(devices, shape=None):
  return sharding.make_mesh(*(shape or MESHES[devices]), jax.devices()[:devices])


def differences(some, others):
  """Of two gradients, leaf by leaf: the largest, in units of the leaf's largest entry."""
  apart = lambda a, b: float(np.abs(a - b).max() / np.abs(b).max())
  named, _ = jax.tree_util.tree_flatten_with_path(jax.tree.map(apart, some, others))
  return {jax.tree_util.keystr(path): x for path, x in named}


def small_towers(params, batch):
  """One layer each: compiles in no time, so that every objective can have its turn."""
  pixels = batch["image"].reshape(len(batch["image"]), -1) / 255.0 - 0.5
  image = jnp.tanh(pixels @ params["pixels"])
  text = jnp.tanh(jnp.mean(params["words"][batch["tokens"]], axis=1))
  unit = lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True)
  return unit(image), unit(text)


def small_gradient(name, devices, micro_batches, batch):
  """The gradient of an objective whose list-wise terms have their full weight."""
  mesh, wanted = mesh_of(devices), objective.PRESETS[name]
  rng = np.random.default_rng(1)
  params = {
    "pixels": rng.normal(0, 0.1, (SIZE.image_size**2 * 3, 8)).astype(np.float32),
    "words": rng.normal(0, 1, (SIZE.text.vocab_size, 8)).astype(np.float32),
    "logit_scale": np.float32(np.log(wanted.initial_scale)),
  }
  if wanted.has_bias:
    params["logit_bias"] = np.float32(wanted.initial_bias)
  embed = small_towers
  if micro_batches > 1:
    embed = accumulate.in_pieces(small_towers, mesh, micro_batches)

  def loss(params, batch):
    return global_loss(
      wanted, mesh, *embed(params, batch), log_scale=params["logit_scale"],
      bias=params.get("logit_bias"), rank_weight=jnp.float32(1.5),
      tie_key=jax.random.key(0),
    )[0]  # fmt: skip

  shardings = (sharding.replicated(mesh), sharding.over_batch(mesh))
  return jax.device_get(jax.jit(jax.grad(loss), in_shardings=shardings)(params, batch))


@functools.cache
def small_whole(name):
  return small_gradient(name, 1, 1, batch_of())


@pytest.mark.parametrize(
  "name, devices, micro_batches",
  [*((name, 8, 2) for name in objective.PRESETS), ("rankclip", 1, 4), ("siglip", 1, 4)],
)
def test_every_objective_has_the_gradient_of_the_whole_batch(
  name, devices, micro_batches
):
  pieces = small_gradient(name, devices, micro_batches, batch_of())
  apart = differences(pieces, small_whole(name))
  assert max(apart.values()) < 1e-5, apart
  for scalar in {"logit_scale", "logit_bias"} & pieces.keys():
    assert pieces[scalar] != 0
    assert pieces[scalar] == pytest.approx(small_whole(name)[scalar], rel=1e-4)


@pytest.mark.parametrize("name", ["rankclip", "clip", "siglip"])
def test_the_mean_of_small_batches_is_another_gradient(name):
  """What `optax.MultiSteps` would give; the comparison above can tell it apart."""
  halves = [
    {k: v[rows] for k, v in batch_of().items()}
    for rows in (slice(BATCH // 2), slice(BATCH // 2, BATCH))
  ]
  some, more = (small_gradient(name, 1, 1, half) for half in halves)
  mean = jax.tree.map(lambda a, b: (a + b) / 2, some, more)
  assert max(differences(mean, small_whole(name)).values()) > 0.05


def stepper(name, mesh, micro_batches):
  """The first state and the jitted step of the real towers."""
  wanted = dataclasses.replace(objective.PRESETS[name], ramp="none")
  start = state.create(0, SIZE, wanted, SGD, mesh)
  graph, _ = two_tower.abstract(SIZE, with_bias=wanted.has_bias)
  shardings = jax.tree.map(lambda x: x.sharding, start)
  step = jax.jit(
    functools.partial(
      train_step, graph=graph, objective=wanted, optimizer=SGD, mesh=mesh,
      learning_rate=lambda _: 0.01, num_steps=9, epoch_steps=3,
      micro_batches=micro_batches,
    ),
    in_shardings=(shardings, sharding.over_batch(mesh)),
    out_shardings=(shardings, sharding.replicated(mesh)),
  )  # fmt: skip
  return start, step


def trained(name, devices, micro_batches):
  """The first gradient, all steps' metrics, and the parameters after five steps."""
  now, step = stepper(name, mesh_of(devices), micro_batches)
  gradients, metrics = [], []
  for seed in range(5):
    now, numbers = step(now, batch_of(seed=seed))
    gradients.append(now.opt_state[0].trace)
    metrics.append(numbers)
  return jax.device_get((gradients[0], metrics, now.params))


@functools.cache
def trained_whole():
  return trained("rankclip", 1, 1)


@pytest.mark.parametrize("devices, micro_batches", [(1, 4), (8, 2)])
def test_training_in_pieces_goes_the_same_way(devices, micro_batches):
  gradient, metrics, params = trained("rankclip", devices, micro_batches)
  whole_gradient, whole_metrics, whole_params = trained_whole()
  apart = differences(gradient, whole_gradient)
  assert max(apart.values()) < 1e-5, apart
  for numbers, whole in zip(metrics, whole_metrics, strict=True):
    assert numbers.keys() == whole.keys()
    for key, value in whole.items():
      assert numbers[key] == pytest.approx(value, rel=1e-5, abs=1e-6), key
  close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
  jax.tree.map(close, params, whole_params)


def test_only_embeddings_are_kept_and_gradients_summed_in_float32():
  """Both scans as they are written, before any compiler: towers in bfloat16."""
  size = dataclasses.replace(SIZE, dtype="bfloat16")
  graph, shapes = two_tower.abstract(size)

  def embed(params, batch):
    model = nnx.merge(graph, params)
    return model.encode_image(batch["image"]), model.encode_text(batch["tokens"])

  in_pieces = accumulate.in_pieces(embed, mesh_of(1), 4)
  loss = lambda params, batch: sum(jnp.sum(x) for x in in_pieces(params, batch))
  program = jax.make_jaxpr(jax.grad(loss))(shapes, batch_of())
  forward, backward = (
    e for e in program.eqns if e.primitive.name == "scan" and e.params["length"] == 4
  )
  kept = [x.aval for x in forward.outvars]
  assert [(x.shape, x.dtype) for x in kept] == [((4, 8, SIZE.embed_dim), np.float32)] * 2
  # Sums, each of a parameter's shape, and none that is kept for every piece.
  sums = collections.Counter(x.aval.shape for x in backward.outvars)
  assert sums.total() > 30
  assert sums <= collections.Counter(x.shape for x in jax.tree.leaves(shapes))
  assert {x.aval.dtype for x in backward.outvars} == {np.dtype(np.float32)}


@pytest.mark.parametrize("micro_batches", [1, 2, 4])
@pytest.mark.parametrize("devices", MESHES)
def test_split_moves_no_row_to_another_device_and_join_undoes_it(devices, micro_batches):
  mesh = mesh_of(devices)
  x = jax.device_put(np.arange(BATCH * 3).reshape(BATCH, 3), sharding.over_batch(mesh))
  pieces = jax.jit(lambda x: accumulate.split(x, mesh, micro_batches))(x)
  assert pieces.shape == (micro_batches, BATCH // micro_batches, 3)
  rows = {s.device: np.asarray(s.data) for s in x.addressable_shards}
  for shard in pieces.addressable_shards:
    np.testing.assert_array_equal(shard.data.reshape(-1, 3), rows[shard.device])
  back = jax.jit(lambda x: accumulate.join(x, mesh))(pieces)
  np.testing.assert_array_equal(back, x)
  assert back.sharding.is_equivalent_to(x.sharding, 2)


def moved(text):
  """Types of what a compiled program sends around, reductions left out."""
  ops = "all-to-all|collective-permute|all-gather"
  return [
    kind
    for types in re.findall(rf"= (.*?) (?:{ops})(?:-start)?\(", text)
    for kind in re.findall(r"\w+\[[\d,]*\]", types)
  ]


@pytest.mark.parametrize("shape", [(8, 1), (2, 4)])
def test_pictures_stay_where_they_are(shape):
  start, step = stepper("clip", mesh_of(8, shape), 2)
  kinds = moved(step.lower(start, batch_of()).compile().as_text())
  embeddings = f"f32[{BATCH},{SIZE.embed_dim}]"
  assert embeddings in kinds  # so the pattern finds what there is
  assert not [k for k in kinds if k.startswith("u8")]
  if shape == (8, 1):  # without parameters to gather, nothing else travels
    assert set(kinds) == {embeddings}


def test_a_plain_reshape_would_move_the_pictures():
  mesh = mesh_of(8)

  def plain(x):
    pieces = x.reshape(2, -1, *x.shape[1:])
    spread = P(None, sharding.BATCH_AXES)
    return jax.lax.with_sharding_constraint(pieces, NamedSharding(mesh, spread))

  def kinds(split):
    compiled = jax.jit(split, in_shardings=sharding.over_batch(mesh))
    return moved(compiled.lower(batch_of()["image"]).compile().as_text())

  assert [k for k in kinds(plain) if k.startswith("u8")]
  assert not kinds(lambda x: accumulate.split(x, mesh, 2))


def plan_of(**changes):
  return plan.make(
    config.Config(
      data=config.DataConfig(batch_size=512),
      model=config.ModelConfig(name="nano", dtype="float32"),
      objective=config.ObjectiveConfig(name="clip"),
      optim=config.OptimConfig(epochs=1, **changes),
    )
  )


def test_pieces_need_less_memory():
  """On eight devices, from the config on; what remains is the loss's."""
  temp = {}
  for micro_batches in (1, 4):
    # The gradient of the full vocabulary would outweigh everything else of this model.
    p = dataclasses.replace(plan_of(micro_batches=micro_batches), size=SIZE)
    start = state.abstract(p.size, p.objective, p.optimizer, p.mesh)
    rows = jax.eval_shape(functools.partial(batch_of, 512))
    compiled = compile_step(p).lower(start, rows).compile()
    temp[micro_batches] = compiled.memory_analysis().temp_size_in_bytes
  assert temp[4] < 0.6 * temp[1], temp


def test_pieces_that_do_not_fit_are_refused():
  with pytest.raises(ValueError, match=r"64 rows.*micro_batches=3 does not.*=2 or .*504"):
    plan_of(micro_batches=3)
  embed = accumulate.in_pieces(lambda _, b: (b["x"], b["x"]), mesh_of(8), 3)
  with pytest.raises(ValueError, match="gives each of the 8 devices 4 rows"):
    jax.eval_shape(embed, {}, {"x": jnp.zeros((BATCH, 2))})
