"""What every example was taken for, on request."""

import numpy as np
import pytest

from rankclip_jax import suite
from rankclip_jax.evals import results
from rankclip_jax.suite import measuring, predictions
from tests.suite.runs import CAPTIONS, changed, count_calls, written


def rows(count, dim=4, seed=0):
  return np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)


def test_the_nearest_are_those_of_a_stable_sort(monkeypatch):
  monkeypatch.setattr(predictions, "_BLOCK_BYTES", 100)  # of few queries
  queries, candidates = rows(23), rows(9, seed=1)
  candidates[[2, 7]] = candidates[4]  # equal, whatever the query
  bias = np.linspace(0, 0.1, 9, dtype=np.float32)
  bias[[2, 4, 7]] = 0.03
  found, values = predictions.nearest(queries, candidates, 5, bias=bias)
  scores = queries @ candidates.T + bias
  order = np.argsort(-scores, axis=1, kind="stable")[:, :5]
  np.testing.assert_array_equal(found, order)
  np.testing.assert_allclose(values, np.take_along_axis(scores, order, 1), rtol=1e-5)


def test_probabilities_are_a_softmax_also_where_it_underflows():
  queries, candidates = 30 * rows(6), rows(4, seed=1)
  found, values = predictions.nearest(queries, candidates, 9, softmax_scale=20.0)
  assert found.shape == values.shape == (6, 4)
  scores = 20.0 * (queries @ candidates.T).astype(np.float64)
  exact = np.exp(scores - scores.max(axis=1, keepdims=True))
  exact /= exact.sum(axis=1, keepdims=True)
  np.testing.assert_array_equal(found, np.argsort(-scores, axis=1))
  exact = np.take_along_axis(exact, found.astype(np.int64), 1)
  np.testing.assert_allclose(values, exact, rtol=1e-2, atol=1e-30)


def test_predictions_are_those_that_were_scored(cfg, tmp_path, monkeypatch, caplog):
  cfg = changed(cfg, datasets="stl10,flickr30k")
  suite.run(cfg, tmp_path)
  assert not (tmp_path / "results" / "predictions").exists()
  cfg = changed(cfg, predictions=True)
  suite.run(cfg, tmp_path)
  found = written(tmp_path)
  classified = tmp_path / "results" / "predictions" / "stl10_zeroshot_classification.npz"
  with np.load(classified) as file:
    assert file["keys"].tolist() == [f"s{i:07}" for i in range(5)]
    assert file["labels"].tolist() == [0, 3, 9, 1, 1]
    assert file["predictions"].shape == file["probabilities"].shape == (5, 5)
    hits = file["predictions"] == file["labels"][:, None]
    assert np.all(np.diff(file["probabilities"], axis=1) <= 0)
  metrics = found["stl10", "zeroshot_classification"]["metrics"]
  assert hits[:, 0].mean() == pytest.approx(metrics["acc1"])
  assert hits.any(axis=1).mean() == pytest.approx(metrics["acc5"])
  path = tmp_path / "results" / "predictions" / "flickr30k_zeroshot_retrieval.npz"
  with np.load(path) as file:
    owner = file["image_of_text"]
    assert owner.tolist() == [0, 0, 1, 2, 2, 2, 3]
    assert file["texts_of_image"].shape == file["text_scores"].shape == (len(CAPTIONS), 7)
    best = file["images_of_text"][:, 0] == owner
  metrics = found["flickr30k", "zeroshot_retrieval"]["metrics"]
  assert best.mean() == pytest.approx(metrics["image_retrieval_recall@1"])

  done = count_calls(monkeypatch, measuring._TASKS, "zeroshot_classification")
  suite.run(cfg, tmp_path)
  assert not done
  classified.write_bytes(classified.read_bytes()[:200])
  suite.run(cfg, tmp_path)
  assert len(done) == 1
  assert "is damaged and is made again" in caplog.text
  with np.load(classified) as file:
    key = written(tmp_path)["stl10", "zeroshot_classification"][results.EXTRAS]["key"]
    assert str(file["key"]) == key
  # Of other prompts none are asked for, and none of the old ones are left.
  other = tmp_path / "prompts.txt"
  other.write_text("a drawing of a {c}\n")
  suite.run(changed(cfg, templates=str(other), predictions=False), tmp_path)
  assert not classified.exists()
