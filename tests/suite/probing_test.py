"""Few-shot probes on named data sets."""

import numpy as np
import pytest

from rankclip_jax import suite
from rankclip_jax.evals import results
from tests.data.benchmarks import sets
from tests.suite.runs import changed, written


@pytest.fixture
def folder(tmp_path):
  """Dark cats and bright dogs."""
  folder = tmp_path / "pets"
  for split in ("train", "test"):
    counts = {"cat": 4, "dog": 5} if split == "train" else {"cat": 6, "dog": 6}
    sets.write_class_folders(folder, counts, split)
  (tmp_path / "prompts.txt").write_text("a {c}\n")
  return folder


def few(cfg, folder, **fields):
  prompts = str(folder.parent / "prompts.txt")
  return changed(cfg, datasets=str(folder), templates=prompts, **fields)


def test_few_shot_probes_have_a_mean_and_a_spread(cfg, tmp_path, folder):
  cfg = few(cfg, folder, few_shot=(4, 1), few_shot_seeds=2)
  suite.run(cfg, tmp_path)
  found = written(tmp_path)["pets", "few_shot_probe"]
  assert list(found["metrics"]) == [
    f"lp_{name}_k{k}_{what}"
    for k in (1, 4)
    for name in ("acc1", "mean_per_class_recall")
    for what in ("mean", "std")
  ]
  extras = found[results.EXTRAS]
  assert (extras["seeds"], extras["train_examples"], extras["images"]) == ([0, 1], 9, 12)
  for each in extras["draws"]:
    scores = [one["acc1"] for one in each["by_seed"]]
    start = f"lp_acc1_k{each['shots']}"
    assert found["metrics"][f"{start}_mean"] == pytest.approx(np.mean(scores))
    assert found["metrics"][f"{start}_std"] == pytest.approx(np.std(scores, ddof=1))


def test_shots_that_a_class_lacks_are_left_out_with_the_reason(cfg, tmp_path, folder):
  suite.run(few(cfg, folder, few_shot=(1, 5), few_shot_seeds=1), tmp_path / "some")
  found = written(tmp_path / "some")["pets", "few_shot_probe"]
  assert found["metrics"].keys() == {
    f"lp_{name}_k1_{what}"
    for name in ("acc1", "mean_per_class_recall")
    for what in ("mean", "std")
  }
  reason = "pets has 4 examples of 'cat' to train on"
  assert found[results.EXTRAS]["left_out"] == {"5": reason}

  cfg = few(cfg, folder, few_shot=(8, 5))
  suite.run(cfg, tmp_path / "none")
  assert ("pets", "few_shot_probe") not in written(tmp_path / "none")
  assert "1 tasks are done, 1 were skipped" in suite.merge(cfg, tmp_path / "none")
  text = (tmp_path / "none" / "results" / "results.csv").read_text()
  assert f'"skipped: {reason}, and config.eval.few_shot asks for 5 at least."' in text


def test_too_few_examples_for_a_validation_split(cfg, tmp_path):
  folder = tmp_path / "pets"
  for split in ("train", "test"):
    sets.write_class_folders(folder, {"cat": 2, "dog": 2}, split)
  (tmp_path / "prompts.txt").write_text("a {c}\n")
  message = "pets: expected at least 5 training examples, .* got 4; add some"
  with pytest.raises(ValueError, match=message):
    suite.run(few(cfg, folder, probe="sweep"), tmp_path / "run")
