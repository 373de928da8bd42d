"""Few-shot probes on named data sets."""

import numpy as np
import pytest

from rankclip_jax import suite
from rankclip_jax.evals import results
from rankclip_jax.suite import jobs
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


def test_more_shots_than_a_class_has_are_refused_with_both_numbers(cfg, tmp_path, folder):
  cfg = few(cfg, folder, few_shot=(1, 5))
  message = "asks for 5 examples a class, and pets has 4 of 'cat' to train on"
  with pytest.raises(ValueError, match=message):
    suite.run(cfg, tmp_path)


def test_probes_of_a_data_set_stay_in_one_job(cfg):
  cfg = changed(
    cfg, datasets="cifar10,flickr30k", probe="sweep", few_shot=(1,), num_shards=3
  )
  groups = [[task for _, task in jobs.mine(changed(cfg, shard=i))] for i in range(3)]
  assert groups == [
    ["zeroshot_classification"],
    ["linear_probe", "few_shot_probe"],
    ["zeroshot_retrieval", "geometry"],
  ]
