"""Draws of k examples a class, and means and spreads over them."""

import functools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankclip_jax.probes import few_shot, sweep
from rankclip_jax.probes.probe import Probe


def examples(counts, noise=0.5, seed=0):
  rng = np.random.default_rng(seed)
  labels = rng.permutation(np.repeat(np.arange(len(counts)), counts))
  centres = np.random.default_rng(1).standard_normal((len(counts), 5))
  features = centres[labels] + noise * rng.standard_normal((len(labels), 5))
  return features.astype(np.float32), labels


@given(
  counts=st.lists(st.integers(3, 9), min_size=2, max_size=6),
  shots=st.integers(1, 3),
  seed=st.integers(0, 2**32 - 1),
)
def test_a_draw_has_k_of_every_class_and_no_example_twice(counts, shots, seed):
  _, labels = examples(counts)
  rows = few_shot.draw(labels, len(counts), shots, seed)
  assert labels[rows].tolist() == np.repeat(np.arange(len(counts)), shots).tolist()
  assert len(set(rows)) == len(rows)


def test_draws_are_nested_and_differ_by_seed():
  _, labels = examples([40, 40, 40])
  two, five = (few_shot.draw(labels, 3, k, seed=7).reshape(3, k) for k in (2, 5))
  np.testing.assert_array_equal(five[:, :2], two)
  assert set(two.flat) != set(few_shot.draw(labels, 3, 2, seed=8))
  # Every example can be drawn.
  drawn = {row for seed in range(60) for row in few_shot.draw(labels, 3, 8, seed)}
  assert drawn == set(range(120))


def test_means_and_spreads_over_seeds():
  train, test = examples([6, 6]), examples([10, 30])
  # Feature 0 tells class 1 from all of class 0 but some, which a threshold cuts.
  test[0][:, 0] = -1
  test[0][test[1] == 0, 0] = np.arange(10)
  wrong = iter([0, 5, 10, 8])
  drawn = []

  def fit(features, labels):
    drawn.append((features.shape, np.bincount(labels).tolist()))
    weights = np.zeros((2, 5), np.float32)
    weights[0, 0] = 1
    return Probe(weights, np.float32([0, next(wrong) - 0.5]), np.zeros(1), 0.0)

  result = few_shot.evaluate(train, test, fit, classes=2, shots=(1, 3), seeds=(4, 9))
  assert drawn == [((2, 5), [1, 1])] * 2 + [((6, 5), [3, 3])] * 2
  one, three = result
  assert (one.shots, one.seeds, three.shots) == (1, (4, 9), 3)
  recalls = [m["mean_per_class_recall"] for r in result for m in r.by_seed]
  assert recalls == pytest.approx([1.0, 0.75, 0.5, 0.6])
  assert one.mean["mean_per_class_recall"] == pytest.approx(0.875)
  assert one.spread["mean_per_class_recall"] == pytest.approx(0.25 / 2**0.5)
  assert one.mean["acc1"] == pytest.approx((1 + 35 / 40) / 2)
  assert one.mean["acc5"] is None
  assert one.spread["acc5"] is None


def test_a_single_seed_has_no_spread():
  train, test = examples([6, 6]), examples([9, 9], seed=2)
  fit = lambda x, y: Probe(np.zeros((2, 5)), np.zeros(2), np.zeros(1), 0.0)
  (result,) = few_shot.evaluate(train, test, fit, classes=2, shots=[2], seeds=[0])
  assert result.mean["acc1"] == pytest.approx(0.5)
  assert result.spread["acc1"] is None


def test_more_shots_of_logistic_regression_are_better():
  train, test = examples([20] * 4, noise=1.2), examples([50] * 4, noise=1.2, seed=2)
  fit = functools.partial(sweep.fit_one, classes=4, strength=1.0)
  few, many = few_shot.evaluate(train, test, fit, classes=4, shots=(1, 16))
  assert many.mean["acc1"] > few.mean["acc1"] + 0.05
  assert len(few.by_seed) == len(few_shot.SEEDS)


@pytest.mark.parametrize(
  "arguments, message",
  [
    ({"shots": [1, 4]}, "from 1 to 3 shots, as many as class 1 has examples, got 4"),
    ({"shots": [0]}, "from 1 to 3 shots.*got 0"),
    ({"classes": 4}, "from 1 to 0 shots, as many as class 3 has examples, got 1"),
    ({"shots": []}, r"at least one number of shots and one seed, got \[\]"),
    ({"seeds": []}, r"got \[1\] and \[\]"),
    ({"classes": 2}, "classes from 0 to 1, but 5 of 14 are not"),
  ],
)
def test_refuses(arguments, message):
  train = examples([6, 3, 5])
  with pytest.raises(ValueError, match=message):
    few_shot.evaluate(
      train,
      train,
      lambda *_: pytest.fail("fitted"),
      **{"classes": 3, "shots": [1], **arguments},
    )
