"""The judge of what a step exchanges, on programs for eight simulated CPU devices.

A right step passes and wrong ones do not; step_test asks the same judge about real chips.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest

from aot import exchange, hlo, judge
from rankclip_jax import config, evaluate, plan, sharding, state, step
from rankclip_jax.models import sizes, two_tower

# As wide as it has to be for XLA to move activations if it may.
SIZE = dataclasses.replace(
  sizes.SIZES["nano"],
  vision=sizes.ViTSize(image_size=64, patch_size=16, width=128, depth=2, heads=2),
  text=sizes.TextSize(width=128, depth=2, heads=2, context_length=16, vocab_size=512),
)
BATCH = 768  # no other array is as long


@functools.cache
def planned(data, fsdp):
  made = plan.make(config.from_config_dict({"model": {"name": "nano"}}))
  return dataclasses.replace(made, size=SIZE, mesh=sharding.make_mesh(data, fsdp))


def shapes_of(p):
  over = sharding.over_batch(p.mesh)
  pictures = (BATCH, SIZE.image_size, SIZE.image_size, 3)
  return {
    "image": jax.ShapeDtypeStruct(pictures, jnp.uint8, sharding=over),
    "tokens": jax.ShapeDtypeStruct(
      (BATCH, SIZE.context_length), jnp.int32, sharding=over
    ),
  }


def judged(p, function, *arguments, part="train"):
  """What is wrong with a jitted function's program, and the sums by purpose."""
  text = function.lower(*arguments).compile().as_text()
  wanted = judge.expected(p, BATCH, part)
  sums, unexpected = judge.by_purpose(exchange.exchanges(text), wanted)
  return judge.complaints(sums, unexpected, wanted), sums


def before(p):
  return state.abstract(p.size, p.objective, p.optimizer, p.mesh)


@pytest.mark.parametrize("mesh", [(8, 1), (1, 8), (2, 4)])
def test_a_training_step_passes(mesh):
  p = planned(*mesh)
  complaints, sums = judged(p, step.compile_step(p), before(p), shapes_of(p))
  assert complaints == []
  assert sums["gradients"].bytes > 0
  assert bool(sums["parameters"].elements) == (p.mesh.shape["fsdp"] > 1)


def encoded(p, function):
  over = sharding.over_batch(p.mesh)
  rows = {
    "input": shapes_of(p)["image"],
    "index": jax.ShapeDtypeStruct((BATCH,), jnp.int32, sharding=over),
    "mask": jax.ShapeDtypeStruct((BATCH,), jnp.bool_, sharding=over),
  }
  return judged(p, function, before(p).params, rows, part="encode_image")


def encoder(p):
  graph, _ = two_tower.abstract(p.size)
  return evaluate.encoder(graph, p.mesh, "encode_image")


@pytest.mark.parametrize("mesh", [(8, 1), (1, 8)])
def test_a_step_of_evaluation_passes(mesh):
  p = planned(*mesh)
  complaints, sums = encoded(p, encoder(p))
  assert complaints == []
  assert sums["embeddings"].arrays == 1


def test_activations_that_travel_in_place_of_parameters_are_found(monkeypatch):
  """What XLA does where nothing says what it should gather."""
  monkeypatch.setattr(sharding, "gather", lambda mesh: None)
  p = planned(1, 8)
  complaints, _ = encoded(p, encoder(p))
  assert any(x.startswith("unexpected: f32[768,") for x in complaints)
  assert any(x.startswith("elements of parameters") for x in complaints)


def mirrored(x, mesh):
  return x[::-1]


def everywhere(x, mesh):
  return jax.lax.with_sharding_constraint(x, sharding.replicated(mesh))


@pytest.mark.parametrize("change", [mirrored, everywhere])
def test_pictures_that_travel_are_found(change):
  """To another device, or to all of them, which then do all the work."""
  p = planned(8, 1)
  encode = encoder(p)

  @jax.jit
  def changed(params, rows):
    return encode(params, rows | {"input": change(rows["input"], p.mesh)})

  complaints, _ = encoded(p, changed)
  assert any("u8[" in x and x.startswith("unexpected: ") for x in complaints)


def test_embeddings_gathered_twice_are_found(monkeypatch):
  p = planned(8, 1)
  once = step.global_loss

  def twice(objective, mesh, image, text, **rest):
    value, terms = once(objective, mesh, image, text, **rest)
    return value, terms | {"spread": jnp.max(jnp.std(everywhere(image, mesh), axis=0))}

  monkeypatch.setattr(step, "global_loss", twice)
  complaints, _ = judged(p, step.compile_step(p), before(p), shapes_of(p))
  assert any(x.startswith("arrays of embeddings: 3") for x in complaints)


WANTED = judge.Expected(training=True, batch=96, dim=32, trained=5000, leaves=3)


def exchanged(kind, *sizes, times=1):
  shapes = tuple(hlo.Shape("f32", x) for x in sizes)
  return exchange.Exchange(kind, shapes, 8, times, "", "by hand")


GOOD = [
  exchanged("all-gather", (96, 32), (96, 32)),
  exchanged("reduce-scatter", (96, 32), (96, 32)),
  exchanged("all-reduce", (1000,), times=4),
  exchanged("all-reduce", (1000,), ()),
]


@pytest.mark.parametrize(
  "change, complaint",
  [
    (lambda good: good, None),
    (lambda good: [*good, exchanged("all-reduce", (3,))], None),
    # A gradient that no one sums, or that is summed twice.
    (lambda good: good[:-1], "elements of gradients and the rest: 4,000"),
    (lambda good: [*good, good[2]], "elements of gradients and the rest: 9,001"),
    (lambda good: good[1:], "arrays of embeddings: 0"),
    (lambda good: [*good, good[0]], "arrays of embeddings: 4"),
    (lambda good: [*good, good[1]], "arrays of embeddings' gradient: 4"),
    # No parameter is sharded here, and nothing changes places.
    (lambda good: [*good, exchanged("all-gather", (100, 50))], "unexpected: f32[100,50]"),
    (lambda good: [*good, exchanged("all-to-all", (96, 32))], "unexpected: f32[96,32]"),
    (lambda good: [*good, exchanged("collective-permute", ())], "unexpected: f32[]"),
  ],
)
def test_rules_of_training(change, complaint):
  found = judge.complaints(*judge.by_purpose(change(GOOD), WANTED), WANTED)
  assert bool(found) == (complaint is not None)
  assert complaint is None or found[0].startswith(complaint)


@pytest.mark.parametrize(
  "shape, known",
  [((6, 40, 30), True), ((40, 30), True), ((8, 30, 5), True), ((40, 31), False)],
)
def test_parameters_are_known_whole_and_layer_by_layer(shape, known):
  """In any shape: compilers turn kernels around and fold biases."""
  wanted = dataclasses.replace(WANTED, sharded=((6, 40, 30), (7, 8)), fsdp=8)
  assert judge.is_parameter(hlo.Shape("bf16", shape), wanted) == known
