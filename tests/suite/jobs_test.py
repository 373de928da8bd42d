"""Which tasks there are, and how jobs share them."""

import pytest

from rankclip_jax.suite import jobs
from tests.data.benchmarks import sets
from tests.suite.runs import changed


def test_tasks_of_a_data_set_stay_in_one_job(cfg):
  cfg = changed(
    cfg, datasets="cifar10,flickr30k", probe="sweep", few_shot=(1,), num_shards=2
  )
  groups = [[task for _, task in jobs.mine(changed(cfg, shard=i))] for i in range(2)]
  assert groups == [
    ["zeroshot_classification", "linear_probe", "few_shot_probe"],
    ["zeroshot_retrieval", "geometry"],
  ]


@pytest.mark.parametrize(
  "datasets, message",
  [
    ("cifar10,vtab/cifar10", "names vtab/cifar10 more than once"),
    ("cifar11", "cifar10"),
    (" , ", "' , ' names no data set"),
  ],
)
def test_names_are_checked_before_anything_runs(cfg, datasets, message):
  with pytest.raises(ValueError, match=message):
    jobs.whole(changed(cfg, datasets=datasets))


def test_folders_of_one_name_are_refused_with_both_paths(cfg, tmp_path, monkeypatch):
  one, two = (
    sets.write_class_folders(tmp_path / name / "pics", {"cat": 1}) for name in "ab"
  )
  message = f"{one} and {two} are both called pics"
  with pytest.raises(ValueError, match=message):
    jobs.whole(changed(cfg, datasets=f"{one},{two}"))
  monkeypatch.chdir(one)
  assert jobs.whole(changed(cfg, datasets=".")) == [(str(one), "zeroshot_classification")]
  with pytest.raises(ValueError, match=f"names {one} more than once"):
    jobs.whole(changed(cfg, datasets=f".,{one}/"))
