"""What a folder says of its run."""

import dataclasses
import json
import os

import pytest

from rankclip_jax import checkpoint, config
from rankclip_jax.studies import disk
from tests.studies.conftest import begin, finish, log


def states(tiny, runs):
  return [disk.status(run, tiny).state for run in runs]


def test_missing_interrupted_and_done(tiny, runs):
  assert set(states(tiny, runs)) == {"missing"}
  begin(runs[0])
  finish(runs[1], 0.5)
  assert states(tiny, runs[:3]) == ["interrupted", "done", "missing"]
  assert disk.status(runs[0], tiny).detail.startswith("step 7, 0 min ago")


@pytest.mark.parametrize("name", ["results/openmoji_geometry.json", disk.COMPLETE])
def test_a_run_is_not_done_before_it_has_ended_and_all_is_there(tiny, runs, name):
  finish(runs[0], 0.5)
  (runs[0].workdir / name).unlink()
  assert states(tiny, runs[:1]) == ["interrupted"]


def test_the_end_of_a_training_is_known_by_its_name():
  assert disk.COMPLETE == checkpoint.COMPLETE


def test_results_of_another_data_set_are_not_those_of_the_study(tiny, runs):
  finish(runs[0], 0.5)
  metrics = [dataclasses.replace(m, dataset="imagenet1k") for m in tiny.metrics]
  wide = dataclasses.replace(tiny, metrics=metrics)
  assert states(wide, runs[:1]) == ["interrupted"]


@pytest.mark.parametrize(
  "text, state, detail",
  [
    ("Error: no data.\n\nstudies: ended with code 1\n", "failed", "code 1: Error: no da"),
    ("Traceback\nKeyError: 3\nstudies: ended with code 1\n", "failed", "KeyError: 3"),
    ("studies: ended with code -9\n", "failed", "code -9"),
    ("Fine.\nstudies: ended with code 0\n", "failed", "without openmoji_zeroshot_retr"),
    ("Stopped\nstudies: ended with code 75\n", "interrupted", "step 7"),
    ("Error: before\nstudies: ended with code 1\nTraining\n", "interrupted", "step 7"),
  ],
)
def test_the_log_says_how_it_ended(tiny, runs, text, state, detail):
  begin(runs[0])
  log(runs[0], text)
  status = disk.status(runs[0], tiny)
  assert status.state == state
  assert detail in status.detail


def test_only_the_last_attempt_names_the_error(tiny, runs):
  end = "\nstudies: ended with code 1\n"
  log(runs[0], f"Error: first{end}Killed{end}")
  assert disk.status(runs[0], tiny).detail == "code 1: Killed"


def test_without_a_runner_main_notes_its_error(tiny, runs):
  begin(runs[0])
  path = runs[0].workdir / "error.log"
  path.write_text("Traceback ...\nValueError: the disk is full\n")
  now = path.stat().st_mtime
  os.utime(path, (now + 5, now + 5))
  status = disk.status(runs[0], tiny)
  assert status == disk.Status("failed", "ValueError: the disk is full")
  os.utime(path, (now - 5, now - 5))  # steps that were made later
  assert states(tiny, runs[:1]) == ["interrupted"]


def test_whoever_runs_it_has_a_lock(tiny, runs):
  begin(runs[0])
  with log(runs[0], "").open("ab") as file:
    assert disk.lock(file)
    assert states(tiny, runs[:1]) == ["running"]
    with disk.log_path(runs[0]).open("ab") as other:
      assert not disk.lock(other)
  assert states(tiny, runs[:1]) == ["interrupted"]


def test_a_run_of_another_config_is_an_error(tiny, runs):
  optim = dataclasses.replace(runs[0].config.optim, epochs=7)
  begin(runs[0], optim=optim)
  with pytest.raises(
    ValueError, match=r"another config.*\n.*optim.epochs: the run has 7"
  ):
    disk.status(runs[0], tiny)
  # What may change while a run goes on may differ.
  begin(runs[0], log=config.LogConfig(every_steps=5))
  assert states(tiny, runs[:1]) == ["interrupted"]


def test_a_config_that_is_torn_is_an_error(tiny, runs):
  begin(runs[0])
  (runs[0].workdir / "config.json").write_text("{")
  with pytest.raises(ValueError, match=r"config.json: expected JSON, got .* remove"):
    disk.status(runs[0], tiny)


def test_a_torn_line_of_metrics_is_passed_over(tiny, runs):
  begin(runs[0])
  with (runs[0].workdir / "metrics.jsonl").open("a") as file:
    file.write('{"step": 8, "tr')
  assert disk.status(runs[0], tiny).detail.startswith("step 7")


def test_values(tiny, runs):
  finish(runs[0], 0.25)
  recall, *_, tau = tiny.metrics
  assert disk.value(runs[0], recall) == 0.25
  assert disk.value(runs[0], tau) == 0.5
  with pytest.raises(ValueError, match=r"has no lp_acc1; there are image_retrieval_re"):
    disk.value(runs[0], dataclasses.replace(recall, name="lp_acc1"))
  assert disk.facts(runs[0])["commit"] == "abc+"
  assert disk.facts(runs[1]) == {}
  assert json.loads((runs[0].workdir / "config.json").read_text())["seed"] == 0
