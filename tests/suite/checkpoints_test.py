"""mode=eval of all checkpoints of a workdir, or of those that a training makes."""

import csv
import dataclasses
import itertools
import logging
import os
import shutil
import signal
import threading

import pytest

from rankclip_jax import checkpoint, config, launcher, suite
from rankclip_jax.evals import results
from rankclip_jax.suite import checkpoints as suite_checkpoints
from rankclip_jax.suite import features, jobs, measuring, notes
from tests.metrics_test import scalars
from tests.suite.runs import PICTURES, STEPS, changed, count_calls, of_training, written

TASK = "zeroshot_classification"


@pytest.fixture
def tasks_done(monkeypatch):
  return count_calls(monkeypatch, measuring._TASKS, TASK)


def weights_of(result: dict) -> str:
  return result[results.EXTRAS]["weights"]


def test_all_checkpoints_are_measured_and_the_newest_is_the_workdirs(
  cfg, trained, tasks_done
):
  cfg = of_training(cfg, datasets="stl10,imagenet-a", checkpoint="all")
  assert suite.run(cfg, trained)
  found = [written(trained, f"step_{step}")["stl10", TASK] for step in STEPS]
  assert [x[results.EXTRAS]["step"] for x in found] == list(STEPS)
  assert [weights_of(x) for x in found] == [f"step {s} of {trained}" for s in STEPS]
  assert len({x[results.EXTRAS]["key"] for x in found}) == len(STEPS)
  assert [x["pretrained"] for x in found] == [f"run@{step}" for step in STEPS]
  assert written(trained) == {("stl10", TASK): found[-1]}

  shutil.rmtree(trained / "results" / "step_10")
  (trained / "results" / "stl10_zeroshot_classification.json").unlink()
  before = len(tasks_done)
  assert suite.run(cfg, trained)  # only what is missing
  assert len(tasks_done) == before + 1
  assert written(trained) == {("stl10", TASK): found[-1]}

  assert "3 tasks are done, 3 were skipped" in suite.merge(cfg, trained)
  with (trained / "results" / "results.csv").open(newline="") as file:
    lines = list(csv.DictReader(file))
  accuracy = {x["step"]: float(x["value"]) for x in lines if x["metric"] == "acc1"}
  assert accuracy == {str(x[results.EXTRAS]["step"]): x["metrics"]["acc1"] for x in found}


def test_tensorboard_has_every_step(cfg, trained):
  suite.run(of_training(cfg, datasets="stl10", checkpoint="all"), trained)
  points = scalars(trained / "tensorboard" / "eval_0_of_1")
  for step in STEPS:
    metrics = written(trained, f"step_{step}")["stl10", TASK]["metrics"]
    assert points[f"eval/stl10/{TASK}/acc5", step] == pytest.approx(metrics["acc5"])


def test_a_training_is_followed_until_it_has_ended(
  cfg, checkpoints, tmp_path, monkeypatch, caplog
):
  caplog.set_level(logging.INFO)
  workdir = tmp_path / "run"
  workdir.mkdir()

  def saved(step):
    folder = workdir / checkpoint.DIRECTORY
    folder.mkdir(exist_ok=True)
    shutil.copytree(checkpoints / checkpoint.DIRECTORY / str(step), folder / str(step))

  def ended():
    saved(20)
    checkpoint.mark_complete(workdir, 20)

  # What the training does while the evaluation waits.
  events = iter([lambda: None, lambda: saved(5), lambda: saved(10), ended])
  monkeypatch.setattr(suite_checkpoints.time, "sleep", lambda seconds: next(events)())
  assert suite.run(of_training(cfg, datasets="stl10", checkpoint="follow"), workdir)
  assert next(events, None) is None
  assert all(written(workdir, f"step_{step}") for step in STEPS)
  assert written(workdir) == written(workdir, "step_20")
  waits = [x for x in caplog.messages if x.startswith("Waiting for")]
  assert [x.split(" checkpoint of")[0] for x in waits] == [
    "Waiting for a first",
    "Waiting for another",
    "Waiting for another",
  ]
  assert f"{workdir}, or for training_complete.json" in waits[0]


def test_a_checkpoint_that_training_deletes_meanwhile_is_passed_over(
  cfg, trained, monkeypatch, caplog
):
  at = suite_checkpoints.start.at

  def late(place, which, *args, **options):
    if which == "10":
      shutil.rmtree(trained / checkpoint.DIRECTORY / "10")
    return at(place, which, *args, **options)

  monkeypatch.setattr(suite_checkpoints.start, "at", late)
  cfg = of_training(cfg, datasets="stl10", checkpoint="all", num_shards=1)
  assert suite.run(cfg, trained)
  assert "Checkpoint 10 of" in caplog.text
  assert not written(trained, "step_10")
  assert written(trained) == written(trained, "step_20")
  assert "2 tasks are done, 1 were skipped" in suite.merge(cfg, trained)
  text = (trained / "results" / "results.csv").read_text()
  assert f"10,stl10,{TASK},,,skipped: the checkpoint was deleted" in text
  (trained / "results" / "step_5" / "stl10_zeroshot_classification.json").unlink()
  with pytest.raises(ValueError, match=f"no result for {TASK} of stl10 at .*step_5"):
    suite.merge(cfg, trained)


def test_a_damaged_checkpoint_is_an_error(cfg, trained):
  for path in (trained / checkpoint.DIRECTORY / "10" / "facts").iterdir():
    path.write_text("{")
  with pytest.raises(ValueError, match="Checkpoint 10 of .*run cannot be used: "):
    suite.run(of_training(cfg, datasets="stl10", checkpoint="all"), trained)
  assert written(trained, "step_5")


def test_checkpoints_of_another_workdir_are_measured_here(cfg, trained, tmp_path):
  other = config.InitConfig(weights=str(trained))
  cfg = dataclasses.replace(cfg, init=other)
  here = tmp_path / "here"
  assert suite.run(changed(cfg, datasets="stl10", checkpoint="all"), here)
  assert written(here) == written(here, "step_20")
  assert not (trained / "results").exists()


def test_what_cannot_be_measured_is_said_at_once(cfg, tmp_path):
  with pytest.raises(ValueError, match="has no checkpoints for eval.checkpoint="):
    suite.run(of_training(cfg, datasets="stl10", checkpoint="all"), tmp_path)


@pytest.mark.parametrize("own", [True, False])
def test_weights_of_another_architecture_are_refused(cfg, trained, own):
  cfg = of_training(cfg) if own else cfg
  model = dataclasses.replace(cfg.model, name="nano-resnet", activation=None)
  cfg = dataclasses.replace(cfg, model=model)
  workdir = trained if own else trained.parent / "new"
  with pytest.raises(ValueError, match="(?s)is not a nano-resnet:.*model.name=loaded"):
    suite.run(changed(cfg, datasets="stl10"), workdir)


@pytest.mark.parametrize(
  "number, picture, done",
  [
    (signal.SIGTERM, 1, set()),
    (signal.SIGUSR1, len(PICTURES) + 2, {("stl10", TASK)}),  # amid those of flickr30k
  ],
)
def test_a_signal_ends_a_job_amid_a_task_and_the_same_command_goes_on(
  cfg, tmp_path, monkeypatch, number, picture, done
):
  cfg = changed(cfg, datasets="stl10,flickr30k")
  notes.Diary(tmp_path, "0_of_1", jobs.flags_of(cfg)).ends()  # of other weights
  exact, calls, heard = features.decoding.exact, itertools.count(1), threading.Event()

  class Heard(measuring.StopSignal):
    def _remember(self, number, frame):
      super()._remember(number, frame)
      heard.set()

  def preempted(example):
    if next(calls) == picture:
      os.kill(os.getpid(), number)
      assert heard.wait(60)
    return exact(example)

  with monkeypatch.context() as patched:
    patched.setattr(measuring, "StopSignal", Heard)
    patched.setattr(features.decoding, "exact", preempted)
    assert launcher.run(cfg, tmp_path) == launcher.EXIT_STOPPED == 75
  assert written(tmp_path).keys() == done
  with pytest.raises(ValueError, match=r"Jobs \[0\] of 1 have not ended"):
    suite.merge(cfg, tmp_path)
  tasks = count_calls(monkeypatch, measuring._TASKS, TASK)
  assert launcher.run(cfg, tmp_path) == 0
  assert len(tasks) == 1 - len(done)
  assert len(written(tmp_path)) == 3


@pytest.mark.parametrize("fine_tuned", [True, False])
def test_a_training_is_followed_before_it_begins(
  cfg, trained, tmp_path, monkeypatch, caplog, fine_tuned
):
  caplog.set_level(logging.INFO)
  checkpoint.mark_complete(trained, 20)  # what a fine-tuning starts from has ended
  preempt = lambda seconds: os.kill(os.getpid(), signal.SIGTERM)
  monkeypatch.setattr(suite_checkpoints.time, "sleep", preempt)
  weights = str(trained) if fine_tuned else ""
  cfg = dataclasses.replace(cfg, init=config.InitConfig(weights=weights))
  cfg = changed(cfg, datasets="stl10", checkpoint="follow")
  assert launcher.run(cfg, tmp_path / "new") == launcher.EXIT_STOPPED
  assert f"Waiting for a first checkpoint of {tmp_path / 'new'}" in caplog.text
  assert not written(tmp_path / "new")
