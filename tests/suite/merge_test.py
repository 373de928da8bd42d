"""What is merged: what the jobs ended with, and nothing else."""

import csv
import dataclasses
import shutil

import jax
import pytest

from rankclip_jax import checkpoint, config, interop, suite
from rankclip_jax.suite import jobs, notes
from tests.inference_test import CARD, SIZE, drawn
from tests.suite.runs import STEPS, changed, of_training

TASK = "zeroshot_classification"


def lines(workdir):
  with (workdir / "results" / "results.csv").open(newline="") as file:
    return list(csv.DictReader(file))


@pytest.mark.parametrize(
  "name, fields",
  [
    ("eval.probe", {"probe": "released"}),
    ("eval.few_shot", {"few_shot": (1,)}),
    ("eval.checkpoint", {"checkpoint": "all"}),
    ("eval.checkpoint", {"checkpoint": "7"}),
    ("eval.datasets", {"datasets": "stl10,flickr30k"}),
    ("eval.templates", {"templates": "prompts.txt"}),
    ("init.weights", {}),
  ],
)
def test_other_flags_than_evaluated_are_refused(cfg, tmp_path, monkeypatch, name, fields):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "prompts.txt").write_text("a {c}\n")
  cfg = changed(cfg, datasets="stl10")
  notes.Diary(tmp_path, "0_of_1", jobs.flags_of(cfg)).ends()
  if not fields:
    cfg = dataclasses.replace(cfg, init=config.InitConfig(weights="elsewhere"))
  with pytest.raises(ValueError, match=f"(?s)flags of its jobs:\n  {name}: job 0 had '"):
    suite.merge(changed(cfg, **fields), tmp_path)


def test_jobs_of_other_weights_are_refused(cfg, tmp_path, exported):
  weights = shutil.copytree(exported, tmp_path / "weights")
  cfg = dataclasses.replace(cfg, init=config.InitConfig(weights=str(weights)))
  cfg, run = changed(cfg, datasets="stl10,flickr30k", num_shards=2), tmp_path / "run"
  for shard in (0, 1):
    suite.run(changed(cfg, shard=shard), run)
  assert "3 tasks are done" in suite.merge(cfg, run)
  shutil.rmtree(weights)
  other = jax.tree.map(lambda x: x + 0.01, drawn())
  interop.write_open_clip(weights, other, SIZE, CARD)
  suite.run(changed(cfg, shard=0), run)
  with pytest.raises(ValueError, match=r"Jobs \[1\] of 2 measured other weights, or in"):
    suite.merge(cfg, run)
  suite.run(changed(cfg, shard=1), run)
  assert "3 tasks are done" in suite.merge(cfg, run)
  # Somebody measured with other prompts since, in a job of its own.
  (tmp_path / "prompts.txt").write_text("a {c}\n")
  own = {"templates": str(tmp_path / "prompts.txt"), "num_shards": 1}
  suite.run(changed(cfg, **own), run)
  with pytest.raises(ValueError, match=r"stl10_.*json is of other weights, data or prom"):
    suite.merge(cfg, run)


def test_every_step_has_its_skips_and_needs_its_results(cfg, trained):
  cfg = of_training(cfg, datasets="stl10,imagenet-a", checkpoint="all")
  suite.run(cfg, trained)
  assert "3 tasks are done, 3 were skipped" in suite.merge(cfg, trained)
  skips = [x for x in lines(trained) if x["note"]]
  assert [x["step"] for x in skips] == [str(step) for step in STEPS]
  assert {x["dataset"] for x in skips} == {"imagenet-a"}
  shutil.rmtree(trained / "results" / "step_10")
  with pytest.raises(ValueError, match="no result for .* of stl10 at .*step_10"):
    suite.merge(cfg, trained)


def test_a_set_that_appears_between_checkpoints(cfg, trained, tmp_path, monkeypatch):
  folders, away = tmp_path / "folders", tmp_path / "away"
  shutil.copytree(cfg.eval.folder_dir, folders)
  (folders / "wds_stl10").rename(away)
  load = suite.checkpoints.load

  def late(chosen, *args):
    if chosen.step == STEPS[-1]:
      away.rename(folders / "wds_stl10")
    return load(chosen, *args)

  monkeypatch.setattr(suite.checkpoints, "load", late)
  cfg = changed(cfg, folder_dir=str(folders))
  cfg = of_training(cfg, datasets="stl10", checkpoint="all")
  suite.run(cfg, trained)
  assert "1 tasks are done, 2 were skipped" in suite.merge(cfg, trained)


def test_what_was_measured_before_training_deleted_it_is_merged(cfg, trained):
  cfg = of_training(cfg, datasets="stl10,imagenet-a", checkpoint="all", num_shards=2)
  suite.run(changed(cfg, shard=0), trained)
  shutil.rmtree(trained / checkpoint.DIRECTORY / "5")
  for shard in (0, 1):
    suite.run(changed(cfg, shard=shard), trained)
  assert "3 tasks are done, 3 were skipped" in suite.merge(cfg, trained)
  notes_of_5 = [x["note"] for x in lines(trained) if x["step"] == "5" and x["note"]]
  assert notes_of_5 == ["skipped: the checkpoint was deleted"]


def test_a_checkpoint_that_one_job_has_not_seen_is_refused(cfg, trained):
  cfg = of_training(cfg, datasets="stl10,imagenet-a", checkpoint="all", num_shards=2)
  hidden = trained / "hidden"
  (trained / checkpoint.DIRECTORY / "20").rename(hidden)
  suite.run(changed(cfg, shard=1), trained)
  hidden.rename(trained / checkpoint.DIRECTORY / "20")
  suite.run(changed(cfg, shard=0), trained)
  with pytest.raises(ValueError, match=r"Jobs \[1\] of 2 have not measured .* step 20"):
    suite.merge(cfg, trained)


def test_the_newest_checkpoint_is_the_same_for_all_jobs(cfg, trained):
  cfg = of_training(cfg, datasets="stl10,imagenet-a", num_shards=2)
  suite.run(changed(cfg, shard=0), trained)
  shutil.rmtree(trained / checkpoint.DIRECTORY / "20")
  suite.run(changed(cfg, shard=1), trained)
  with pytest.raises(ValueError, match=r"measured several checkpoints, \[10, 20\]"):
    suite.merge(cfg, trained)
  suite.run(changed(cfg, shard=0), trained)
  assert "1 tasks are done, 1 were skipped" in suite.merge(cfg, trained)


@pytest.mark.parametrize("content", ["{", "[]", '{"flags": {}, "ended": true}', "\xff"])
def test_a_damaged_note_is_named_and_made_again(cfg, tmp_path, caplog, content):
  cfg = changed(cfg, datasets="stl10")
  path = notes.path_of(tmp_path, "0_of_1")
  path.parent.mkdir(parents=True)
  path.write_bytes(content.encode("latin-1"))
  with pytest.raises(ValueError, match=f"{path} is no note of a job .* remove it, and"):
    suite.merge(cfg, tmp_path)
  notes.Diary(tmp_path, "0_of_1", jobs.flags_of(cfg)).ends()
  assert "is no note of a job" in caplog.text
  assert notes.read(tmp_path, "0_of_1") == notes.Note(jobs.flags_of(cfg), ended=True)
