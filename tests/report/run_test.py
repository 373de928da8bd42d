"""Reading a workdir: what is tolerated, what is refused, and in which words."""

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


def test_result_of_text_is_refused(make_workdir):
  workdir = make_workdir(results={("kind", "zero"): {"acc1": "high"}})
  with pytest.raises(ValueError, match=r"results: expected numbers .* kind, zero"):
    run.read_runs([workdir])


def test_config_that_is_no_object_is_named(make_workdir):
  workdir = make_workdir()
  (workdir / "config.json").write_text("[]")
  with pytest.raises(ValueError, match=r"config\.json: expected a JSON object, got list"):
    run.read_runs([workdir])
