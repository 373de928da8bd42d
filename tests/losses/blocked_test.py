"""The objective in chunks against the readable form and against float64."""

import dataclasses
import functools
import logging
import math
import re
from typing import Any, NamedTuple

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from rankclip_jax.losses import blocked, blocking, order, plain, terms
from rankclip_jax.losses.blocked import Blocking
from rankclip_jax.losses.objective import PRESETS, Objective
from tests.losses import oracle
from tests.losses.oracle import assert_close

DIM = 16
KEY = jax.random.key(0)
W = 1.5  # the rank weight, unlike 1 so that a test notices when it is forgotten
RANKCLIP = PRESETS["rankclip"]
EVERYTHING = Objective(
  cross_modal_weight=0.3,
  in_modal_weight=0.7,
  cyclic_cross_modal_weight=0.2,
  cyclic_in_modal_weight=0.9,
  decay="log",
)


class Case(NamedTuple):
  """What a program is compiled for."""

  objective: Objective = RANKCLIP
  rows: int = 24
  order: blocking.Order = "packed"
  chunk: int | None = None
  mesh: tuple[int, ...] = ()
  masked: bool = False
  dtype: str = "float32"
  platform: str | None = None


strided = functools.partial(dataclasses.replace, anchor_stride=3)
CASES = {
  # Every order, whole and in chunks that do and do not divide, on every mesh.
  "one device": Case(chunk=7),
  "payload": Case(order="payload", chunk=24),
  "short": Case(order="short", chunk=6),
  "native": Case(order="native"),
  "2 devices": Case(order="exact", chunk=5, mesh=(2,)),
  "8 devices": Case(order="native", chunk=1, mesh=(8,)),
  "2 x 4 devices": Case(chunk=2, mesh=(2, 4)),
  "as on TPUs": Case(chunk=5, mesh=(2,), platform="tpu"),
  # Every option.
  "everything, masked": Case(EVERYTHING, 40, "exact", 9, masked=True),
  "everything, masked, 8 devices": Case(EVERYTHING, 40, chunk=3, mesh=(8,), masked=True),
  "top 3": Case(
    dataclasses.replace(EVERYTHING, top_k=3), chunk=5, mesh=(2,), masked=True
  ),
  "strided": Case(strided(EVERYTHING), chunk=7, masked=True),
  "strided, 2 devices": Case(strided(RANKCLIP), order="native", chunk=3, mesh=(2,)),
  "ties by index": Case(dataclasses.replace(RANKCLIP, ties="index"), chunk=7),
  "bfloat16": Case(chunk=7, dtype="bfloat16"),
  "released": Case(PRESETS["rankclip_released"], 8, chunk=3, masked=True),
  "siglip": Case(PRESETS["siglip"], 24, chunk=2, mesh=(8,), masked=True),
  "cyclip": Case(PRESETS["cyclip"], 24, chunk=5, mesh=(2,), masked=True),
  "one pair": Case(RANKCLIP, 1),
}
SAME = list(CASES)[:8]  # but for the blocking


KINDS = {name: CASES[name] for name in CASES if "masked" in name or name == "siglip"}


def value_and_grad(evaluate, case, **options):
  """Maps (params, w, tie key, ids) to ((loss, terms), gradients)."""
  axis_name = ("data", "fsdp")[: len(case.mesh)] or None

  def run(params, w, tie_key, ids):
    return evaluate(
      case.objective,
      params["image"],
      params["text"],
      log_scale=params["log_scale"],
      bias=params.get("bias"),
      rank_weight=w,
      tie_key=tie_key,
      ids=ids,
      axis_name=axis_name,
      **options,
    )

  if axis_name:
    mesh = jax.make_mesh(
      case.mesh,
      axis_name,
      axis_types=(jax.sharding.AxisType.Auto,) * len(axis_name),
      devices=jax.devices()[: math.prod(case.mesh)],
    )
    specs = {"image": P(axis_name), "text": P(axis_name), "log_scale": P()}
    if case.objective.has_bias:
      specs["bias"] = P()
    in_specs = (specs, P(), P(), P(axis_name))
    run = jax.shard_map(run, mesh=mesh, in_specs=in_specs, out_specs=P())
  return jax.jit(jax.value_and_grad(run, has_aux=True))


@functools.cache
def _blocked(case):
  blocking = Blocking(chunk_rows=case.chunk, order=case.order)
  return value_and_grad(blocked.evaluate, case, blocking=blocking, platform=case.platform)


@functools.cache
def _plain(objective, rows, masked):
  return value_and_grad(plain.evaluate, Case(objective, rows, masked=masked))


def _readable(case):
  return _plain(case.objective, case.rows, case.masked)


def data(case, seed=0, *, scale=14.3, ties=False) -> tuple[dict[str, Any], Any]:
  """Embeddings that any order sorts alike, and groups of the same picture."""
  if case.rows > 1 and (ties or case.order == "short"):
    params = oracle.tied(seed, case.rows, DIM, scale)
  else:
    params = oracle.tie_free(seed, case.rows, DIM, scale)
  for name in ("image", "text"):
    params[name] = jnp.asarray(params[name], case.dtype)
  if case.objective.has_bias:
    params["bias"] = np.float32(-3.0)
  rng = np.random.default_rng(seed)
  ids = rng.integers(0, case.rows // 2, case.rows) if case.masked else None
  return params, ids


def evaluate(case, params, ids=None, *, w: Any = W, seed=0):
  """(loss, terms, gradients), in chunks."""
  key = jax.random.key(seed)
  (loss, named), gradients = _blocked(case)(params, jnp.float32(w), key, ids)
  return loss, named, gradients


def exactly(case, params, ids=None, *, w: Any = W, seed=0):
  """(loss, terms, gradients) in float64, with the ties and anchors of the key."""
  key, place, first = jax.random.key(seed), None, None
  if case.objective.ties == "random":
    place = np.argsort(jax.random.permutation(key, case.rows))
  if case.objective.anchor_stride > 1:
    first = int(terms.first_anchor(case.objective, key))
  return oracle.objective(case.objective, params, w=w, ids=ids, place=place, first=first)


each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


# Values and gradients.


@each_case
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("scale", [14.3, 100.0])
def test_equals_float64(case, ties, scale):
  params, ids = data(case, scale=scale, ties=ties)
  actual = evaluate(case, params, ids)
  rtol = 1e-5
  if case.dtype == "bfloat16":
    assert actual[2]["image"].dtype == actual[2]["text"].dtype == jnp.bfloat16
    rtol = 2**-8
  expected = exactly(case, params, ids)
  assert_close(actual[:2], expected[:2])
  assert_close(actual[2], expected[2], rtol)


@pytest.mark.parametrize("case", KINDS.values(), ids=KINDS.keys())
def test_several_kinds_of_ids_mask_what_agrees_in_any(case):
  """Not transitive: a like b in one kind and b like c in another leave a and c apart."""
  params, ids = data(case)
  kinds = np.stack([ids, np.arange(case.rows) // 3], axis=1)
  expected = exactly(case, params, kinds)
  assert_close(evaluate(case, params, kinds), expected)
  assert_close(
    _plain(case.objective, case.rows, True)(
      params, jnp.float32(W), jax.random.key(0), kinds
    )[0],
    expected[:2],
  )
  assert not np.isclose(float(expected[0]), float(exactly(case, params, ids)[0]))


PLAIN = ["one device", "8 devices", "everything, masked, 8 devices", "strided"]


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("ties", [False, True])
def test_equals_the_readable_form(name, ties):
  case = CASES[name]
  params, ids = data(case, 1, ties=ties)
  run = _plain(case.objective, case.rows, case.masked)
  (loss, named), gradients = run(params, jnp.float32(W), jax.random.key(3), ids)
  actual = evaluate(case, params, ids, seed=3)
  assert_close(actual, (loss, named, gradients))


@hypothesis.given(
  st.sampled_from([x for x in CASES.values() if x.dtype == "float32"]),
  st.floats(1.0, 100.0),
  st.booleans(),
  st.floats(0.0, 2.0),
  st.integers(0, 2**31 - 1),
)
@hypothesis.settings(max_examples=30, deadline=None, derandomize=True)
def test_any_batch_equals_float64(case, scale, ties, w, seed):
  params, ids = data(case, seed, scale=scale, ties=ties)
  actual = evaluate(case, params, ids, w=np.float32(w), seed=seed)
  expected = exactly(case, params, ids, w=np.float32(w), seed=seed)
  assert_close(actual, expected, 1e-5)


@st.composite
def cases_of_any_shape(draw):
  mesh = draw(st.sampled_from([(), (2,), (8,), (2, 4)]))
  devices = math.prod(mesh)
  here = draw(st.integers(1, 40 // devices))
  weight = st.sampled_from([0.0, 0.3, 2.0])
  sigmoid = draw(st.booleans())
  objective = Objective(
    contrastive="sigmoid" if sigmoid else "softmax",
    initial_bias=-3.0 if sigmoid else None,
    cross_modal_weight=draw(weight),
    in_modal_weight=draw(weight),
    cyclic_cross_modal_weight=draw(weight),
    cyclic_in_modal_weight=draw(weight),
    decay=draw(st.sampled_from(["none", "log"])),
    top_k=draw(st.none() | st.integers(1, 50)),
    ties=draw(st.sampled_from(["random", "index"])),
    anchor_stride=draw(st.sampled_from([k for k in (1, 2, 3) if here % k == 0])),
  )
  return Case(
    objective,
    here * devices,
    draw(st.sampled_from([*order.LONGEST, "native"])),
    draw(st.none() | st.integers(1, here)),
    mesh,
    draw(st.booleans()),
    draw(st.sampled_from(["float32", "bfloat16"])),
    draw(st.sampled_from(["cpu", "tpu"])),
  )


@hypothesis.given(
  cases_of_any_shape(), st.integers(1, 40), st.floats(1.0, 50.0), st.integers(0, 9999)
)
@hypothesis.settings(max_examples=25, deadline=None, derandomize=True)
def test_any_shape_and_option_equals_float64(case, dim, scale, seed):
  top_k = case.objective.top_k or case.rows
  if case.order == "native" and (case.platform == "tpu" or top_k < case.rows):
    case = case._replace(order="auto")
  params = oracle.tied(seed, case.rows, dim, scale)
  for name in ("image", "text"):
    params[name] = jnp.asarray(params[name], case.dtype)  # exact in both
  if case.objective.has_bias:
    params["bias"] = np.float32(-3.0)
  rng = np.random.default_rng(seed)
  ids = rng.integers(0, case.rows, case.rows) if case.masked else None
  actual = evaluate(case, params, ids, seed=seed)
  expected = exactly(case, params, ids, seed=seed)
  rounding = 1e-7 * scale
  assert_close(actual[:2], expected[:2], floor=rounding)
  rtol = 1e-5 if case.dtype == "float32" else 2**-8
  assert_close(actual[2], expected[2], rtol, floor=rounding)


@pytest.mark.parametrize("scale", [14.3, 100.0])
def test_devices_chunks_and_orders_agree(scale):
  params = oracle.tied(5, 24, DIM, scale)
  first, *others = (evaluate(CASES[name], params, seed=1) for name in SAME)
  for other in others:
    assert_close(other, first)


def test_masks_leave_out_rows_of_the_same_picture_and_keep_the_pair():
  """By hand: three rows of which two show the same picture."""
  case = Case(
    dataclasses.replace(PRESETS["cyclip"], cross_modal_weight=1.0), 3, masked=True
  )
  params = oracle.tied(1, 3, 5, 2.0)
  image, text = params["image"].astype(float), params["text"].astype(float)
  _, named, _ = evaluate(case, params, np.array([4, 7, 4]))
  a, lists = image @ text.T, [[0, 1], [0, 1, 2], [1, 2]]

  def mean(row):
    return np.mean([row(i, x[i, lists[i]]) for x in (a, a.T) for i in range(3)])

  def cross_entropy(i, x):
    return np.log(np.exp(2.0 * x).sum()) - 2.0 * x[lists[i].index(i)]

  assert_close(named["contrastive_loss"], mean(cross_entropy))
  cyclic = [(a[i, j] - a[j, i]) ** 2 for i in range(3) for j in lists[i]]
  assert_close(named["cyclic_cross_modal_loss"], sum(cyclic) / 3)
  nll = oracle.nll_and_gradient
  rows = [(2.0 * a[i, x], 2.0 * a.T[i, x], len(x)) for i, x in enumerate(lists)]
  place = np.argsort(jax.random.permutation(jax.random.key(0), 3))
  ranked = [
    (nll(p, q, place=place[x])[0] + nll(q, p, place=place[x])[0]) / (2 * n)
    for (p, q, n), x in zip(rows, lists, strict=True)
  ]
  assert_close(named["cross_modal_loss"], np.mean(ranked))


@pytest.mark.parametrize("name", ["strided", "strided, 2 devices"])
def test_a_stride_is_unbiased(name):
  """The mean over the first anchors is the loss over all, and so is the gradient."""
  case = CASES[name]
  params, ids = data(case)
  seeds = {}
  for seed in range(20):
    first = int(terms.first_anchor(case.objective, jax.random.key(seed)))
    seeds.setdefault(first, seed)
  assert seeds.keys() == {0, 1, 2}
  runs = [evaluate(case, params, ids, seed=seed) for seed in seeds.values()]
  loss, _, gradients = jax.tree.map(lambda *x: np.mean(np.stack(x), axis=0), *runs)
  whole = case._replace(objective=dataclasses.replace(case.objective, anchor_stride=1))
  expected, _, expected_gradients = exactly(whole, params, ids)
  assert_close(loss, expected)
  assert_close(gradients, expected_gradients)
  assert abs(runs[0][0] - runs[1][0]) > 1e-3


def test_ties_follow_the_key():
  case = CASES["2 x 4 devices"]
  params = oracle.tied(2, 24, DIM, 14.3)
  first, again, other = (float(evaluate(case, params, seed=x)[0]) for x in (0, 0, 1))
  assert first == again
  assert abs(first - other) > 1e-4


# Differentiation.


def test_the_backward_pass_scales_and_terms_carry_no_gradient():
  case = CASES["top 3"]
  params, ids = data(case._replace(rows=8))
  run = functools.partial(
    blocked.evaluate,
    case.objective,
    rank_weight=W,
    tie_key=jax.random.key(0),
    ids=ids,
    blocking=Blocking(chunk_rows=3),
  )
  (loss, named), pullback = jax.vjp(
    lambda p: run(p.pop("image"), p.pop("text"), **p), params
  )
  zeros, ones = (jax.tree.map(f, named) for f in (jnp.zeros_like, jnp.ones_like))
  (once,), (thrice,) = (pullback((jnp.full_like(loss, x), zeros)) for x in (1.0, 3.0))
  assert_close(thrice, {k: 3.0 * np.asarray(v, float) for k, v in once.items()}, 1e-6)
  (of_terms,) = pullback((jnp.zeros_like(loss), ones))
  for gradient in of_terms.values():
    np.testing.assert_array_equal(gradient, 0.0)
  assert np.abs(once["image"]).max() > 1e-2


# What it takes, says and refuses.


@pytest.mark.parametrize("order", ["native", "packed", "payload", "exact"])
def test_a_cpu_takes_what_was_predicted(order):
  length, dim, chunk = 2048, 256, 128
  blocks = blocking.choose(
    Blocking(chunk_rows=chunk, order=order),
    RANKCLIP,
    rows=length,
    length=length,
    dim=dim,
    platform="cpu",
  )
  shape = jax.ShapeDtypeStruct((length, dim), jnp.float32)
  params = {"image": shape, "text": shape}
  params["log_scale"] = jax.ShapeDtypeStruct((), jnp.float32)
  key = jax.eval_shape(lambda: jax.random.key(0))
  one = jax.ShapeDtypeStruct((), jnp.float32)
  run = _blocked(Case(RANKCLIP, length, chunk=chunk, order=order))
  compiled: Any = run.lower(params, one, key, None).compile()
  temp = compiled.memory_analysis().temp_size_in_bytes
  assert 0.5 * blocks.predicted_bytes < temp <= blocks.predicted_bytes


def test_evaluate_refuses_a_hot_temperature_and_bad_shapes():
  run = functools.partial(
    blocked.evaluate,
    text=jnp.ones((4, 3)),
    log_scale=jnp.float32(0.0),
    tie_key=jax.random.key(0),
  )
  hot = dataclasses.replace(RANKCLIP, log_scale_range=(0.0, 5.4))
  with pytest.raises(ValueError, match="log_scale_range must stay below .*, got 5.40"):
    run(hot, jnp.ones((4, 3)))
  hot = dataclasses.replace(PRESETS["clip"], log_scale_range=(0.0, 5.4))
  assert jnp.isfinite(run(hot, jnp.ones((4, 3)))[0])  # it has no lists
  with pytest.raises(ValueError, match=r"one shape .* got \(2, 3\) and \(4, 3\)"):
    run(RANKCLIP, jnp.ones((2, 3)))
  with pytest.raises(ValueError, match="top_k must be at least 1, got 0; None is all"):
    run(dataclasses.replace(RANKCLIP, top_k=0), jnp.ones((4, 3)))


def test_top_k_needs_no_room_for_an_index():
  """It never packs one, so no list is too long."""
  rows = jnp.ones((2**16 + 1, 2))
  run = functools.partial(
    blocked.evaluate,
    dataclasses.replace(RANKCLIP, top_k=3),
    log_scale=jnp.float32(0.0),
    blocking=Blocking(chunk_rows=8, order="packed"),
  )
  loss, _ = jax.eval_shape(lambda key: run(rows, rows, tie_key=key), jax.random.key(0))
  assert loss.shape == ()


@pytest.mark.parametrize(
  "mesh, spread, check_vma, message",
  [
    ((8,), ("data",), False, r"axes \('data',\).* all along \('data',\).*its check_vma"),
    ((2, 4), ("data", "fsdp"), False, r"all along \('data', 'fsdp'\)"),
    ((2, 4), ("data",), True, r"all along \('fsdp',\).*in its in_specs"),
  ],
)
def test_a_shard_map_that_would_lose_gradients_is_refused(
  mesh, spread, check_vma, message
):
  """Without check_vma they came out too small by the number of devices, unnoticed."""
  axes = ("data", "fsdp")[: len(mesh)]
  devices = jax.make_mesh(mesh, axes, (jax.sharding.AxisType.Auto,) * len(axes))

  def run(image, text):
    return blocked.evaluate(
      RANKCLIP, image, text, log_scale=jnp.float32(1.0), tie_key=KEY, axis_name=axes
    )[0]

  sharded = jax.shard_map(
    run, mesh=devices, in_specs=P(spread), out_specs=P(), check_vma=check_vma
  )
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(jax.grad(sharded), *[jnp.ones((16, 4))] * 2)


def test_the_choice_is_logged(caplog):
  rows = jnp.ones((2048, 4))
  run = functools.partial(blocked.evaluate, log_scale=jnp.float32(0.0), platform="gpu")
  run = functools.partial(run, blocking=Blocking(chunk_rows=128))
  with caplog.at_level(logging.INFO, logger=blocked.__name__):
    key = jax.random.key(0)
    jax.eval_shape(lambda: run(RANKCLIP, rows, rows, tie_key=key))
    jax.eval_shape(lambda: run(PRESETS["clip"], rows, rows))  # ranks nothing
  assert caplog.messages == [
    "Loss of 2048 x 2048 pairs: 128 rows at once, order by packed (resolution 5e-07 of "
    "a list's range), about 13 MiB a device.",
    "Loss of 2048 x 2048 pairs: 128 rows at once, about 13 MiB a device.",
  ]


# Large batches.


@pytest.mark.parametrize("form", [_blocked, _readable])
def test_every_matmul_is_of_full_float32(form):
  """TF32 or bf16 passes would decide orders; CPUs cannot show it."""
  case = Case(EVERYTHING)
  params, _ = data(case)
  program = str(jax.make_jaxpr(form(case))(params, jnp.float32(1.0), KEY, None))
  matmuls = program.count("dot_general[")
  assert matmuls >= 4
  assert program.count("precision=(Precision.HIGHEST, Precision.HIGHEST)") == matmuls


@pytest.mark.parametrize("spread", [0.3, 1e-3])
@pytest.mark.parametrize("order", ["packed", "short"])
def test_orders_are_as_fine_as_a_list_is_narrow(order, spread):
  """A cone of embeddings, as of towers before training: cosines close to 1."""
  rng = np.random.default_rng(0)
  narrow = lambda: oracle.unit_rows(
    np.eye(1, 64) + spread * rng.normal(size=(512, 64)) / 8
  )
  params = {"image": narrow(), "text": narrow(), "log_scale": np.float32(math.log(100.0))}
  actual, expected = (
    evaluate(Case(RANKCLIP, 512, name), params) for name in (order, "native")
  )
  off = np.linalg.norm(actual[2]["image"] - expected[2]["image"])
  limit = {"packed": 1e-5, "short": 1e-3}[order]
  assert off < limit * np.linalg.norm(expected[2]["image"])


def test_no_buffer_of_all_pairs():
  """Neither in what is traced, nor in what is compiled, nor in what it allots."""
  length, dim, chunk = 8192, 16, 32
  shape = jax.ShapeDtypeStruct((length, dim), jnp.float32)
  params = {"image": shape, "text": shape}
  params["log_scale"] = jax.ShapeDtypeStruct((), jnp.float32)
  run = _blocked(Case(RANKCLIP, length, chunk=chunk, masked=True))
  ids = jax.ShapeDtypeStruct((length,), jnp.int32)
  key = jax.eval_shape(lambda: jax.random.key(0))
  traced = run.trace(params, jax.ShapeDtypeStruct((), jnp.float32), key, ids)
  compiled: Any = traced.lower().compile()
  for text in (str(traced.jaxpr), compiled.as_text()):
    shapes = set(re.findall(r"\w+\[([\d,]+)\]", text))
    sizes = [math.prod(map(int, x.split(","))) for x in shapes]
    assert chunk * length <= max(sizes) <= 2 * chunk * length  # 2: a scatter's indices
  assert compiled.memory_analysis().temp_size_in_bytes < 0.25 * 4 * length**2


def test_packed_order_costs_little_accuracy_at_2048():
  """Ties within 5e-7 of the range, in 4 million pairs, at the highest temperature."""
  case = Case(RANKCLIP, 2048, chunk=256)
  image, text = oracle.embeddings(np.random.default_rng(0), 2048, 64, noise=1.2)
  params = {"image": image, "text": text, "log_scale": np.float32(math.log(100.0))}
  actual, expected = (
    evaluate(case._replace(order=order), params) for order in ("packed", "native")
  )
  assert_close(actual[:2], expected[:2])
  for name, gradient in expected[2].items():
    off = np.linalg.norm(actual[2][name] - gradient)
    assert off < 1e-5 * np.linalg.norm(gradient), name
