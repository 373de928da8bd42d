"""Reading a workdir: what is tolerated, what is refused, and in which words."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankclip_jax.report import run


def test_names_take_as_many_folders_as_they_need():
  paths = [Path("/x/a/run"), Path("/x/b/run"), Path("/x/other"), Path("/x/a/run")]
  assert run.distinct_names(paths) == ["a/run", "b/run", "other", "a/run (2)"]
  assert run.distinct_names([Path("/x/a/run"), Path("/y/a/run")]) == [
    "x/a/run",
    "y/a/run",
  ]
  assert run.distinct_names([Path("/x/run"), Path("/y/only")]) == ["run", "only"]


@given(st.lists(st.lists(st.sampled_from("ab"), min_size=1, max_size=4), min_size=1))
def test_names_are_distinct(folders):
  paths = [Path("/", *folder) for folder in folders]
  names = run.distinct_names(paths)
  assert len(set(names)) == len(paths)
  for path, name in zip(paths, names, strict=True):
    assert str(path).endswith(name.partition(" ")[0])


def test_workdir_must_exist_and_hold_a_run(tmp_path):
  (tmp_path / "checkpoints").mkdir()
  with pytest.raises(ValueError, match=r"nowhere: no such folder"):
    run.read_runs([tmp_path / "nowhere"])
  with pytest.raises(ValueError, match=rf"{tmp_path}, which holds none of config\.json"):
    run.read_runs([tmp_path])
  with pytest.raises(ValueError, match="at least one workdir"):
    run.read_runs([])


def test_absent_parts_are_told_from_empty_ones(make_workdir):
  (got,) = run.read_runs([make_workdir(lines=(), environment=None)])
  assert got.absent == {
    "environment": "is missing",
    "metrics": "holds no complete line yet",
    "results": "is missing",
    "embeddings": "is missing",
  }
  assert got.config["seed"] == 3
  assert (got.curves, got.results, got.embeddings) == ({}, (), None)


def test_setting_takes_the_first_path_that_is_set(make_workdir):
  config = {"a": {"b": 0, "none": None}, "model": {"name": "tiny"}, "objective": "clip"}
  (got,) = run.read_runs([make_workdir(config=config)])
  assert got.setting("a.missing", "a.none", "a.b.c", "a.b") == "0"
  assert got.setting("model") == "tiny"
  assert got.setting("objective.name", "objective") == "clip"
  assert got.setting("a", "nothing") is None


def test_results_keep_undefined_values(make_workdir):
  metrics = {"acc1": 0.5, "acc5": None}
  (got,) = run.read_runs([make_workdir(results={("kind", "zero"): metrics})])
  assert got.results == (run.Result("kind", "zero", metrics),)


@pytest.mark.parametrize(
  "metrics, message",
  [
    ({"acc1": "high"}, "expected a finite number or null as acc1, got 'high'"),
    ({"acc1": True}, "as acc1, got True"),
    ({"mean_rank": math.inf}, "as mean_rank, got inf"),
    ({"per_class": [0.5]}, "as per_class"),
    ({"acc1": 43.2}, "expected a fraction from 0 to 1 as acc1, got 43.2"),
    ({"image_retrieval_recall@5": -0.1}, "as image_retrieval_recall@5, got -0.1"),
    ([0.5], "expected metrics by name, got"),
  ],
)
def test_metrics_that_are_none_are_refused(make_workdir, metrics, message):
  workdir = make_workdir(results={("kind", "zero"): metrics})
  with pytest.raises(ValueError, match=rf"results/kind_zero\.json: .*{message}"):
    run.read_runs([workdir])


def test_nan_of_other_tools_is_undefined(make_workdir):
  metrics = {"acc1": math.nan, "lp_acc1": 1 + 1e-9, "lp_acc1_k4_std": 0.01}
  (got,) = run.read_runs([make_workdir(results={("kind", "zero"): metrics})])
  assert got.results[0].metrics == metrics | {"acc1": None}


@pytest.mark.parametrize(
  "extras, message",
  [
    ({"calibration_error": "0.1"}, "as calibration_error, got '0.1'"),
    ({"confusions": [["a", "b", 3]]}, r"expected confusions as .*\[\['a', 'b', 3\]\]"),
    ({"confusions": {"a": "b"}}, "expected confusions as a list"),
    (
      {"confusions": [{"label": "a", "prediction": "b", "count": 1, "fraction": None}]},
      "expected confusions as a list of objects",
    ),
  ],
)
def test_extras_of_another_form_are_refused(make_workdir, extras, message):
  key = ("kind", "zero")
  workdir = make_workdir(results={key: {"acc1": 0.5}}, extras={key: extras})
  with pytest.raises(ValueError, match=rf"results/kind_zero\.json: .*{message}"):
    run.read_runs([workdir])


def test_extras_may_be_undefined_or_of_no_use_to_the_page(make_workdir):
  key = ("kind", "zero")
  extras = {"calibration_error": math.nan, "confusions": None, "dtype": "bfloat16"}
  workdir = make_workdir(results={key: {"acc1": 0.5}}, extras={key: extras})
  assert run.read_runs([workdir])[0].results[0].extras == {
    "calibration_error": None, "confusions": [], "dtype": "bfloat16",
  }  # fmt: skip


def test_data_sets_are_called_by_one_name(make_workdir):
  task = "zeroshot_classification"
  workdir = make_workdir(results={("wds/imagenet1k", task): {"acc1": 0.5}})
  (got,) = run.read_runs([workdir])
  assert got.results[0].dataset == "imagenet1k"
  make_workdir(results={("imagenet1k", task): {"acc1": 0.25}})
  match = rf"results/imagenet1k_{task}\.json and .*/wds-imagenet1k_{task}\.json are both"
  with pytest.raises(ValueError, match=match):
    run.read_runs([workdir])


def test_config_that_is_no_object_is_named(make_workdir):
  workdir = make_workdir()
  (workdir / "config.json").write_text("[]")
  with pytest.raises(ValueError, match=r"config\.json: expected a JSON object, got list"):
    run.read_runs([workdir])
