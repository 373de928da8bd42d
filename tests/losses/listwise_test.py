"""The likelihood with its gradient against loops in float64 and the readable form."""

import functools
import math
from typing import Any

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from rankclip_jax.losses import listwise, native, order, ranking
from tests.losses import oracle
from tests.losses.oracle import assert_close

ROWS, LENGTH = 4, 33
EPS = 1e-10  # the released code's
BACKENDS: tuple[Any, ...] = (*order.LONGEST, "native")
Options = listwise.Options
some = hypothesis.settings(max_examples=60, deadline=None, derandomize=True)


@functools.partial(jax.jit, static_argnums=0)
def nll_and_gradient(options, scores, reference, where=None):
  return listwise.nll_and_gradient(options, scores, reference, where)


def loop(options, scores, reference, where=None):
  """Every list by itself."""
  if where is None:
    where = np.ones(scores.shape, bool)
  terms = options._asdict()
  del terms["backend"], terms["gathers"]
  rows = [
    oracle.nll_and_gradient(*row, where=exists, **terms)
    for *row, exists in zip(scores, reference, where, strict=True)
  ]
  nll, gradient = zip(*rows, strict=True)
  return np.array(nll), np.array(gradient)


def assert_equals_loop(options, scores, reference, where=None):
  nll, gradient = nll_and_gradient(options, scores, reference, where)
  expected, expected_gradient = loop(options, scores, reference, where)
  # log S_k - p_k is a difference of numbers as large as the scores.
  rounding = 2e-7 * LENGTH * np.abs(scores).max()
  np.testing.assert_allclose(nll, expected, rtol=1e-5, atol=rounding)
  # The gradient is a difference of numbers around 1, and more where lists disagree.
  largest = np.abs(expected_gradient).max(initial=1.0)
  np.testing.assert_allclose(gradient, expected_gradient, rtol=0, atol=1e-5 * largest)
  np.testing.assert_allclose(np.sum(gradient, 1), 0.0, atol=2e-5 * largest)


def on_grid(rng, points=LENGTH):
  """Cosines further apart than any backend's resolution; -1 and 1 are among them."""
  grid = np.linspace(-1.0, 1.0, points, dtype=np.float32)
  rows = np.resize(grid, (ROWS, LENGTH))
  return rng.permuted(rows, axis=1)


def bf16(x):
  return x.astype(jnp.bfloat16).astype(np.float32)


def near_the_middle(rng):
  """One at each end, most of the mass at the boundary of the two registers."""
  p = 1e-3 * rng.normal(size=(ROWS, LENGTH)).astype(np.float32)
  p[:, :2] = 1.0, -1.0
  return p


def lists(kind, scale):
  """(scores, reference), [rows, length]."""
  rng = np.random.default_rng(7)
  p, q = on_grid(rng), on_grid(rng)
  match kind:
    case "distinct":
      pass
    case "any scores":
      p = rng.uniform(-1, 1, p.shape).astype(np.float32)
    case "one order":
      q = p
    case "opposite orders":
      q = -p
    case "near the middle":
      p = near_the_middle(rng)
      q[:, 0], q[:, 1] = 1.0, -1.0
    case "duplicates":
      p, q = on_grid(rng, 4), on_grid(rng, 3)
    case "all equal":
      p = q = np.full_like(p, 0.25)
    case "orthogonal":
      p = q = np.eye(ROWS, LENGTH, dtype=np.float32)
    case "bf16":
      p = bf16(rng.uniform(-1, 1, p.shape).astype(np.float32))
      q = bf16(on_grid(rng))  # still distinct: 8 bits suffice for 33
  return np.float32(scale) * p, np.float32(scale) * q


KINDS = (
  "distinct",
  "any scores",
  "one order",
  "opposite orders",
  "near the middle",
  "duplicates",
  "all equal",
  "orthogonal",
  "bf16",
)
OPTIONS = [
  *(Options(backend=backend) for backend in BACKENDS),
  Options(gathers=False),
  Options(backend="exact", gathers=False),
  Options(decay="log"),
  Options(decay="log", backend="native"),
  Options(top_k=1),
  Options(top_k=3, decay="log", backend="native"),
  Options(top_k=LENGTH, backend="native"),
  Options(top_k=LENGTH + 7, decay="log"),
]
with_where = pytest.mark.parametrize(
  "options",
  [*OPTIONS[:7], Options(top_k=3, decay="log"), Options(decay="log", backend="native")],
  ids=str,
)


def test_the_kernel_is_tested_here():
  assert native.available()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0])
def test_value_and_gradient_equal_the_loop(options, kind, scale):
  assert_equals_loop(options, *lists(kind, scale))


@with_where
@pytest.mark.parametrize("scale", [3.0, 100.0])
@pytest.mark.parametrize("share", [0.05, 0.6, 1.0])
def test_items_that_do_not_exist_count_nowhere(options, scale, share):
  """Nor do their scores: some are the highest and the lowest of their list."""
  scores, reference = lists("distinct", scale)
  where = np.random.default_rng(2).random(scores.shape) < share
  where[:, 5] = True
  scores[~where] *= 50.0
  if share < 1.0:
    where[0] = np.arange(LENGTH) == 3  # a list of one
  assert_equals_loop(options, np.where(where, scores, np.sign(scores)), reference, where)
  nll, gradient = nll_and_gradient(options, scores, reference, where)
  assert np.isfinite(nll).all()
  np.testing.assert_array_equal(np.asarray(gradient)[~where], 0.0)


@hypothesis.given(
  st.sampled_from([Options(backend=x) for x in BACKENDS] + [Options(top_k=3)]),
  st.floats(1.0, 100.0),
  st.sampled_from([2, 5, LENGTH]),
  st.sampled_from([0.0, 1e-3, 1.0]),
  st.integers(0, 2**32 - 1),
)
@some
def test_any_lists_equal_the_loop(options, scale, points, noise, seed):
  rng = np.random.default_rng(seed)
  p = on_grid(rng) * np.float32(rng.choice([1e-3, 1.0]))
  p = np.clip(p + noise * rng.normal(size=p.shape), -1, 1).astype(np.float32)
  assert_equals_loop(
    options, np.float32(scale) * p, np.float32(scale) * on_grid(rng, points)
  )


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_list_of_one_costs_nothing(backend):
  one = np.array([[3.0], [-100.0]], np.float32)
  nll, gradient = nll_and_gradient(Options(backend=backend), one, one)
  np.testing.assert_array_equal(nll, 0.0)
  np.testing.assert_array_equal(gradient, 0.0)


# The released form, which differs only where the remaining mass is below eps.


@pytest.mark.parametrize("top_k", [None, 3])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [1.0, 50.0])
def test_released_form_equals_the_loop(top_k, kind, scale):
  """Tied maxima share the gradient of the one that is subtracted."""
  assert_equals_loop(Options(eps=EPS, top_k=top_k), *lists(kind, scale))


def test_released_form_without_missing_items():
  scores, reference = lists("duplicates", 10.0)
  where = np.random.default_rng(0).random(scores.shape) < 0.7
  assert_equals_loop(Options(eps=EPS), scores, reference, where)


# The readable form, differentiated by JAX.


@functools.partial(jax.jit, static_argnums=0)
def readable(options, scores, reference, where):
  terms = options._asdict()
  del terms["backend"], terms["gathers"]
  nll = functools.partial(ranking.plackett_luce_nll, where=where, **terms)
  value, pullback = jax.vjp(lambda s: nll(s, reference), scores)
  return value, pullback(jnp.ones_like(value))[0]


@pytest.mark.parametrize(
  "options",
  [Options(), Options(decay="log", top_k=3), Options(eps=EPS), Options(backend="native")],
  ids=str,
)
@pytest.mark.parametrize("kind", ["distinct", "duplicates", "orthogonal"])
@pytest.mark.parametrize("scale", [1.0, 14.3])
def test_equals_the_readable_form(options, kind, scale):
  scores, reference = lists(kind, scale)
  where = np.random.default_rng(1).random(scores.shape) < 0.8
  where[:, 0] = True
  nll, gradient = nll_and_gradient(options, scores, reference, where)
  expected, expected_gradient = readable(options, scores, reference, where)
  np.testing.assert_allclose(nll, expected, rtol=1e-5, atol=1e-5 * scale)
  assert_close(gradient, expected_gradient, rtol=2e-5)


# Both directions.


@functools.partial(jax.jit, static_argnums=0)
def consistency(options, a, b, scale, where):
  """Values, and the gradients by a, b and scale of their sum weighted by 1 .. rows."""
  value, pullback = jax.vjp(
    lambda a, b, s: listwise.consistency(options, a, b, s, where),
    a,
    b,
    scale,
  )
  return value, pullback(jnp.arange(1.0, ROWS + 1))


@pytest.mark.parametrize(
  "options",
  [Options(), Options(decay="log", backend="native"), Options(top_k=3, decay="log")],
  ids=str,
)
@pytest.mark.parametrize("share", [0.05, 0.7, 1.0])
def test_consistency_is_the_mean_over_positions_and_directions(options, share):
  (a, b), scale = lists("distinct", 1.0), np.float32(14.3)
  where = np.random.default_rng(0).random(a.shape) < share
  where[:, 0] = True
  value, (a_bar, b_bar, scale_bar) = consistency(options, a, b, scale, where)
  terms = options._asdict()
  del terms["backend"], terms["gathers"]
  by_scale = 0.0
  for i in range(ROWS):
    x, y = float(scale) * a[i].astype(float), float(scale) * b[i].astype(float)
    expected, x_bar, y_bar = oracle.consistency(x, y, where=where[i], **terms)
    np.testing.assert_allclose(value[i], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(a_bar[i], scale * (i + 1) * x_bar, atol=1e-4)
    np.testing.assert_allclose(b_bar[i], scale * (i + 1) * y_bar, atol=1e-4)
    by_scale += (i + 1) * (x_bar @ a[i] + y_bar @ b[i])
  np.testing.assert_allclose(scale_bar, by_scale, rtol=1e-5, atol=1e-5)


def test_consistency_equals_the_readable_one():
  (a, b), scale = lists("duplicates", 1.0), np.float32(5.0)
  where = np.random.default_rng(0).random(a.shape) < 0.7
  value, bars = consistency(Options(decay="log"), a, b, scale, where)

  @jax.jit
  def readable(a, b, s):
    each = ranking.consistency(s * a, s * b, decay="log", where=jnp.array(where))
    return jnp.arange(1.0, ROWS + 1) @ each, each

  expected_bars, expected = jax.grad(readable, argnums=(0, 1, 2), has_aux=True)(
    a, b, scale
  )
  assert_close(value, expected)
  for bar, expected_bar in zip(bars, expected_bars, strict=True):
    assert_close(bar, expected_bar, rtol=2e-5)


# Limits.


def test_scales_that_leave_float32_are_refused():
  listwise.check_scale(math.log(listwise.MAX_RANGE / 2))
  listwise.check_scale(4.6052)  # the released clamp
  with pytest.raises(ValueError, match=r"must stay below \d\.\d\d .*, got 5\.40"):
    listwise.check_scale(5.4)


@pytest.mark.parametrize("backend", ["packed", "native"])
def test_the_largest_range_of_the_longest_list_is_finite(backend):
  """All scores but one at the top, the worst there is for a sum of exponentials."""
  half = listwise.MAX_RANGE / 2
  scores = np.full((1, 2**16), half, np.float32)
  scores[0, -1] = -half
  reference = -scores  # the lowest comes first
  nll, gradient = nll_and_gradient(Options(backend=backend), scores, reference)
  expected = listwise.MAX_RANGE + math.lgamma(2**16)
  np.testing.assert_allclose(nll, expected + math.log(2**16 - 1), rtol=1e-5)
  assert np.isfinite(gradient).all()


@pytest.mark.parametrize("length", [2**16, 2**20])
@pytest.mark.parametrize("decay", ["none", "log"])
@pytest.mark.parametrize("kind", ["top", "half"])
def test_the_largest_range_of_long_lists_is_right(length, decay, kind):
  """Nearly all at the top: the largest sums, and weights whose reciprocals are small."""
  half = listwise.MAX_RANGE / 2
  scores = np.full((1, length), half, np.float32)
  scores[0, slice(-1, None) if kind == "top" else slice(0, None, 2)] = -half
  reference = -np.arange(length, dtype=np.float32)[None]
  expected = oracle.nll_and_gradient_of_long(scores[0], reference[0], decay=decay)
  nll, gradient = nll_and_gradient(
    Options(decay=decay, backend="exact"), scores, reference
  )
  # Without optimisations, see conftest, a sum's float32 terms are added one by one.
  np.testing.assert_allclose(nll[0], expected[0], rtol=5e-5)
  off = np.linalg.norm(gradient[0] - expected[1])
  assert off < 1e-6 * np.linalg.norm(expected[1])


def test_native_takes_lists_of_any_length_whatever_the_form():
  """The forms that the kernel leaves to XLA need an order with room for the index."""
  lists = jax.ShapeDtypeStruct((2, 2**16 + 1), jnp.float32)
  for options in (Options(), Options(top_k=3), Options(eps=EPS)):
    run = functools.partial(listwise.nll_and_gradient, options._replace(backend="native"))
    nll, _ = jax.eval_shape(run, lists, lists)
    assert nll.shape == (2,)
