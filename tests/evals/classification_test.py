"""Classification metrics against scikit-learn and CLIP_benchmark, live, and by hand."""

import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import calibration, metrics

from rankclip_jax.evals import classification, zero_shot


def scored(examples, classes, seed=0):
  """Distinct scores that point to the label more often than not."""
  rng = np.random.default_rng(seed)
  labels = rng.integers(0, classes, examples)
  scores = rng.standard_normal((examples, classes))
  scores[np.arange(examples), labels] += 1.0
  return scores, labels


def test_outcomes_by_hand():
  scores = np.log([[0.7, 0.2, 0.1], [0.25, 0.25, 0.5], [0.4, 0.4, 0.2]])
  found = classification.outcomes(scores, [0, 1, 1])
  assert found.labels.tolist() == [0, 1, 1]
  # Equal scores stand in order of index: in row 1 class 0 is before class 1.
  assert found.ranks.tolist() == [1, 3, 2]
  assert found.predictions.tolist() == [0, 2, 0]
  np.testing.assert_allclose(found.confidences, [0.7, 0.5, 0.4])
  assert found.classes == 3
  squared = classification.outcomes(scores, [0, 1, 1], scale=2.0)
  np.testing.assert_allclose(squared.confidences[0], 0.49 / (0.49 + 0.04 + 0.01))
  assert squared.ranks.tolist() == [1, 3, 2]


def test_confidences_do_not_overflow():
  found = classification.outcomes(np.array([[1e4, -1e4], [-1e30, 0.0]]), [0, 0], scale=99)
  assert found.confidences.tolist() == [1, 1]
  assert found.ranks.tolist() == [1, 2]


@settings(deadline=None, max_examples=30)
@given(
  examples=st.integers(1, 60), classes=st.integers(6, 12), seed=st.integers(0, 2**31)
)
def test_accuracies_are_scikit_learns(examples, classes, seed):
  scores, labels = scored(examples, classes, seed)
  found = classification.evaluate(classification.outcomes(scores, labels))
  for k in (1, 3, 5):
    expected = metrics.top_k_accuracy_score(labels, scores, k=k, labels=range(classes))
    assert found[f"acc{k}"] == pytest.approx(expected)
  predictions = scores.argmax(axis=1)
  # balanced_accuracy_score warns of predictions of classes that are not there.
  recall = metrics.recall_score(
    labels, predictions, labels=np.unique(labels), average="macro", zero_division=0
  )
  assert found["mean_per_class_recall"] == pytest.approx(recall)


@settings(deadline=None, max_examples=30)
@given(
  examples=st.integers(1, 200), classes=st.integers(2, 6), seed=st.integers(0, 2**31)
)
def test_confusions_are_scikit_learns(examples, classes, seed):
  scores, labels = scored(examples, classes, seed)
  found = classification.confusions(classification.outcomes(scores, labels), top=None)
  matrix = metrics.confusion_matrix(labels, scores.argmax(axis=1), labels=range(classes))
  totals = matrix.sum(axis=1)
  np.fill_diagonal(matrix, 0)
  assert {(c.label, c.prediction): c.count for c in found} == {
    (i, j): matrix[i, j] for i, j in zip(*matrix.nonzero(), strict=True)
  }
  assert found == sorted(found, key=lambda c: (-c.count, c.label, c.prediction))
  for c in found:
    assert c.fraction == pytest.approx(c.count / totals[c.label])


def test_the_most_confused_come_first_and_by_name():
  labels = np.array([0, 0, 0, 0, 1, 1, 2, 2, 2])
  predictions = np.array([0, 2, 2, 1, 0, 1, 2, 1, 1])
  scores = np.eye(3)[predictions]
  found = classification.confusions(classification.outcomes(scores, labels), top=3)
  assert classification.named(found, ["cat", "dog", "owl"]) == [
    {"label": "cat", "prediction": "owl", "count": 2, "fraction": 0.5},
    {"label": "owl", "prediction": "dog", "count": 2, "fraction": 2 / 3},
    {"label": "cat", "prediction": "dog", "count": 1, "fraction": 0.25},
  ]
  right = classification.outcomes(np.eye(3), [0, 1, 2])
  assert classification.confusions(right) == []


@settings(deadline=None, max_examples=30)
@given(
  examples=st.integers(1, 300),
  classes=st.integers(2, 20),
  bins=st.sampled_from([1, 10, 15]),
  scale=st.sampled_from([0.1, 1.0, 5.0]),
  seed=st.integers(0, 2**31),
)
def test_calibration_error_is_that_of_scikit_learns_bins(
  examples, classes, bins, scale, seed
):
  scores, labels = scored(examples, classes, seed)
  found = classification.outcomes(scores, labels, scale=scale)
  right = found.predictions == labels
  probabilities = np.exp(scale * scores) / np.exp(scale * scores).sum(1, keepdims=True)
  confidences = probabilities.max(axis=1)
  accuracy, confidence = calibration.calibration_curve(
    right, confidences, n_bins=bins, pos_label=True
  )
  counts = np.histogram(confidences, bins, range=(0, 1))[0]
  expected = np.sum(counts[counts > 0] / examples * np.abs(accuracy - confidence))
  error = classification.calibration_error(found, bins=bins)
  assert error == pytest.approx(expected, abs=1e-9)


def test_calibration_error_by_hand():
  # Two bins of 15: (0.6, 0.667] with 1 of 2 right, and (0.933, 1] with 1 of 1.
  outcomes = classification.Outcomes(
    labels=np.array([0, 1, 1]),
    ranks=np.array([1, 2, 1]),
    predictions=np.array([0, 0, 1]),
    confidences=np.array([0.61, 0.65, 0.95]),
    classes=2,
  )
  expected = 2 / 3 * abs(0.5 - 0.63) + 1 / 3 * abs(1 - 0.95)
  assert classification.calibration_error(outcomes) == pytest.approx(expected)


def test_bins_hold_their_upper_edge():
  # With two bins 0.5 is in the lower, so the two errors do not cancel.
  outcomes = classification.Outcomes(
    labels=np.array([0, 0]),
    ranks=np.array([1, 2]),
    predictions=np.array([0, 1]),
    confidences=np.array([0.5, 0.6]),
    classes=2,
  )
  assert classification.calibration_error(outcomes, bins=2) == pytest.approx(0.55)


def test_blocks_of_rows_do_not_matter(monkeypatch):
  rng = np.random.default_rng(0)
  features, weights = rng.standard_normal((50, 4)), rng.standard_normal((7, 4))
  bias, labels = rng.standard_normal(7), rng.integers(0, 7, 50)
  whole = classification.outcomes(features @ weights.T + bias, labels, scale=0.5)
  monkeypatch.setattr(classification, "_BLOCK_BYTES", 4 * 7 * 8)
  cut = classification.of_linear(features, labels, weights, bias, scale=0.5)
  np.testing.assert_array_equal(cut.ranks, whole.ranks)
  np.testing.assert_array_equal(cut.predictions, whole.predictions)
  np.testing.assert_allclose(cut.confidences, whole.confidences)
  assert cut.classes == 7


@pytest.mark.parametrize("classes", [4, 5, 8])
def test_zero_shot_metrics_are_clip_benchmarks_own(classes, monkeypatch):
  torch = pytest.importorskip("torch", reason="requirements-peers.txt")
  pytest.importorskip("clip_benchmark", reason="requirements-peers.txt")
  from clip_benchmark.metrics import zeroshot_classification

  # Their code asks for float() of arrays with one element, which NumPy 2.4 refuses.
  to_float = lambda x: x.item() if isinstance(x, np.ndarray) else float(x)
  monkeypatch.setattr(zeroshot_classification, "float", to_float, raising=False)
  rng = np.random.default_rng(3)
  names = [f"class {i}" for i in range(classes)]
  templates = ["a photo of {c}", "{c}!"]
  prompts = [t.replace("{c}", name) for name in names for t in templates]
  texts = dict(zip(prompts, rng.standard_normal((len(prompts), 6)), strict=True))
  labels = rng.integers(0, classes, 90)
  image = rng.standard_normal((90, 6)) + 0.7 * np.stack(
    [texts[f"{names[label]}!"] for label in labels]
  )
  tensor = lambda rows: torch.from_numpy(np.asarray(rows, np.float32))
  model = types.SimpleNamespace(encode_image=lambda x: x, encode_text=lambda x: x)
  batches = list(
    zip(tensor(image).split(32), torch.from_numpy(labels).split(32), strict=True)
  )

  class Loader(list):
    dataset = types.SimpleNamespace(classes=names)

  theirs = zeroshot_classification.evaluate(
    model,
    Loader(batches),
    lambda prompts: tensor([texts[p] for p in prompts]),
    names,
    templates,
    "cpu",
    amp=False,
  )
  weights = zero_shot.classifier(lambda p: [texts[x] for x in p], names, templates)
  unit = image / np.linalg.norm(image, axis=1, keepdims=True)
  ours = zero_shot.evaluate(unit, labels, weights)
  assert 0.2 < ours["acc1"] < 0.9
  assert ours["acc1"] == pytest.approx(theirs["acc1"])
  assert ours["mean_per_class_recall"] == pytest.approx(theirs["mean_per_class_recall"])
  if classes >= 5:
    assert ours["acc5"] == pytest.approx(theirs["acc5"])
  else:
    assert ours["acc5"] is None
    assert np.isnan(theirs["acc5"])


@pytest.mark.parametrize(
  "scores, labels, message",
  [
    (np.eye(2), [0, 2], "from 0 to 1, .*first is 2 in row 1"),
    (np.eye(2), [0.0, 1.0], "labels: expected integers.*float64"),
    (np.eye(2), [0], r"labels: .*shape \(2,\).*\(1,\)"),
    (np.ones(3), [0], r"scores: expected \[examples, classes\].*\(3,\)"),
    (np.ones((0, 3)), [], r"at least one of each, got shape \(0, 3\)"),
    ([[0.0, 1.0], [np.nan, 1.0]], [0, 1], r"scores: .*finite.*row 1"),
    ([[0.0, np.inf]], [0], r"scores: .*finite.*row 0"),
  ],
)
def test_outcomes_refuses(scores, labels, message):
  with pytest.raises(ValueError, match=message):
    classification.outcomes(scores, np.array(labels))


def test_of_linear_refuses(monkeypatch):
  ones = np.ones
  with pytest.raises(ValueError, match=r"one dim, got \(3, 4\) and \(2, 5\)"):
    classification.of_linear(ones((3, 4)), [0, 1, 0], ones((2, 5)))
  with pytest.raises(ValueError, match="one example and one class, got 0 and 2"):
    classification.of_linear(ones((0, 4)), [], ones((2, 4)))
  features = ones((3, 4))
  features[2, 1] = np.nan
  monkeypatch.setattr(classification, "_BLOCK_BYTES", 1)
  with pytest.raises(ValueError, match="row 2: the features"):
    classification.of_linear(features, [0, 1, 0], ones((2, 4)))
