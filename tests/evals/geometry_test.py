"""Geometry of the embeddings: closed forms, plain loops, and orders known by design."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankclip_jax.evals import geometry


def on_circle(degrees):
  angles = np.radians(degrees)
  return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def random_rows(rng, rows, dim=16):
  values = rng.standard_normal((rows, dim))
  return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def tau_b(a, b):
  """Kendall's tau-b by its definition; None when a list has no order."""
  concordance = pairs_a = pairs_b = 0
  for i, j in itertools.combinations(range(len(a)), 2):
    sign_a, sign_b = np.sign(a[i] - a[j]), np.sign(b[i] - b[j])
    concordance += sign_a * sign_b
    pairs_a += abs(sign_a)
    pairs_b += abs(sign_b)
  return concordance / math.sqrt(pairs_a * pairs_b) if pairs_a and pairs_b else None


def overlap(a, b):
  k = min(10, len(a) - 1)
  first = [set(sorted(range(len(x)), key=lambda i, x=x: -x[i])[:k]) for x in (a, b)]
  return len(first[0] & first[1]) / k


def consistency_by_loops(image, text):
  image, text = image.astype(np.float64), text.astype(np.float64)
  rows = {"cross_modal": [], "in_modal": []}
  for i in range(len(image)):
    others = np.arange(len(image)) != i
    rows["cross_modal"].append((text @ image[i], image @ text[i]))
    rows["in_modal"].append(((image @ image[i])[others], (text @ text[i])[others]))
  expected = {}
  for name, pairs in rows.items():
    defined = [(a, b) for a, b in pairs if tau_b(a, b) is not None]
    for metric, of in (("kendall_tau", tau_b), ("top10_overlap", overlap)):
      values = [of(a, b) for a, b in defined]
      mean = sum(values) / len(values) if values else None
      expected[f"rank_consistency_{name}_{metric}"] = mean
  return {**expected, "rank_consistency_anchors": len(image)}


def test_gap_and_alignment_of_known_points():
  image, text = on_circle([0, 0, 180]), on_circle([90, 0, 90])
  # Centroids: (1/3, 0) and (1/3, 2/3). Squared distances: 2, 0, 2.
  assert geometry.modality_gap(image, text) == pytest.approx(2 / 3)
  assert geometry.alignment(image, text) == pytest.approx(4 / 3)


def test_opposite_modalities_have_the_largest_gap_and_the_worst_alignment():
  image = on_circle([30, 30])
  assert geometry.modality_gap(image, -image) == pytest.approx(2)
  assert geometry.alignment(image, -image) == pytest.approx(4)


def test_uniformity_of_known_points():
  square = on_circle([0, 90, 180, 270])
  # From each corner two corners are at squared distance 2, and one at 4.
  expected = math.log((2 * math.exp(-4) + math.exp(-8)) / 3)
  assert geometry.uniformity(square, square) == pytest.approx(expected, rel=1e-5)
  same = on_circle([45, 45, 45])
  assert geometry.uniformity(same, same) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("block_bytes", [1, 100, 2**22])
def test_uniformity_leaves_out_matched_pairs(block_bytes, monkeypatch):
  monkeypatch.setattr(geometry, "_BLOCK_BYTES", block_bytes)
  rng = np.random.default_rng(0)
  image, text = random_rows(rng, 9), random_rows(rng, 9)
  potentials = [
    math.exp(-2 * float(np.sum((image[i] - text[j]) ** 2)))
    for i, j in itertools.permutations(range(9), 2)
  ]
  expected = math.log(sum(potentials) / len(potentials))
  assert geometry.uniformity(image, text) == pytest.approx(expected, rel=1e-5)


def test_evaluate_names_both_conventions_of_uniformity():
  rng = np.random.default_rng(1)
  image, text = random_rows(rng, 6), random_rows(rng, 6)
  metrics = geometry.evaluate(image, text)
  assert list(metrics) == [
    "modality_gap",
    "alignment",
    "uniformity_cross_modal",
    "uniformity_image",
    "uniformity_text",
    "rank_consistency_cross_modal_kendall_tau",
    "rank_consistency_cross_modal_top10_overlap",
    "rank_consistency_in_modal_kendall_tau",
    "rank_consistency_in_modal_top10_overlap",
    "rank_consistency_anchors",
  ]
  assert metrics["uniformity_cross_modal"] == geometry.uniformity(image, text)
  assert metrics["uniformity_image"] == geometry.uniformity(image, image)
  assert metrics["uniformity_text"] == geometry.uniformity(text, text)


@settings(deadline=None, max_examples=30)
@given(
  pairs=st.integers(1, 14),
  dim=st.sampled_from([4, 1024]),  # many ties, few ties
  seed=st.integers(0, 2**32 - 1),
)
def test_rank_consistency_against_plain_loops(pairs, dim, seed):
  rng = np.random.default_rng(seed)
  # Entries of one size have exact dot products, so both sides see the same ties.
  signs = rng.choice([-1, 1], size=(2, pairs, dim))
  image, text = (signs / math.sqrt(dim)).astype(np.float32)
  expected = consistency_by_loops(image, text)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(geometry, "_BLOCK_BYTES", 4 * pairs * 3)  # three anchors at a time
    metrics = geometry.rank_consistency(image, text)
  assert metrics == pytest.approx(expected, abs=1e-9)


def test_equal_modalities_agree_fully():
  image = random_rows(np.random.default_rng(2), 40)
  metrics = geometry.rank_consistency(image, image)
  assert metrics.pop("rank_consistency_anchors") == 40
  assert list(metrics.values()) == pytest.approx([1, 1, 1, 1])


def test_a_quarter_turn_reverses_cross_modal_order_and_keeps_in_modal_order():
  """v_i . t_j = sin(a_i - a_j): what i sees descending, the others see ascending."""
  angles = np.cumsum(np.random.default_rng(3).uniform(1, 3, 24))
  assert np.ptp(angles) < 80
  metrics = geometry.rank_consistency(on_circle(angles), on_circle(angles + 90))
  assert metrics["rank_consistency_cross_modal_kendall_tau"] == pytest.approx(-1)
  assert metrics["rank_consistency_cross_modal_top10_overlap"] == 0
  assert metrics["rank_consistency_in_modal_kendall_tau"] == pytest.approx(1)
  assert metrics["rank_consistency_in_modal_top10_overlap"] == 1


def test_reversed_in_modal_order():
  # Distances of images: 01 < 12 < 02; of texts: 02 < 12 < 01.
  metrics = geometry.rank_consistency(on_circle([0, 10, 30]), on_circle([0, 30, 10]))
  assert metrics["rank_consistency_in_modal_kendall_tau"] == pytest.approx(-1)
  assert metrics["rank_consistency_in_modal_top10_overlap"] == 0


def test_unrelated_modalities_agree_by_chance():
  rng = np.random.default_rng(4)
  metrics = geometry.rank_consistency(
    random_rows(rng, 200, 64), random_rows(rng, 200, 64)
  )
  for name in ("cross_modal", "in_modal"):
    assert metrics[f"rank_consistency_{name}_kendall_tau"] == pytest.approx(0, abs=0.02)
    chance = 10 / 200
    assert metrics[f"rank_consistency_{name}_top10_overlap"] == pytest.approx(
      chance, abs=0.03
    )


def test_anchors_are_evenly_spaced_and_rank_every_example():
  rng = np.random.default_rng(5)
  image, text = random_rows(rng, 31), random_rows(rng, 31)
  metrics = geometry.rank_consistency(image, text, max_anchors=4)
  assert metrics["rank_consistency_anchors"] == 4
  taus = [tau_b(text @ image[i], image @ text[i]) for i in (0, 10, 20, 30)]
  assert metrics["rank_consistency_cross_modal_kendall_tau"] == pytest.approx(
    sum(taus) / 4
  )


UNDEFINED_FOR_ONE = {
  "uniformity_cross_modal",
  "uniformity_image",
  "uniformity_text",
  "rank_consistency_cross_modal_kendall_tau",
  "rank_consistency_cross_modal_top10_overlap",
  "rank_consistency_in_modal_kendall_tau",
  "rank_consistency_in_modal_top10_overlap",
}


@pytest.mark.parametrize(
  "pairs, undefined",
  [
    (1, UNDEFINED_FOR_ONE),
    (2, {name for name in UNDEFINED_FOR_ONE if "_in_modal_" in name}),
    (3, set()),
  ],
)
def test_undefined_metrics_are_none(pairs, undefined):
  rng = np.random.default_rng(6)
  metrics = geometry.evaluate(random_rows(rng, pairs), random_rows(rng, pairs))
  assert {name for name, value in metrics.items() if value is None} == undefined


def test_collapsed_embeddings_have_no_order_to_agree_on():
  same = np.repeat(np.eye(2, dtype=np.float32)[:1], 30, axis=0)
  metrics = geometry.evaluate(same, same)
  consistency = {k: v for k, v in metrics.items() if "modal_" in k and "rank" in k}
  assert set(consistency.values()) == {None}
  assert len(consistency) == 4


def test_refuses_unmatched_numbers():
  with pytest.raises(ValueError, match="got 2 images and 3 texts"):
    geometry.evaluate(on_circle([0, 1]), on_circle([0, 1, 2]))


def test_unit_rows_checks_without_rescaling():
  almost = 1.0005 * np.eye(2)
  (rows,) = geometry.unit_rows(almost=almost)
  np.testing.assert_array_equal(rows, almost.astype(np.float32))
  with pytest.raises(ValueError, match=r"much: .*row 1 with norm 1.01: divide"):
    geometry.unit_rows(much=np.diag([1, 1.01]))
