"""The Plackett-Luce likelihood and the consistency of rankings against their formulas."""

import cmath
import functools
import itertools
import math
from math import exp, log

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rax
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rankclip_jax.losses import ranking

LENGTH = 6
EPS = 1e-10  # the released code's
OPTIONS = ("decay", "top_k", "eps")


def loop_nll(scores, reference, *, mu=None, eps=None):
  """Plain sum over positions of one list; complex scores carry a derivative along."""
  order = sorted(range(len(scores)), key=lambda i: -reference[i])  # ties by index
  p = [complex(scores[i]) for i in order]
  shift = max(p, key=lambda x: x.real)
  p = [x - shift for x in p]
  total = 0
  for k in range(len(p)):
    rest = p[k:]
    top = 0 if eps is not None else max(rest, key=lambda x: x.real)
    mass = sum(cmath.exp(x - top) for x in rest) + (eps or 0)
    total += (1 if mu is None else mu[k]) * (top + cmath.log(mass) - p[k])
  return total


def loop_gradient(scores, *args, **kwargs):
  """By the complex step f'(x) = Im f(x + ih) / h, exact to rounding in float64."""
  h, grad = 1e-30, []
  for i in range(len(scores)):
    moved = np.asarray(scores, complex)
    moved[i] += 1j * h
    grad.append(loop_nll(moved, *args, **kwargs).imag / h)
  return np.array(grad)


def gradient_too(loss):
  """Maps (scores, reference) to every list's loss and the gradient of their sum."""

  @functools.partial(jax.jit, static_argnames=OPTIONS)
  def run(scores, reference, **options):
    value, pullback = jax.vjp(lambda s: loss(s, reference, **options), scores)
    return value, pullback(jnp.ones_like(value))[0]

  return run


value_and_grad = gradient_too(ranking.plackett_luce_nll)
rax_value_and_grad = gradient_too(functools.partial(rax.listmle_loss, reduce_fn=None))


def nll(scores, reference, **options):
  return np.asarray(value_and_grad(scores, reference, **options)[0])


consistency = jax.jit(ranking.consistency, static_argnames=OPTIONS)


def assert_close(actual, expected, rtol=1e-5):
  """To `rtol` of the largest expected magnitude."""
  expected = np.asarray(expected)
  np.testing.assert_allclose(
    actual, expected, rtol=0, atol=rtol * np.abs(expected).max(initial=1e-30)
  )


@pytest.fixture
def lists():
  """Scores and references [2, 3, 6], no ties."""
  rng = np.random.default_rng(0)
  return (
    rng.normal(scale=2.0, size=(2, 3, LENGTH)).astype(np.float32),
    rng.permuted(np.tile(np.arange(LENGTH, dtype=np.float32), (2, 3, 1)), axis=-1),
  )


# Formulas, spelled out.


SCORES = jnp.array([0.0, 3.0, 1.0, 2.0])
REFERENCE = jnp.array([0.3, -1.0, 0.9, 0.5])  # order 2, 3, 0, 1: scores 1, 2, 0, 3
STEPS = [
  log(exp(1) + exp(2) + exp(0) + exp(3)) - 1,
  log(exp(2) + exp(0) + exp(3)) - 2,
  log(exp(0) + exp(3)) - 0,
  log(exp(3)) - 3,
]


@pytest.mark.parametrize(
  "options, expected",
  [
    ({}, sum(STEPS)),
    ({"top_k": 1}, STEPS[0]),
    ({"top_k": 2}, STEPS[0] + STEPS[1]),
    ({"top_k": 9}, sum(STEPS)),
    ({"decay": "log"}, STEPS[0] / log(2) + STEPS[1] / log(3) + STEPS[2] / log(4)),
    ({"decay": "log", "top_k": 2}, STEPS[0] / log(2) + STEPS[1] / log(3)),
    (
      {"where": jnp.array([True, True, False, True])},  # scores 2, 0, 3
      sum(STEPS[1:]),
    ),
    (
      {"where": jnp.array([True, True, False, True]), "decay": "log"},
      STEPS[1] / log(2) + STEPS[2] / log(3),
    ),
  ],
)
def test_nll_spelled_out(options, expected):
  value = ranking.plackett_luce_nll(SCORES, REFERENCE, **options)
  np.testing.assert_allclose(value, expected, rtol=1e-6)


def test_nll_of_equal_scores_is_the_log_of_all_orders():
  value = ranking.plackett_luce_nll(jnp.full(4, 7.0), jnp.arange(4.0))
  np.testing.assert_allclose(value, log(math.factorial(4)), rtol=1e-6)


def test_position_weights_are_one_over_log():
  expected = [1 / log(2), 1 / log(3), 1 / log(4), 0, 0]
  mu = ranking.position_weights(5, decay="log", top_k=3)
  np.testing.assert_allclose(mu, expected, rtol=1e-6)
  np.testing.assert_array_equal(ranking.position_weights(3), [1, 1, 1])
  np.testing.assert_array_equal(ranking.position_weights(3, top_k=1), [1, 0, 0])


# Against loops and against rax.


@pytest.mark.parametrize(
  "options, mu",
  [
    ({}, [1] * LENGTH),
    ({"decay": "log"}, [1 / log(k + 1) for k in range(1, LENGTH + 1)]),
    ({"top_k": 4}, [1] * 4 + [0] * 2),
    ({"decay": "log", "top_k": 2}, [1 / log(2), 1 / log(3), 0, 0, 0, 0]),
    ({"eps": 0.1}, [1] * LENGTH),
  ],
)
def test_nll_equals_loops(lists, options, mu):
  value, grad = value_and_grad(*lists, **options)
  options = {"mu": mu, "eps": options.get("eps")}
  for index in np.ndindex(2, 3):
    scores, reference = lists[0][index], lists[1][index]
    assert_close(value[index], loop_nll(scores, reference, **options).real)
    assert_close(grad[index], loop_gradient(scores, reference, **options))


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_nll_equals_rax(lists, ties, padded):
  """rax too puts padding last, and without a key breaks ties by index."""
  scores, reference = lists
  reference = reference // 3 if ties else reference
  where = np.random.default_rng(1).random(scores.shape) < 0.7 if padded else None
  value, grad = value_and_grad(scores, reference, where=where)
  expected, expected_grad = rax_value_and_grad(scores, reference, where=where)
  assert_close(value, expected)
  assert_close(grad, expected_grad)


def in_modal_lists(scale, rows=4, length=48, dim=32):
  """s V V^T and s T T^T: each row holds its item itself, at cosine 1."""
  rng = np.random.default_rng(2)
  common = rng.normal(size=(length, dim))
  lists = []
  for _ in range(2):
    x = common + 0.7 * rng.normal(size=(length, dim))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    lists.append((scale * x[:rows] @ x.T).astype(np.float32))
  return lists


def test_scale_100_equals_float64():
  scores, reference = in_modal_lists(100.0)
  value, grad = value_and_grad(scores, reference)
  for k in range(len(scores)):
    assert_close(value[k], loop_nll(scores[k], reference[k]).real)
    assert_close(grad[k], loop_gradient(scores[k], reference[k]))


def test_eps_form_is_sound_only_within_a_spread_of_scores():
  """A position is off by log(1 + eps / mass), and mass >= exp(-spread).

  So 1e-5 a position needs a spread of at most log(1e5) = 11.5; the spread of an
  in-modal list is s (1 - smallest cosine), up to 2 s.
  """
  scores, reference = in_modal_lists(1.0)
  scores -= scores.max(-1, keepdims=True)
  for spread, off in [(11.5, False), (30.0, True)]:
    stretched = spread * scores / -scores.min(-1, keepdims=True)
    exact, _ = value_and_grad(stretched, reference)
    value, _ = value_and_grad(stretched, reference, eps=EPS)
    # The worst position has a hundredth of the allowed 1e-5 on average; rounding, too.
    error = np.abs(value - exact) / scores.shape[-1]
    assert (error.max() > 1e-2) if off else (error.max() < 1e-5)


def test_eps_form_reproduces_its_own_float64_where_it_is_wrong():
  scores, reference = in_modal_lists(100.0)
  value, grad = value_and_grad(scores, reference, eps=EPS)
  exact = loop_nll(scores[0], reference[0]).real
  assert value[0] > 1.5 * exact
  assert_close(value[0], loop_nll(scores[0], reference[0], eps=EPS).real)
  assert_close(grad[0], loop_gradient(scores[0], reference[0], eps=EPS))


def test_eps_form_loses_99_of_100_in_modal_positions():
  """paper.md's number, for random embeddings of 512 dimensions at scale 50."""
  rng = np.random.default_rng(3)
  x, y = rng.normal(size=(2, 256, 512))
  x, y = (e / np.linalg.norm(e, axis=1, keepdims=True) for e in (x, y))
  scores, reference = 50.0 * x @ x.T, 50.0 * y @ y.T
  order = np.argsort(-reference, axis=-1)
  p = np.take_along_axis(scores - scores.max(-1, keepdims=True), order, axis=-1)
  mass = np.cumsum(np.exp(p)[:, ::-1], axis=-1)[:, ::-1]
  assert (mass < EPS).mean() > 0.99


# Options.


@pytest.mark.parametrize("padding", [0.0, 1e30, np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("options", [{}, {"decay": "log", "top_k": 4}])
def test_padding_changes_nothing_whatever_it_holds(lists, padding, options):
  scores, reference = lists
  longer = lambda x: np.concatenate([np.full((2, 3, 2), padding, np.float32), x], axis=-1)
  where = np.broadcast_to(np.arange(LENGTH + 2) >= 2, (2, 3, LENGTH + 2))
  value, grad = value_and_grad(scores, reference, **options)
  padded, padded_grad = value_and_grad(
    longer(scores), longer(reference), where=where, **options
  )
  assert_close(padded, value)
  assert_close(padded_grad[..., 2:], grad)
  np.testing.assert_array_equal(padded_grad[..., :2], 0.0)


def test_a_list_of_only_padding_is_worth_nothing(lists):
  where = np.zeros(lists[0].shape, bool)
  value, grad = value_and_grad(*lists, where=where)
  np.testing.assert_array_equal(value, 0.0)
  np.testing.assert_array_equal(grad, 0.0)
  np.testing.assert_array_equal(consistency(*lists, where=where), 0.0)


def test_ties_without_a_key_go_by_index():
  """40 items: short lists come out of an unstable sort in order, too."""
  scores = np.random.default_rng(5).normal(size=40).astype(np.float32)
  reference = np.arange(40) % 3.0
  value = nll(scores, reference)
  by_index = reference - np.arange(40) / 100
  assert_close(value, nll(scores, by_index))
  assert_close(value, loop_nll(scores, reference).real)


def test_tie_key_draws_every_order_and_nothing_else():
  scores = jnp.array([0.0, 1.0, 3.0])
  keys = jax.random.split(jax.random.key(0), 600)
  drawn, _ = jax.vmap(lambda key: value_and_grad(scores, jnp.zeros(3), tie_key=key))(keys)
  every = [
    loop_nll(scores, reference).real for reference in itertools.permutations(range(3))
  ]
  assert set(np.round(np.asarray(drawn), 4)) == set(
    np.round(np.asarray(every, np.float32), 4)
  )
  # One standard error of the mean is 0.05: uniform draws, not merely all of them.
  np.testing.assert_allclose(drawn.mean(), np.mean(every), atol=0.15)
  assert min(every) < drawn.mean() < max(every)


def test_tie_key_is_reproducible_and_shared_by_lists():
  scores = jnp.broadcast_to(jnp.array([0.0, 1.0, 3.0, 7.0, 2.0]), (4, 5))
  first, again, other = (
    nll(scores, jnp.zeros((4, 5)), tie_key=jax.random.key(seed)) for seed in (0, 0, 1)
  )
  np.testing.assert_array_equal(first, again)
  np.testing.assert_array_equal(first, first[0])
  assert not np.allclose(first, other)


def test_tie_key_orders_only_ties(lists):
  keyed = nll(*lists, tie_key=jax.random.key(0))
  assert_close(keyed, nll(*lists))


def test_tie_key_moves_the_mask_with_its_items(lists):
  where = np.random.default_rng(4).random(lists[0].shape) < 0.6
  keyed = nll(*lists, where=where, tie_key=jax.random.key(0))
  assert_close(keyed, nll(*lists, where=where))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_arithmetic_is_float32(lists, dtype):
  scores, reference = (jnp.asarray(x, dtype) for x in lists)
  value, grad = value_and_grad(scores, reference)
  assert value.dtype == jnp.float32
  assert grad.dtype == scores.dtype
  same = [x.astype(jnp.float32) for x in (scores, reference)]
  np.testing.assert_array_equal(value, value_and_grad(*same)[0])


# Consistency.


def loop_consistency(a, b, *, mu, positions):
  return (loop_nll(a, b, mu=mu).real + loop_nll(b, a, mu=mu).real) / 2 / positions


@pytest.mark.parametrize(
  "options, mu, positions",
  [
    ({}, [1] * LENGTH, LENGTH),
    ({"top_k": 4}, [1] * 4 + [0] * 2, 4),
    ({"top_k": 99}, [1] * LENGTH, LENGTH),
    ({"decay": "log"}, [1 / log(k + 1) for k in range(1, LENGTH + 1)], LENGTH),
  ],
)
def test_consistency_equals_loops(lists, options, mu, positions):
  a, b = lists
  value = consistency(a, b, **options)
  for index in np.ndindex(2, 3):
    expected = loop_consistency(a[index], b[index], mu=mu, positions=positions)
    assert_close(value[index], expected)
  np.testing.assert_allclose(consistency(b, a, **options), value, rtol=1e-6)


@pytest.mark.parametrize("top_k", [None, 3, 5])
def test_consistency_averages_over_the_items_that_exist(lists, top_k):
  a, b = (x[0] for x in lists)
  existing = [6, 4, 2]
  where = np.arange(LENGTH) < np.array(existing)[:, None]
  value = consistency(a, b, where=where, top_k=top_k)
  for row, count in enumerate(existing):
    positions = min(count, top_k or count)
    expected = loop_consistency(
      a[row, :count],
      b[row, :count],
      mu=[1] * positions + [0] * (count - positions),
      positions=positions,
    )
    assert_close(value[row], expected)


def test_consistency_passes_its_options_on(lists):
  tied = jnp.zeros_like(lists[0])
  value = lambda **options: np.asarray(consistency(lists[0], tied, **options))
  key = jax.random.key(0)
  assert not np.allclose(value(tie_key=key), value())
  assert not np.allclose(value(eps=0.1), value())


def test_agreeing_rankings_are_the_most_consistent(lists):
  a, _ = lists
  order_alone = jnp.argsort(jnp.argsort(a, axis=-1), axis=-1).astype(jnp.float32)
  agree = consistency(a, order_alone)
  assert (agree < consistency(a, -order_alone)).all()


# Properties.


def numbers(elements):
  return hnp.arrays(np.float32, LENGTH, elements=elements)


scores_of = numbers(st.floats(-20, 20, width=32))
ranks_of = numbers(st.integers(-50, 50).map(float))
distinct_ranks = st.permutations(range(LENGTH)).map(lambda r: np.array(r, np.float32))
mu_of = st.sampled_from([("none", None), ("log", None), ("none", 2), ("log", 3)])
some = hypothesis.settings(max_examples=40, deadline=None)


@functools.cache
def _compiled(decay, top_k):
  loss = functools.partial(ranking.plackett_luce_nll, decay=decay, top_k=top_k)
  return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))


def nll_of(scores, reference, mu=("none", None)):
  return float(_compiled(*mu)(scores, np.float32(reference))[0])


def gradients_of(scores, reference, mu=("none", None)):
  return _compiled(*mu)(scores, np.float32(reference))[1]


@hypothesis.given(scores_of, ranks_of, mu_of, st.floats(-100, 100, width=32))
@some
def test_a_shift_of_the_scores_does_not_matter(scores, reference, mu, shift):
  shifted = nll_of(scores + shift, reference, mu)
  assert shifted == pytest.approx(nll_of(scores, reference, mu), rel=1e-5, abs=1e-3)


@hypothesis.given(
  scores_of,
  ranks_of,
  mu_of,
  st.sampled_from([lambda r: r**3, lambda r: 2 * r - 7, lambda r: np.exp(r / 9)]),
)
@some
def test_only_the_order_of_the_reference_matters(scores, reference, mu, monotone):
  assert nll_of(scores, monotone(reference), mu) == nll_of(scores, reference, mu)


@hypothesis.given(scores_of, ranks_of, mu_of)
@some
def test_nll_is_not_negative(scores, reference, mu):
  assert nll_of(scores, reference, mu) >= 0


@hypothesis.given(scores_of, ranks_of, mu_of)
@some
def test_gradient_sums_to_zero_and_spares_the_reference(scores, reference, mu):
  by_scores, by_reference = gradients_of(scores, reference, mu)
  np.testing.assert_allclose(np.sum(by_scores), 0.0, atol=1e-4)
  np.testing.assert_array_equal(by_reference, 0.0)


@hypothesis.given(scores_of, distinct_ranks, mu_of)
@some
def test_the_order_of_the_scores_is_the_likeliest(scores, reference, mu):
  """Any non-increasing mu: each top-k likelihood peaks at the order of the scores."""
  best = nll_of(scores, scores, mu)
  assert best <= nll_of(scores, reference, mu) * (1 + 1e-5) + 1e-4
  assert best <= nll_of(scores, -scores, mu) * (1 + 1e-5) + 1e-4


@hypothesis.given(scores_of, distinct_ranks, st.permutations(range(LENGTH)), mu_of)
@some
def test_the_order_of_the_items_does_not_matter(scores, reference, moved, mu):
  moved = np.array(moved)
  value = nll_of(scores[moved], reference[moved], mu)
  assert value == pytest.approx(nll_of(scores, reference, mu), rel=1e-5, abs=1e-4)


@hypothesis.given(scores_of, distinct_ranks)
@some
def test_the_first_position_is_info_nce_of_the_best_item(scores, reference):
  exact = scores.astype(float)
  expected = np.log(np.exp(exact).sum()) - exact[reference.argmax()]
  value = nll_of(scores, reference, ("none", 1))
  assert value == pytest.approx(expected, rel=1e-5, abs=1e-5)


# Errors.


def test_shapes_must_agree():
  with pytest.raises(ValueError, match=r"one shape, got \(2, 3\) and \(2, 4\)"):
    ranking.plackett_luce_nll(jnp.zeros((2, 3)), jnp.zeros((2, 4)))


def test_decay_must_be_known():
  with pytest.raises(ValueError, match='must be "none" or "log", got \'linear\''):
    ranking.position_weights(3, decay="linear")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("call", [ranking.plackett_luce_nll, ranking.consistency])
@pytest.mark.parametrize("top_k", [0, -1])
def test_top_k_must_be_positive(call, top_k):
  with pytest.raises(ValueError, match=f"at least 1, got {top_k}; use None for whole"):
    call(SCORES, REFERENCE, top_k=top_k)
