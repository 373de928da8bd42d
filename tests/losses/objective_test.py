"""Every preset, in both forms, against its formula and its invariants."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from rankclip_jax.losses import blocked, plain
from rankclip_jax.losses import objective as objectives
from rankclip_jax.losses.objective import PRESETS, Objective
from tests.losses import oracle
from tests.losses.oracle import assert_close

ROWS, DIM = 8, 5
RAMP = 1.5  # w, unlike 1 and 2 so that a test notices when it is forgotten
RANKING = [name for name, preset in PRESETS.items() if preset.ranks]


# The formulas of the papers, in plain loops over float64. Complex numbers pass through
# them, so that a derivative is a complex step: f'(x) = Im f(x + ih) / h, exact.


def descending(reference):
  return sorted(range(len(reference)), key=lambda i: -reference[i].real)


def nll(scores, reference, *, decay=False, eps=None):
  p = scores[descending(reference)]
  p = p - p[np.argmax(p.real)]
  total = 0
  for k in range(len(p)):
    top = 0 if eps else p[k:].real.max()
    mass = np.exp(p[k:] - top).sum() + (eps or 0)
    total += (top + np.log(mass) - p[k]) / (math.log(k + 2) if decay else 1)
  return total


def list_mle(scored, reference, **options):
  return np.mean([nll(p, r, **options) for p, r in zip(scored, reference, strict=True)])


def cross_entropy(logits):
  return np.mean([np.log(np.exp(x).sum()) - x[i] for i, x in enumerate(logits)])


def formula(name, image, text, scale, bias, w):
  """The loss, from the equations and the released code (shared/paper.md's notes)."""
  n = len(image)
  a, c, d = scale * image @ text.T, scale * image @ image.T, scale * text @ text.T
  clip = (cross_entropy(a) + cross_entropy(a.T)) / 2

  def ranked(x, y, **options):  # /32 and /N as released
    return (list_mle(x, y, **options) + list_mle(y, x, **options)) / 32 / n

  match name:
    case "clip":
      return clip
    case "rankclip":
      return clip + w * (ranked(a, a.T) + ranked(c, d))
    case "rankclip_c":
      return clip + w * ranked(a, a.T)
    case "rankclip_i":
      return clip + w * ranked(c, d)
    case "rankclip_paper":
      return clip + w * (ranked(a, a.T, decay=True) + ranked(c, d, decay=True))
    case "rankclip_released":
      return clip + w * (ranked(a, a.T, eps=1e-10) + ranked(c, d, eps=1e-10))
    case "cyclip":
      return clip + 0.25 * (np.square(a - a.T) + np.square(c - d)).sum() / n / scale**2
    case "siglip":
      z = 2 * np.eye(n) - 1
      return np.log(1 + np.exp(-z * (a + bias))).sum() / n
    case _:
      raise ValueError(f"The preset {name!r} has no formula here yet; write it down.")


def formula_gradients(name, params, w):
  """d formula / d params, one complex step for every number in them."""
  params = {key: np.asarray(value, complex) for key, value in params.items()}

  def loss():
    scale = np.exp(params["log_scale"])
    bias = params.get("bias")
    return formula(name, params["image"], params["text"], scale, bias, w)

  h, grads = 1e-30, {}
  for key, value in params.items():
    grads[key] = np.zeros(value.shape)
    for index in np.ndindex(value.shape):
      value[index] += 1j * h
      grads[key][index] = loss().imag / h
      value[index] -= 1j * h
  return loss().real, grads


# The thing under test, and data for it.


FORMS = {
  "plain": plain.evaluate,
  "blocked": functools.partial(blocked.evaluate, blocking=blocked.Blocking(chunk_rows=3)),
}
every_form = pytest.mark.parametrize("form", FORMS)


def loss_of(objective, params, *, form="plain", w=RAMP, seed=0, axis_name=None):
  return FORMS[form](
    objective,
    params["image"],
    params["text"],
    log_scale=params["log_scale"],
    bias=params.get("bias"),
    rank_weight=w,
    tie_key=jax.random.key(seed),
    axis_name=axis_name,
  )


@functools.cache
def _compiled(objective, form):
  loss = functools.partial(loss_of, objective, form=form)
  value_and_grad = jax.value_and_grad(
    lambda params, w, seed: loss(params, w=w, seed=seed), has_aux=True
  )
  return jax.jit(value_and_grad)


def evaluate(objective, params, *, form="plain", w: Any = RAMP, seed=0):
  """Loss, terms and gradients; one compilation for an objective, a form and a shape."""
  if isinstance(objective, str):
    objective = PRESETS[objective]
  (loss, terms), grads = _compiled(objective, form)(params, jnp.float32(w), seed)
  return float(loss), terms, grads


def parameters(
  name, seed=0, rows=ROWS, dim=DIM, scale=1 / 0.07, noise=1.0
) -> dict[str, Any]:
  """Tie-free embeddings, the temperature, and a bias where the preset has one."""
  return with_bias(name, oracle.tie_free(seed, rows, dim, scale, noise))


def with_bias(name, params):
  if PRESETS[name].initial_bias is None:
    return params
  return params | {"bias": np.float32(-3.0)}


def tied_parameters(name, scale) -> dict[str, Any]:
  return with_bias(name, oracle.tied(3, ROWS, DIM, scale))


def assert_finite(tree):
  for leaf in jax.tree.leaves(tree):
    assert np.isfinite(leaf).all()


every_preset = pytest.mark.parametrize("name", PRESETS)


# Values.


@every_form
@every_preset
@pytest.mark.parametrize("scale", [1 / 0.07, 100.0])
def test_presets_equal_their_formulas(form, name, scale):
  params = parameters(name, scale=scale)
  loss, _, grads = evaluate(name, params, form=form)
  expected, expected_grads = formula_gradients(name, params, RAMP)
  assert_close(loss, expected)
  assert_close(grads, expected_grads)


@every_form
@pytest.mark.parametrize("scale", [5.0, 100.0])
def test_every_weight_and_option_is_passed_on(form, scale):
  """All terms at once, no two weights alike, and ties that no key may shuffle."""
  objective = Objective(
    cross_modal_weight=0.3,
    in_modal_weight=0.7,
    cyclic_cross_modal_weight=0.2,
    cyclic_in_modal_weight=0.9,
    decay="log",
    top_k=3,
    ties="index",
  )
  params = tied_parameters("clip", scale)
  loss, terms, _ = evaluate(objective, params, form=form)

  image, text = params["image"].astype(float), params["text"].astype(float)
  a, c, d = image @ text.T, image @ image.T, text @ text.T

  def first_three(x, y):
    total = 0
    for scores, reference in zip(scale * x, y, strict=True):
      p = scores[descending(reference)]
      for k in range(3):
        total += (np.log(np.exp(p[k:]).sum()) - p[k]) / math.log(k + 2)
    return total / len(x) / 3

  expected = {
    "contrastive_loss": (cross_entropy(scale * a) + cross_entropy(scale * a.T)) / 2,
    "cross_modal_loss": (first_three(a, a.T) + first_three(a.T, a)) / 2,
    "in_modal_loss": (first_three(c, d) + first_three(d, c)) / 2,
    "cyclic_cross_modal_loss": np.square(a - a.T).sum() / ROWS,
    "cyclic_in_modal_loss": np.square(c - d).sum() / ROWS,
    "rank_weight": RAMP,
  }
  expected["rank_loss"] = RAMP * (
    0.3 * expected["cross_modal_loss"] + 0.7 * expected["in_modal_loss"]
  )
  assert terms.keys() == expected.keys()
  for key in expected:
    assert_close(terms[key], expected[key])
  cyclic = 0.2 * expected["cyclic_cross_modal_loss"]
  cyclic += 0.9 * expected["cyclic_in_modal_loss"]
  assert_close(loss, expected["contrastive_loss"] + expected["rank_loss"] + cyclic)


@every_form
@pytest.mark.parametrize(
  "name, expected",
  [
    ("clip", set()),
    ("siglip", set()),
    ("cyclip", {"cyclic_cross_modal_loss", "cyclic_in_modal_loss"}),
    ("rankclip_c", {"cross_modal_loss", "rank_loss", "rank_weight"}),
    ("rankclip_i", {"in_modal_loss", "rank_loss", "rank_weight"}),
    ("rankclip", {"cross_modal_loss", "in_modal_loss", "rank_loss", "rank_weight"}),
  ],
)
def test_terms_are_those_that_are_on(form, name, expected):
  _, terms, _ = evaluate(name, parameters(name), form=form)
  assert terms.keys() == expected | {"contrastive_loss"}


@pytest.mark.parametrize("name", RANKING)
def test_a_rank_weight_of_zero_leaves_clip(name):
  params = parameters(name)
  loss, terms, grads = evaluate(name, params, w=0.0)
  expected, _, expected_grads = evaluate("clip", params)
  assert terms["rank_loss"] == 0.0
  assert_close(loss, expected)
  assert_close(grads, expected_grads)


# Invariants of every preset.


@every_form
@every_preset
def test_the_order_of_the_pairs_does_not_matter(form, name):
  params = parameters(name, seed=1)
  moved = np.random.default_rng(0).permutation(ROWS)
  permuted = lambda x: x | {"image": x["image"][moved], "text": x["text"][moved]}
  loss, _, grads = evaluate(name, params, form=form)
  actual, _, actual_grads = evaluate(name, permuted(params), form=form)
  assert_close(actual, loss)
  assert_close(actual_grads, permuted(grads))


@every_form
@every_preset
def test_image_and_text_are_treated_alike(form, name):
  params = parameters(name, seed=2)
  swapped = lambda x: x | {"image": x["text"], "text": x["image"]}
  loss, _, grads = evaluate(name, params, form=form)
  actual, _, actual_grads = evaluate(name, swapped(params), form=form)
  assert_close(actual, loss)
  assert_close(actual_grads, swapped(grads))


@every_preset
def test_a_batch_of_one_pair(name):
  params = parameters(name, rows=1)
  loss, _, grads = evaluate(name, params)
  expected, expected_grads = formula_gradients(name, params, RAMP)
  np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-6)
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5),
    grads,
    expected_grads,
  )


@every_form
@every_preset
@pytest.mark.parametrize("scale", [1 / 0.07, 100.0])
def test_all_similarities_tied(form, name, scale):
  params = parameters(name, scale=scale)
  params |= {key: np.tile(params[key][:1], (ROWS, 1)) for key in ("image", "text")}
  loss, _, grads = evaluate(name, params, form=form)
  # Tied scores cost the same in any order.
  exact = {key: value.astype(float) for key, value in params.items()}
  scale, bias = np.exp(exact["log_scale"]), exact.get("bias")
  expected = formula(name, exact["image"], exact["text"], scale, bias, RAMP)
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  assert_finite(grads)


@every_form
@every_preset
def test_duplicated_pairs(form, name):
  params = parameters(name)
  params |= {key: np.repeat(params[key][::2], 2, axis=0) for key in ("image", "text")}
  loss, _, grads = evaluate(name, params, form=form)
  expected, _ = formula_gradients(name, params, RAMP)
  assert_close(loss, expected)
  assert_finite(grads)


@every_form
@every_preset
def test_scale_100_with_perfect_pairs_is_finite(form, name):
  params = parameters(name, scale=100.0)
  params["text"] = params["image"]
  loss, terms, grads = evaluate(name, params, form=form)
  assert_finite((loss, terms, grads))


@every_preset
def test_arithmetic_is_float32(name):
  """Nothing is done to half-precision embeddings before they are cast."""
  params = parameters(name)
  params["image"] = jnp.asarray(params["image"], jnp.bfloat16)
  params["text"] = jnp.asarray(params["text"], jnp.float16)
  program = jax.make_jaxpr(functools.partial(loss_of, PRESETS[name]))(params).jaxpr
  casts = 0
  for equation in program.eqns:
    if {x.aval.dtype for x in equation.invars} & {params["image"].dtype, np.dtype("f2")}:
      assert equation.primitive.name == "convert_element_type"
      assert equation.outvars[0].aval.dtype == jnp.float32
      casts += 1
  assert casts == 2
  assert {x.aval.dtype for x in program.outvars} == {np.dtype("f4")}


# Ties.


def test_ties_follow_the_key():
  """Equal images, unlike texts: the key decides which of the tied texts comes first."""
  params = parameters("rankclip")
  params["image"] = np.repeat(params["image"][::4], 4, axis=0)
  first, again, other = (evaluate("rankclip", params, seed=s)[0] for s in (0, 0, 1))
  assert first == again
  assert abs(first - other) > 1e-4


# Sharding.


def mesh_of(*shape):
  names = ("data", "fsdp")[: len(shape)]
  return jax.make_mesh(
    shape,
    names,
    axis_types=(jax.sharding.AxisType.Auto,) * len(shape),
    devices=jax.devices()[: math.prod(shape)],
  )


def evaluate_sharded(name, params, mesh):
  axis_name = mesh.axis_names if len(mesh.axis_names) > 1 else "data"
  specs = {key: P(axis_name) if np.ndim(x) else P() for key, x in params.items()}
  sharded = jax.shard_map(
    lambda params, w: loss_of(PRESETS[name], params, w=w, axis_name=axis_name),
    mesh=mesh,
    in_specs=(specs, P()),
    out_specs=P(),
  )
  run = jax.jit(jax.value_and_grad(sharded, has_aux=True))
  (loss, terms), grads = run(params, jnp.float32(RAMP))
  return float(loss), terms, grads


MESHES = [(1,), (2,), (4,), (8,), (2, 4)]
# Programs that rank take seconds to compile: every mesh and every preset, not each pair.
SHARDED = [
  *((name, mesh) for name in ("clip", "cyclip", "siglip") for mesh in MESHES),
  ("rankclip_c", (1,)),
  ("rankclip_i", (2,)),
  ("rankclip_paper", (4,)),
  ("rankclip_released", (2, 4)),
  ("rankclip", (8,)),
  ("rankclip", (2, 4)),
]


@pytest.mark.parametrize("name, mesh", SHARDED)
def test_sharded_equals_unsharded(name, mesh):
  """On data with ties, whose order only the shared key settles."""
  params = tied_parameters(name, 3.0)
  loss, terms, grads = evaluate(name, params)
  assert_close(evaluate_sharded(name, params, mesh_of(*mesh)), (loss, terms, grads))


def test_gathered_embeddings_carry_gradient():
  """CLIP's closed form on two devices, split into what a device's own rows see.

  Without a gradient through the gather, an image would learn only from its own row of
  s V T^T, and not from its column, in the rows of texts on both devices.
  """
  params = parameters("clip", scale=5.0)
  _, _, grads = evaluate_sharded("clip", params, mesh_of(2))
  image, text = params["image"].astype(float), params["text"].astype(float)
  logits = np.exp(5.0 * image @ text.T)
  rows = logits / logits.sum(1, keepdims=True) - np.eye(ROWS)
  columns = logits / logits.sum(0, keepdims=True) - np.eye(ROWS)
  factor = 5.0 / (2 * ROWS)
  assert_close(grads["image"], factor * (rows + columns) @ text)
  only_own = factor * rows @ text
  assert np.abs(grads["image"] - only_own).max() > 0.1 * np.abs(only_own).max()


# The ramp.


def ramp(kind, step, *, num_steps, epoch_steps):
  objective = Objective(ramp=kind)
  w = objectives.rank_weight(
    objective, step, num_steps=num_steps, epoch_steps=epoch_steps
  )
  return float(w)


@pytest.mark.parametrize(
  "epoch, expected", [(1, 0), (2, 1 / 21), (22, 1), (42, 41 / 21), (43, 2), (64, 2)]
)
@pytest.mark.parametrize("step", [0, 6])
@pytest.mark.parametrize("last", [1, 7])
def test_epoch_ramp_is_the_papers(epoch, expected, step, last):
  """64 epochs of 7 steps, the last one possibly cut short."""
  step = (epoch - 1) * 7 + step
  w = ramp("epoch", step, num_steps=63 * 7 + last, epoch_steps=7)
  assert w == pytest.approx(expected, rel=1e-6)


def test_step_ramp_rises_evenly_to_2_at_two_thirds():
  w = [ramp("step", step, num_steps=31, epoch_steps=10) for step in range(31)]
  expected = [min(step / 10, 2) for step in range(31)]  # 3 step / 30
  np.testing.assert_allclose(w, expected, rtol=1e-6)


@pytest.mark.parametrize(
  "num_steps, expected", [(1, [0]), (2, [0, 2]), (4, [0, 1, 2, 2])]
)
def test_step_ramp_of_short_runs(num_steps, expected):
  w = [ramp("step", t, num_steps=num_steps, epoch_steps=4) for t in range(num_steps)]
  np.testing.assert_allclose(w, expected, rtol=1e-6)


def test_no_ramp_is_one():
  assert [ramp("none", t, num_steps=5, epoch_steps=1) for t in (0, 4)] == [1, 1]


def test_ramp_follows_slope_and_ceiling():
  objective = Objective(ramp="step", ramp_slope=10.0, ramp_ceiling=4.0)
  w = [
    objectives.rank_weight(objective, t, num_steps=11, epoch_steps=1) for t in range(6)
  ]
  np.testing.assert_allclose(w, [0, 1, 2, 3, 4, 4], rtol=1e-6)


def test_ramp_takes_a_traced_step():
  w = jax.jit(
    lambda step: objectives.rank_weight(
      PRESETS["rankclip_released"], step, num_steps=640, epoch_steps=10
    )
  )(jnp.int32(219))
  assert w.dtype == jnp.float32
  assert w == pytest.approx(1.0)


@pytest.mark.parametrize("num_steps", [1, 7, 10])
def test_epoch_ramp_refuses_one_epoch(num_steps):
  with pytest.raises(
    ValueError, match=rf'at least 2 epochs, got {num_steps} steps of 10 .*ramp="step"'
  ):
    ramp("epoch", 0, num_steps=num_steps, epoch_steps=10)


# The presets' constants, as published.


@every_preset
def test_initial_logits(name):
  preset = PRESETS[name]
  scale, bias = (10.0, -10.0) if name == "siglip" else (1 / 0.07, None)
  assert preset.initial_scale == pytest.approx(scale)
  assert preset.initial_bias == bias
  largest = 4.6052 if name == "rankclip_released" else math.log(100.0)
  assert preset.log_scale_range == (0.0, largest)


def test_presets_ramps_and_what_they_rank():
  ramps = {name: PRESETS[name].ramp for name in RANKING}
  assert ramps == {
    "rankclip": "step",
    "rankclip_c": "step",
    "rankclip_i": "step",
    "rankclip_paper": "none",
    "rankclip_released": "epoch",
  }


def test_named_changes_what_is_given():
  preset = objectives.named("rankclip_paper", decay="none", top_k=16, eps=None)
  assert (preset.decay, preset.top_k, preset.eps) == ("none", 16, None)
  assert preset.ramp == PRESETS["rankclip_paper"].ramp
  assert objectives.named("rankclip_released", eps=None).eps == 1e-10  # None: unchanged


@pytest.mark.parametrize("top_k", [0, -3])
def test_named_refuses_lists_of_no_positions(top_k):
  """Before anything is traced: `plan.make` calls it."""
  message = f"top_k must be at least 1, got {top_k}; None is all."
  with pytest.raises(ValueError, match=message):
    objectives.named("rankclip", top_k=top_k)


def test_named_suggests_a_name():
  with pytest.raises(ValueError, match="'rankclp'; there are rankclip, .* mean rankclip"):
    objectives.named("rankclp")


# Errors.


def call(name="rankclip", image=(4, 3), text=(4, 3), stride=1, **options):
  defaults = {"log_scale": jnp.float32(1.0), "tie_key": jax.random.key(0)}
  objective = dataclasses.replace(PRESETS[name], anchor_stride=stride)
  return plain.evaluate(
    objective, jnp.ones(image), jnp.ones(text), **(defaults | options)
  )


@pytest.mark.parametrize(
  "shapes, got",
  [
    ({"text": (5, 3)}, r"\(4, 3\) and \(5, 3\)"),
    ({"image": (4, 2)}, r"\(4, 2\) and \(4, 3\)"),
    ({"image": (3,), "text": (3,)}, r"\(3,\) and \(3,\)"),
  ],
)
def test_shapes_must_match(shapes, got):
  with pytest.raises(ValueError, match=rf"one shape \[rows, dim\], got {got}"):
    call(**shapes)


def test_random_ties_need_a_key():
  with pytest.raises(ValueError, match='need tie_key; pass .* or use ties="index"'):
    call(tie_key=None)
  jax.eval_shape(lambda: call("clip", tie_key=None))  # nothing is ranked


@pytest.mark.parametrize(
  "name, options, got",
  [
    ("siglip", {}, "contrastive='sigmoid' with bias=None"),
    ("clip", {"bias": jnp.float32(2.0)}, "contrastive='softmax' with bias=2.0"),
  ],
)
def test_a_bias_belongs_to_the_sigmoid(name, options, got):
  with pytest.raises(
    ValueError, match=f"takes a bias and the softmax loss none, got {got}"
  ):
    call(name, **options)


@pytest.mark.parametrize("stride", [0, 3, 8])
def test_a_stride_must_divide_the_rows(stride):
  with pytest.raises(ValueError, match=rf"divide the rows .*, got {stride} for 4 rows"):
    call(stride=stride)
