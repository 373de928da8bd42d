"""Zero-shot accuracy by hand, prompt ensembles, and the inputs they refuse."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankclip_jax.evals import classification, zero_shot


def embed_from(table):
  """An embed function that looks its prompts up, and a list of the calls it got."""
  calls = []

  def embed_texts(prompts):
    calls.append(prompts)
    return np.array([table[prompt] for prompt in prompts], np.float32)

  return embed_texts, calls


def test_classifier_averages_directions_not_embeddings():
  embed_texts, calls = embed_from(
    {
      "a cat": [10, 0, 0],
      "cat!": [0, 1, 0],
      "a dog": [0, 0, 3],
      "dog!": [0, 0, 5],
    }
  )
  weights = zero_shot.classifier(embed_texts, ["cat", "dog"], ["a {c}", "{}!"])
  assert calls == [["a cat", "cat!", "a dog", "dog!"]]
  half = 0.5**0.5
  np.testing.assert_allclose(weights, [[half, half, 0], [0, 0, 1]], rtol=1e-6)
  assert weights.dtype == np.float32


def test_class_names_are_put_in_literally():
  name = r"\1 {x} 50%"
  embed_texts, calls = embed_from({f"{{a}} {name}, {name}": [1, 0]})
  zero_shot.classifier(embed_texts, [name], ["{a} {c}, {}"])
  assert len(calls) == 1


def test_known_accuracy():
  weights = np.eye(6, dtype=np.float32)
  image = np.array(
    [
      [0.8, 0.5, 0.3, 0.1, 0.0, 0.0],
      [0.8, 0.5, 0.3, 0.1, 0.0, 0.0],
      [0.8, 0.5, 0.3, 0.1, 0.0, 0.0],
      [0.8, 0.5, 0.3, 0.1, 0.05, 0.0],
    ]
  )
  image /= np.linalg.norm(image, axis=1, keepdims=True)
  # The labels stand at ranks 1, 2, 4 and 6.
  metrics = zero_shot.evaluate(image, np.array([0, 1, 3, 5]), weights)
  assert metrics == {
    "acc1": 1 / 4,
    "acc3": 2 / 4,
    "acc5": 3 / 4,
    "mean_per_class_recall": 1 / 4,
  }


def test_recall_weighs_classes_alike_and_leaves_out_absent_ones():
  weights = np.eye(4, dtype=np.float32)
  image = weights[[0, 0, 0, 1, 1]]
  labels = np.array([0, 0, 0, 1, 2])
  metrics = zero_shot.evaluate(image, labels, weights)
  # Class 0: 3 of 3, class 1: 1 of 1, class 2: 0 of 1; class 3 has no image.
  assert metrics["mean_per_class_recall"] == pytest.approx(2 / 3)
  assert metrics["acc1"] == pytest.approx(4 / 5)


@pytest.mark.parametrize(
  "classes, undefined",
  [
    (1, {"acc3", "acc5"}),
    (2, {"acc3", "acc5"}),
    (3, {"acc5"}),
    (4, {"acc5"}),
    (5, set()),
  ],
)
def test_accuracy_among_more_classes_than_there_are_is_undefined(classes, undefined):
  weights = np.eye(classes)
  metrics = zero_shot.evaluate(weights, np.arange(classes), weights)
  assert {name for name, value in metrics.items() if value is None} == undefined
  assert {value for value in metrics.values() if value is not None} == {1.0}


def test_equal_scores_stand_in_order_of_index():
  weights = np.repeat(np.eye(2)[:1], 10, axis=0)
  image = weights
  metrics = zero_shot.evaluate(image, np.arange(10), weights)
  assert metrics == {
    "acc1": 1 / 10,
    "acc3": 3 / 10,
    "acc5": 5 / 10,
    "mean_per_class_recall": 1 / 10,
  }


@settings(deadline=None, max_examples=40)
@given(
  images=st.integers(1, 12),
  classes=st.integers(6, 9),
  block_bytes=st.sampled_from([1, 100, 2**20]),
  seed=st.integers(0, 2**32 - 1),
)
def test_accuracy_is_that_of_a_stable_sort(images, classes, block_bytes, seed):
  rng = np.random.default_rng(seed)
  # Rows of ±1/2 have exact dot products and many ties.
  image = rng.choice([-0.5, 0.5], size=(images, 4))
  weights = rng.choice([-0.5, 0.5], size=(classes, 4))
  labels = rng.integers(0, classes, images)
  ranks = [
    sorted(range(classes), key=lambda c, v=v: -float(v @ weights[c])).index(label) + 1
    for v, label in zip(image, labels, strict=True)
  ]
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(classification, "_BLOCK_BYTES", block_bytes)
    metrics = zero_shot.evaluate(image, labels, weights)
  for k in (1, 3, 5):
    assert metrics[f"acc{k}"] == pytest.approx(sum(r <= k for r in ranks) / images)


def test_temperature_changes_confidence_and_nothing_else():
  half = 0.5**0.5
  weights = np.eye(2)
  image = np.array([[1.0, 0.0], [half, half]])
  cool, warm = (
    zero_shot.outcomes(image, np.array([0, 1]), weights, scale=s) for s in (1.0, 100.0)
  )
  np.testing.assert_allclose(cool.confidences, [np.e / (1 + np.e), 0.5])
  np.testing.assert_allclose(warm.confidences, [1, 0.5])
  np.testing.assert_array_equal(cool.ranks, warm.ranks)
  assert classification.calibration_error(warm) == pytest.approx(0.25)


@pytest.mark.parametrize(
  "classes, templates, message",
  [
    ([], ["{c}"], "0 classes and 1 templates"),
    (["cat"], [], "1 classes and 0 templates"),
    (["cat"], ["a {c}", "a {class}"], r"every template, got 'a \{class\}'"),
    (["cat"], "a {c}", "every template, got 'a'"),
    (["cat", "dog", "cat"], ["{c}"], r"distinct class names.*\['cat'\]"),
  ],
)
def test_classifier_refuses_prompts(classes, templates, message):
  with pytest.raises(ValueError, match=message):
    zero_shot.classifier(lambda _: pytest.fail("embedded"), classes, templates)


def test_known_duplicates_are_accepted_on_request():
  embed_texts, _ = embed_from({"cat": [1, 0]})
  weights = zero_shot.classifier(
    embed_texts, ["cat", "cat"], ["{c}"], allow_duplicates=True
  )
  np.testing.assert_array_equal(weights, [[1, 0], [1, 0]])


@pytest.mark.parametrize(
  "embeddings, message",
  [
    (np.ones((3, 4)), r"\(2, dim\) for 2 prompts, got \(3, 4\)"),
    (np.ones(2), r"\(2, dim\) for 2 prompts, got \(2,\)"),
    ([[1.0, 0.0], [0.0, 0.0]], "got 0.0 for 'dog'"),
    ([[np.nan, 0.0], [1.0, 0.0]], "got nan for 'cat'"),
  ],
)
def test_classifier_refuses_embeddings(embeddings, message):
  with pytest.raises(ValueError, match=message):
    zero_shot.classifier(lambda _: embeddings, ["cat", "dog"], ["{c}"])


def test_classifier_refuses_prompts_that_cancel():
  embed_texts, _ = embed_from({"a cat": [1, 0], "cat": [-1, 0]})
  with pytest.raises(ValueError, match=r"got 0\.0 for 'cat'"):
    zero_shot.classifier(embed_texts, ["cat"], ["a {c}", "{c}"])


@pytest.mark.parametrize(
  "image, labels, message",
  [
    (np.eye(2), [0, -1], "from 0 to 1, but 1 of 2 .*first is -1 in row 1"),
    (np.eye(2), [2, 0], "from 0 to 1, .*first is 2 in row 0"),
    (np.eye(2), [0.0, 1.0], "labels: expected integers.*float64"),
    (np.eye(2), [[0, 1]], r"labels: .*shape \(2,\).*\(1, 2\)"),
    (np.eye(3), [0, 1, 1], r"one dim, got \{'image': 3, 'weights': 2\}"),
    (3 * np.eye(2), [0, 1], "image: .*row 0 with norm 3"),
  ],
)
def test_evaluate_refuses(image, labels, message):
  with pytest.raises(ValueError, match=message):
    zero_shot.evaluate(image, np.array(labels), np.eye(2))
