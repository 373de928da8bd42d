"""Orders and projections, against plain loops."""

import hashlib

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rankclip_jax.report import ranking

# Few different values: most lists have ties.
_SCORES = st.lists(st.sampled_from([-1.0, 0.0, 0.5, 1.0]), min_size=1, max_size=12)


@given(_SCORES)
def test_top_puts_the_lower_index_first_among_equals(scores):
  expected = sorted(range(len(scores)), key=lambda index: (-scores[index], index))
  assert ranking.top(np.array(scores), 20).tolist() == expected
  assert ranking.top(np.array(scores), 2).tolist() == expected[:2]


@given(_SCORES)
def test_rank_is_the_place_in_the_order(scores):
  order = ranking.top(np.array(scores), len(scores))
  ranks = [ranking.rank(np.array(scores), int(target)) for target in order]
  assert ranks == list(range(1, len(scores) + 1))


def test_neighbours_leave_the_item_itself_out(monkeypatch):
  rng = np.random.default_rng(0)
  items = rng.normal(size=(11, 4))
  items /= np.linalg.norm(items, axis=1, keepdims=True)
  items[5] = items[3]  # an equal item is a neighbour; the item itself is not
  rows = np.array([3, 0, 5, 10, 7])
  monkeypatch.setattr(ranking, "_BLOCK", 2)
  found = ranking.neighbours(items, rows, 4)
  for row, nearest in zip(rows, found, strict=True):
    others = [other for other in range(11) if other != row]
    expected = sorted(others, key=lambda other: -float(items[row] @ items[other]))
    assert nearest.tolist() == expected[:4]
  assert found[0][0] == 5
  assert found[2][0] == 3
  assert ranking.neighbours(items, rows, 99).shape == (5, 10)


def test_overlap_counts_shared_items_whatever_their_order():
  first = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]])
  second = np.array([[3, 1, 2], [6, 0, 4], [0, 1, 2]])
  assert ranking.overlap(first, second).tolist() == [3, 2, 0]


def test_plane_of_points_with_known_axes():
  # Variance 9 : 4 : 1 along three orthogonal axes, turned in space.
  corners = np.array([[x, y, z] for x in (-3, 3) for y in (-2, 2) for z in (-1, 1)])
  turn, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))
  points, explained = ranking.principal_plane(corners @ turn.T + 10)
  np.testing.assert_allclose(explained, [9 / 14, 4 / 14])
  np.testing.assert_allclose(np.abs(points), np.abs(corners[:, :2]), atol=1e-9)
  # The sign is fixed: the axis has its largest loading positive.
  loading = turn[:, 0] * np.sign(points[0, 0] * corners[0, 0])
  assert loading[np.abs(loading).argmax()] > 0


def test_plane_of_degenerate_points():
  points, explained = ranking.principal_plane(np.array([[1.0], [3.0]]))
  np.testing.assert_allclose(np.abs(points), [[1, 0], [1, 0]])
  np.testing.assert_allclose(explained, [1, 0])
  points, explained = ranking.principal_plane(np.ones((4, 3)))
  assert not points.any()
  assert not explained.any()


def test_choice_depends_on_the_keys_alone():
  keys = [f"1F6{number:02X}" for number in range(40)]

  def digest(key):
    return hashlib.sha256(f"map:{key}".encode()).hexdigest()

  chosen = ranking.choose(keys, 5, "map")
  assert chosen == sorted(keys, key=digest)[:5]
  assert ranking.choose(reversed(keys), 5, "map") == chosen
  assert ranking.choose(keys, 9, "map")[:5] == chosen
  assert ranking.choose(keys, 5, "text") != chosen
