"""Logistic regression against scikit-learn's optimum, on every number of devices."""

import logging
import warnings

import jax
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from rankclip_jax import sharding
from rankclip_jax.probes import logistic, sweep

FEW = np.logspace(-2, 4, 7)


def examples(count=61, dim=6, classes=3, noise=2.0, seed=0):
  """Clusters that overlap (noise 2) or not (0.3), on axes of unlike scale and offset."""
  rng = np.random.default_rng(seed)
  labels = rng.permutation(np.arange(count) % classes)
  centres = np.random.default_rng(7).standard_normal((classes, dim)) * 2
  features = centres[labels] + noise * rng.standard_normal((count, dim))
  features = features * np.logspace(-1, 1, dim) + 3 * np.arange(dim)
  return features.astype(np.float32), labels


def objective(weights, bias, features, labels, strength):
  """The docstring of `logistic` in float64."""
  logits = features.astype(np.float64) @ np.asarray(weights, np.float64).T + bias
  log_sum = np.logaddexp.reduce(logits, axis=1)
  cross_entropy = np.sum(log_sum - logits[np.arange(len(labels)), labels])
  return (cross_entropy + strength / 2 * np.sum(np.square(weights))) / len(labels)


def optimum(features, labels, inverse_strength):
  """Weights and bias of scikit-learn."""
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the last digits of its line search
    model = LogisticRegression(
      C=inverse_strength, solver="newton-cg", tol=1e-10, max_iter=10_000
    ).fit(features.astype(np.float64), labels)
  return model.coef_, model.intercept_


def mesh_of(devices):
  return sharding.make_mesh(devices=jax.devices()[:devices])


@pytest.mark.parametrize("strength", [1e-4, 1e-1, 3.16, 1e2, 1e5])
@pytest.mark.parametrize("noise", [2.0, 0.3], ids=["overlap", "apart"])
def test_reaches_the_optimum_of_scikit_learn(noise, strength):
  features, labels = examples(noise=noise)
  probe = sweep.fit_one(features, labels, classes=3, strength=strength)
  theirs = objective(*optimum(features, labels, 1 / strength), features, labels, strength)
  ours = objective(probe.weights, probe.bias, features, labels, strength)
  assert probe.converged
  assert ours == pytest.approx(theirs, abs=1e-5)
  assert probe.final_loss == pytest.approx(ours, abs=1e-5)
  assert probe.losses.tolist() == [probe.final_loss]


def test_weights_are_those_of_scikit_learn():
  features, labels = examples(noise=2.0)
  probe = sweep.fit_one(features, labels, classes=3, strength=10.0, tolerance=1e-6)
  weights, bias = optimum(features, labels, 1 / 10)
  np.testing.assert_allclose(probe.weights, weights, atol=2e-4)
  np.testing.assert_allclose(probe.bias, bias, atol=2e-3)


def test_a_class_without_examples_is_never_predicted():
  features, labels = examples(classes=2)
  labels = 2 * labels  # nothing is of class 1
  probe = sweep.fit_one(features, labels, classes=3, strength=10.0, tolerance=1e-6)
  # Of two classes scikit-learn fits one vector; half the strength is the same penalty.
  weights, bias = optimum(features, labels, 2 / 10)
  np.testing.assert_allclose(probe.weights[2] - probe.weights[0], weights[0], atol=2e-4)
  np.testing.assert_allclose(probe.bias[2] - probe.bias[0], bias[0], atol=2e-3)
  np.testing.assert_array_equal(probe.weights[1], 0)
  assert probe.bias[1] == np.float32(logistic.NEVER)
  far = 1e4 * np.random.default_rng(0).standard_normal((50, 6))
  assert set((far @ probe.weights.T + probe.bias).argmax(axis=1)) == {0, 2}


def test_the_number_of_devices_does_not_matter():
  features, labels = examples(count=61)
  one = sweep.fit(features, labels, classes=3, strengths=FEW, mesh=mesh_of(1))
  for devices in (2, 4, 8):
    more = sweep.fit(features, labels, classes=3, strengths=FEW, mesh=mesh_of(devices))
    assert more.strength == one.strength
    np.testing.assert_array_equal(more.validation, one.validation)
    np.testing.assert_allclose(more.losses, one.losses, atol=1e-6)
    np.testing.assert_allclose(more.weights, one.weights, atol=1e-4)
    np.testing.assert_allclose(more.bias, one.bias, atol=1e-3)


def test_a_sweep_and_its_refit_compile_once():
  features, labels = examples()
  logistic.fit.clear_cache()
  sweep.fit(features, labels, classes=3, strengths=FEW)
  assert logistic.fit._cache_size() == 1


@pytest.mark.parametrize("count", [7, 57, 64])
def test_padding_is_not_counted(count):
  features, labels = examples(count=count)
  probe = sweep.fit_one(features, labels, classes=3, strength=1.0, mesh=mesh_of(8))
  theirs = objective(*optimum(features, labels, 1.0), features, labels, 1.0)
  assert probe.final_loss == pytest.approx(theirs, abs=1e-5)


def test_blocks_of_rows_do_not_matter(monkeypatch):
  features, labels = examples()
  whole = sweep.fit(features, labels, classes=3, strengths=[1.0, 10.0])
  monkeypatch.setattr(logistic, "_BLOCK_BYTES", 3 * 4 * 3)  # three rows a device
  rows = logistic.Rows.put(features, labels, 3, mesh_of(8))
  assert rows.features.shape == (3, 24, 6)
  cut = sweep.fit(features, labels, classes=3, strengths=[1.0, 10.0])
  np.testing.assert_allclose(cut.weights, whole.weights, atol=1e-4)
  np.testing.assert_array_equal(cut.validation, whole.validation)


def test_the_strength_is_that_which_validates_best():
  features, labels = examples(noise=3.0, seed=3)
  train, rest = slice(40), slice(40, None)
  probe = sweep.fit(
    features[train],
    labels[train],
    classes=3,
    validation=(features[rest], labels[rest]),
    strengths=FEW,
  )
  curve = []
  for strength in FEW:
    weights, bias = optimum(features[train], labels[train], 1 / strength)
    predictions = (features[rest] @ weights.T + bias).argmax(axis=1)
    curve.append(np.mean(predictions == labels[rest]))
  assert curve[2] < curve[3] == curve[4] > curve[5]  # a peak within, of two
  np.testing.assert_allclose(probe.validation, curve)
  np.testing.assert_array_equal(probe.strengths, FEW)
  assert probe.strength == FEW[4]
  again = sweep.fit_one(features, labels, classes=3, strength=probe.strength)
  np.testing.assert_allclose(probe.weights, again.weights, atol=1e-3)
  assert probe.final_loss == pytest.approx(again.final_loss, abs=1e-6)


def test_of_equal_strengths_the_strongest():
  features, labels = examples(noise=0.01)
  probe = sweep.fit(features, labels, classes=3, strengths=[1e-2, 1.0, 1e2, 1e7])
  # At 1e7 nothing is learned.
  assert probe.validation.tolist()[:3] == [1, 1, 1]
  assert probe.validation[3] < 1
  assert probe.strength == 1e2


def test_recall_weighs_rare_classes_as_much():
  features, _ = examples()
  labels = np.where(np.arange(61) % 10 == 0, 1, 0)
  of = lambda metric: sweep.fit(
    features, labels, classes=3, strengths=[1.0, 1e9], metric=metric
  )
  held_out = labels[sweep.split(labels)]
  # The strong penalty always says 0.
  assert of("acc1").validation[1] == pytest.approx(np.mean(held_out == 0))
  assert of("mean_per_class_recall").validation[1] == pytest.approx(0.5)


def test_the_default_is_clips_grid():
  assert len(sweep.STRENGTHS) == 97
  assert sweep.STRENGTHS[[0, 48, 96]] == pytest.approx([1e-6, 1, 1e6])
  assert sweep.STRENGTHS[8] == pytest.approx(1e-5)


def test_constant_features_have_no_weight():
  features, labels = examples()
  features[:, [1, 4]] = [0.1, -50.0]
  probe = sweep.fit_one(features, labels, classes=3, strength=1.0, tolerance=1e-6)
  np.testing.assert_allclose(probe.weights[:, [1, 4]], 0, atol=1e-6)
  weights, bias = optimum(features[:, [0, 2, 3, 5]], labels, 1.0)
  np.testing.assert_allclose(probe.weights[:, [0, 2, 3, 5]], weights, atol=1e-3)
  np.testing.assert_allclose(probe.bias, bias, atol=1e-2)


def test_without_features_the_bias_learns_how_frequent_the_classes_are():
  labels = np.repeat([0, 1, 2], [10, 20, 31])
  probe = sweep.fit_one(np.full((61, 6), 0.3), labels, classes=3, strength=1.0)
  frequencies = np.exp(probe.bias) / np.exp(probe.bias).sum()
  np.testing.assert_allclose(frequencies, [10 / 61, 20 / 61, 31 / 61], atol=1e-4)


def test_split_takes_a_part_of_every_class_by_seed():
  labels = np.repeat([0, 1, 2, 3], [50, 10, 4, 1])
  held_out = sweep.split(labels, seed=3)
  counts = np.bincount(labels[held_out], minlength=4)
  assert counts.tolist() == [10, 2, 1, 0]
  np.testing.assert_array_equal(held_out, sweep.split(labels, seed=3))
  assert (held_out != sweep.split(labels, seed=4)).any()
  assert sweep.split(labels, fraction=1.0).sum() == 65 - 4


def test_fits_that_do_not_arrive_are_told(caplog):
  features, labels = examples()
  with caplog.at_level(logging.WARNING):
    probe = sweep.fit(features, labels, classes=3, strengths=FEW, max_iterations=1)
  assert probe.converged is False
  assert "fits ended with a gradient of up to" in caplog.text


def test_a_choice_at_the_end_of_the_grid_is_told(caplog):
  features, labels = examples(noise=0.01)
  with caplog.at_level(logging.WARNING):
    sweep.fit(features, labels, classes=3, strengths=[1e-2, 1.0])
  assert "1.0e+00, is at the end of those tried" in caplog.text


def with_nan(features):
  features = features.copy()
  features[[17, 40], 2] = np.nan
  return features


@pytest.mark.parametrize(
  "change, message",
  [
    (lambda x, y: (with_nan(x), y), r"features: .*2 of 61 rows.*first is row 17"),
    (lambda x, y: (x, np.where(np.arange(61) == 5, 3, y)), "first is 3 in row 5"),
    (lambda x, y: (x, y - 1), "classes from 0 to 2, .*first is -1"),
    (lambda x, y: (x, y[:-1]), r"labels: .*shape \(61,\).*\(60,\)"),
    (lambda x, y: (x, y * 1.0), "labels: expected integers.*float64"),
    (lambda x, y: (x[:, 0], y), r"\[examples, dim\].*\(61,\)"),
    (lambda x, y: (x[:0], y[:0]), r"at least one of each.*\(0, 6\)"),
    (lambda x, y: (x, 0 * y), "at least 2 of the 3 classes, got .* of 1"),
    (lambda x, y: (x[:3], np.array([0, 1, 2])), "hold 20% of them out.*got 3 examples"),
  ],
)
def test_refuses_examples(change, message):
  with pytest.raises(ValueError, match=message):
    sweep.fit(*change(*examples()), classes=3)


@pytest.mark.parametrize(
  "arguments, message",
  [
    ({"strengths": [0.0, 1.0]}, r"L2 strengths above 0, got \[0.0, 1.0\]"),
    ({"strengths": []}, r"L2 strengths above 0, got \[\]"),
    ({"strengths": [np.nan]}, "L2 strengths above 0"),
    ({"metric": "acc5", "strengths": [1.0]}, "metric to be one of .*'acc1'.*'acc5'"),
    ({"classes": 1}, "at least 2 classes to tell apart, got 1"),
    (
      {"validation": (np.ones((2, 5)), np.array([0, 1]))},
      "validation features of dim 6.*got 5",
    ),
    (
      {"validation": (np.full((2, 6), np.inf), np.array([0, 1]))},
      "validation features: .*first is row 0",
    ),
  ],
)
def test_refuses_arguments(arguments, message):
  features, labels = examples()
  if "classes" in arguments:
    labels = 0 * labels
  with pytest.raises(ValueError, match=message):
    sweep.fit(features, labels, **{"classes": 3, **arguments})
