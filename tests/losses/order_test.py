"""Orders against numpy's stable argsort, and how fine each of them is."""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from rankclip_jax.losses import order

BACKENDS = tuple(order.LONGEST)
LENGTHS = (1, 7, 100)
ROWS = 3
every_backend = pytest.mark.parametrize("backend", BACKENDS)
some = hypothesis.settings(max_examples=60, deadline=None, derandomize=True)


@functools.partial(jax.jit, static_argnames=("backend", "gathers"))
def arrange(reference, scores, where=None, *, backend, gathers=True):
  return order.arrange(reference, scores, backend=backend, where=where, gathers=gathers)


def descending(reference, where=None, *, backend):
  return arrange(reference, jnp.zeros_like(reference), where, backend=backend)[0]


top = jax.jit(order.top, static_argnames="k")


def stable_argsort(reference, where=None):
  """High to low, ties by index, items not `where` last."""
  key = -reference if where is None else np.where(where, -reference, np.inf)
  return np.argsort(key, axis=-1, kind="stable")


def spread(rng, length, distinct):
  """Rows of values in [-1, 1], both ends included, on a grid of `distinct` points."""
  grid = np.linspace(-1.0, 1.0, max(distinct, 2), dtype=np.float32)
  return rng.choice(grid, size=(ROWS, length))


@hypothesis.given(
  st.sampled_from(BACKENDS),
  st.sampled_from(LENGTHS),
  st.sampled_from([1.0, 0.3, 14.3, 100.0]),
  st.sampled_from([2, 5, 1000]),
  st.floats(0.0, 1.0),
  st.integers(0, 2**32 - 1),
)
@some
def test_order_is_numpys_with_ties_by_index(backend, length, scale, grid, share, seed):
  rng = np.random.default_rng(seed)
  reference = np.float32(scale) * spread(rng, length, grid)
  where = rng.random(reference.shape) <= share
  index = np.asarray(descending(reference, where, backend=backend))
  exist = stable_argsort(reference, where)
  for row, expected, items in zip(index, exist, where.sum(1), strict=True):
    np.testing.assert_array_equal(row[:items], expected[:items])
    assert sorted(row) == list(range(length))


@every_backend
@pytest.mark.parametrize("gathers", [True, False])
def test_scores_go_with_their_items_and_back(backend, gathers):
  rng = np.random.default_rng(0)
  reference, scores = spread(rng, 100, 40), rng.normal(size=(ROWS, 100))
  where = rng.random(reference.shape) <= 0.7
  scores = scores.astype(np.float32)
  index, p = arrange(reference, scores, where, backend=backend, gathers=gathers)
  assert index.dtype == jnp.int32
  for row, expected, items in zip(
    index, stable_argsort(reference, where), where.sum(1), strict=True
  ):
    np.testing.assert_array_equal(row[:items], expected[:items])
  np.testing.assert_array_equal(p, np.take_along_axis(scores, np.asarray(index), 1))
  back = order.restore(p, index, gathers=gathers)
  np.testing.assert_array_equal(back, scores)


@every_backend
def test_without_where_all_items_exist(backend):
  reference = spread(np.random.default_rng(0), 100, 40)
  index = descending(reference, backend=backend)
  assert index.dtype == jnp.int32
  np.testing.assert_array_equal(index, stable_argsort(reference))


@every_backend
@pytest.mark.parametrize("low", [-1.0, -0.75, -1e-3, 0.0])
def test_missing_items_come_after_the_lowest_that_exists(backend, low):
  reference = np.array([[1.0, low, 1.0, 0.5, -1.0]], np.float32)
  where = np.array([[False, True, False, True, False]])
  index = descending(reference, where, backend=backend)
  assert index[0, :2].tolist() == [3, 1]


@every_backend
def test_negative_zero_and_zero_are_tied(backend):
  reference = np.array([[-0.0, 0.0, -0.0, 0.5, 0.0]], np.float32)
  assert descending(reference, backend=backend)[0].tolist() == [3, 0, 1, 2, 4]


def pairs(rng, length, gap):
  """Rows from -1 to 1 whose item 1 is above item 0 by `gap` or hardly more."""
  reference = rng.uniform(-1.0, 1.0, (64, length)).astype(np.float32)
  reference[:, 2:4] = -1.0, 1.0
  low = rng.uniform(-1.0, 1.0 - 2.0 * gap, 64).astype(np.float32)
  high = (low + gap).astype(np.float32)
  high = np.where(high - low.astype(float) < gap, np.nextafter(high, np.float32(2)), high)
  reference[:, :2] = np.stack([low, high], 1)
  return reference


def second_comes_first(reference, backend):
  index = np.asarray(descending(reference, backend=backend))
  place = np.argsort(index, axis=-1)
  return place[:, 1] < place[:, 0]


@pytest.mark.parametrize(
  "backend, length, bits", [("packed", 7, 23), ("packed", 2048, 20), ("short", 7, 15)]
)
def test_resolution_is_the_width_of_a_tie(backend, length, bits):
  width = 2.0 * order.resolution(backend, length)  # of [-1, 1]
  assert width == pytest.approx(2.0**-bits, rel=1e-3)
  rng = np.random.default_rng(0)
  assert second_comes_first(pairs(rng, length, 2.0 * width), backend).all()
  close = second_comes_first(pairs(rng, length, 0.49 * width), backend)
  assert 0.1 < close.mean() < 0.9


def test_resolution_of_the_longest_list():
  assert 2.0 * order.resolution("packed", 2**16) == pytest.approx(2.0**-15, rel=1e-3)


@pytest.mark.parametrize("scale, shift", [(64.0, 0.0), (0.01, 0.9), (1e-3, -0.05)])
def test_resolution_is_a_fraction_of_the_range_of_the_list(scale, shift):
  rng = np.random.default_rng(1)
  move = lambda x: np.float32(scale) * x + np.float32(shift)
  width = 2.0 * order.resolution("short", 7)
  assert second_comes_first(move(pairs(rng, 7, 2.5 * width)), "short").all()
  assert not second_comes_first(move(pairs(rng, 7, 0.4 * width)), "short").all()


@every_backend
@pytest.mark.parametrize("value", [0.0, -1.0, 1e-38, 3e38])
def test_lists_without_a_range_are_one_tie(backend, value):
  reference = np.full((2, 9), value, np.float32)
  np.testing.assert_array_equal(descending(reference, backend=backend)[0], range(9))


@pytest.mark.parametrize("backend", ["payload", "exact"])
def test_neighbouring_floats_are_no_tie(backend):
  assert order.resolution(backend, 2048) == 0.0
  low = np.random.default_rng(0).uniform(-1.0, 1.0, (64, 7)).astype(np.float32)
  low[:5, 0] = [-1.0, 0.0, 1e-30, -1e-30, 0.5]
  low[:, 1] = np.nextafter(low[:, 0], np.float32(2))
  low[1, 1] = np.finfo(np.float32).tiny  # denormals may count as zero
  assert second_comes_first(low, backend).all()


@pytest.mark.parametrize("backend", ["packed", "payload", "short"])
def test_lists_longer_than_the_index_are_refused(backend):
  order.check(backend, 2**16)
  order.check("exact", 2**16 + 1)
  with pytest.raises(
    ValueError, match=rf"{backend!r} has .* of 65536, got .* of 65537; use order='exact'"
  ):
    order.check(backend, 2**16 + 1)


def test_unknown_orders_are_refused():
  with pytest.raises(ValueError, match="Unknown order 'quick'; there are packed, "):
    order.check("quick", 8)  # pyright: ignore[reportArgumentType]


def test_the_longest_packed_list():
  """On a grid twice as coarse as its resolution, with many ties."""
  grid = np.linspace(-1.0, 1.0, 2**15, dtype=np.float32)
  reference = np.random.default_rng(0).choice(grid, size=(2, 2**16))
  index = descending(reference, backend="packed")
  np.testing.assert_array_equal(index, stable_argsort(reference))


@hypothesis.given(
  st.sampled_from([(7, 1), (7, 3), (7, 7), (100, 3)]),
  st.sampled_from([1, 4, 1000]),
  st.floats(0.0, 1.0),
  st.integers(0, 2**32 - 1),
)
@some
def test_top_is_the_head_of_the_order_and_the_rest_remains(shape, grid, share, seed):
  length, k = shape
  rng = np.random.default_rng(seed)
  reference = spread(rng, length, grid)
  where = rng.random(reference.shape) <= share
  index, remains = top(reference, k, where=where)
  expected = stable_argsort(reference, where)
  for i in range(ROWS):
    items = min(k, where[i].sum())
    np.testing.assert_array_equal(index[i, :items], expected[i, :items])
    rest = np.zeros(length, bool)
    rest[expected[i, k : where[i].sum()]] = True
    np.testing.assert_array_equal(remains[i], rest)


def test_top_without_where_and_signed_zeros():
  reference = np.array([[0.0, -0.0, 0.0, -1.0]], np.float32)
  index, remains = top(-reference, 3)
  assert index.tolist() == [[3, 0, 1]]
  assert remains.tolist() == [[False, False, True, False]]
