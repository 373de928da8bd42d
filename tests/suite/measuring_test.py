"""mode=eval on named data sets: what is measured, skipped, and not done twice."""

import csv
import dataclasses
import itertools
import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from benchmarks import loopback
from rankclip_jax import inference, launcher, lock, start, suite
from rankclip_jax.data.benchmarks import opening, prompts, table
from rankclip_jax.evals import geometry, results, retrieval, zero_shot
from rankclip_jax.models import sizes
from rankclip_jax.suite import features, jobs, measuring, notes
from tests.data.benchmarks import sets
from tests.suite.runs import CAPTIONS, PICTURES, changed, count_calls, written


def test_every_data_set_is_measured_or_skipped_with_a_reason(cfg, tmp_path):
  assert launcher.run(cfg, tmp_path) == 0
  found = written(tmp_path)
  assert set(found) == {
    ("vtab/cifar10", "zeroshot_classification"),
    ("flickr30k", "zeroshot_retrieval"),
    ("flickr30k", "geometry"),
    ("stl10", "zeroshot_classification"),
  }
  (visit,) = notes.of_all(tmp_path, 1, jobs.flags_of(cfg))[0].visits
  (skip,) = visit.skipped
  assert (skip.dataset, skip.task) == ("imagenet-a", "zeroshot_classification")
  assert "prepare" in skip.reason
  extras = found["vtab/cifar10", "zeroshot_classification"][results.EXTRAS]
  assert extras["images"] == 27
  assert extras["complete"] is False  # CIFAR-10 has 10,000
  assert 0 <= extras["calibration_error"] <= 1
  assert 0 < extras["input_bound"] < 1
  assert extras["dtype"] == "float32"
  cifar = opening.open_benchmark(
    "vtab/cifar10", "test", opening.Options(data_dir=cfg.data.tfds_dir)
  )
  how = inference.load(cfg.init.weights).resizing
  expected = prompts.fingerprint(cifar.classes, cifar.templates, how)
  assert extras["prompts"] == expected
  assert {x["model"] for x in found.values()} == {"nano"}
  assert (tmp_path / "report" / "index.html").is_file()


def test_the_numbers_are_those_of_the_embeddings(cfg, tmp_path):
  suite.run(changed(cfg, datasets="stl10,flickr30k"), tmp_path)
  found = written(tmp_path)
  model = inference.load(cfg.init.weights, dtype="float32")
  grey = lambda count: [np.full((5, 7, 3), i, np.uint8) for i in range(count)]
  classes = prompts.classes_of(table.find("stl10")).names
  weights = zero_shot.classifier(model.encode_text, classes, ["a photo of a {c}."])
  expected = zero_shot.evaluate(
    model.encode_image(grey(5)), np.array([0, 3, 9, 1, 1]), weights
  )
  got = found["stl10", "zeroshot_classification"]["metrics"]
  assert got == pytest.approx(expected)
  texts = [line for each in CAPTIONS for line in each.split("\n")]
  ranks = retrieval.evaluate(
    model.encode_image(PICTURES), model.encode_text(texts), [0, 0, 1, 2, 2, 2, 3]
  )
  assert found["flickr30k", "zeroshot_retrieval"]["metrics"] == pytest.approx(ranks)
  lies = geometry.evaluate(
    model.encode_image(PICTURES), model.encode_text(["a", "c", "d", "g"])
  )
  got = found["flickr30k", "geometry"]
  assert got["metrics"] == pytest.approx(lies, rel=1e-5, abs=1e-6)
  assert got[results.EXTRAS]["pairs"] == 4


@pytest.mark.parametrize("protocol", ["sweep", "released"])
def test_a_linear_probe_learns_what_can_be_told_apart(cfg, tmp_path, protocol):
  suite.run(changed(cfg, datasets="cifar10", probe=protocol), tmp_path)
  found = written(tmp_path)["vtab/cifar10", "linear_probe"]
  extras = found[results.EXTRAS]
  assert extras["protocol"] == protocol
  assert extras["train_examples"] == extras["images"] == 27
  assert extras["train_loss"] < np.log(10) - 0.5
  if protocol == "sweep":
    assert found["metrics"]["lp_acc1"] > 0.5
    assert extras["converged"]
    assert len(extras["validation"]) == len(extras["strengths"]) == 97
  pictures = [p for p in (tmp_path / "features").iterdir() if "classifier" not in p.name]
  assert len(pictures) == (3 if protocol == "sweep" else 2)


def test_what_is_done_is_not_done_again(cfg, tmp_path, monkeypatch):
  cfg = changed(cfg, datasets="stl10")
  suite.run(cfg, tmp_path)
  (before,) = written(tmp_path).values()
  reads = []
  own = features._own_part
  monkeypatch.setattr(features, "_own_part", lambda *a: reads.append(1) or own(*a))
  done = count_calls(monkeypatch, measuring._TASKS, "zeroshot_classification")
  suite.run(cfg, tmp_path)
  assert not done
  path = tmp_path / "results" / "stl10_zeroshot_classification.json"
  path.write_text(path.read_text()[:100])  # a job killed while something wrote
  suite.run(cfg, tmp_path)
  assert len(done) == 1
  (again,) = written(tmp_path).values()
  speed = {"images_per_second": None, "input_bound": None}
  assert again[results.EXTRAS] == before[results.EXTRAS] | speed
  other = tmp_path / "prompts.txt"
  other.write_text("a drawing of a {c}\n")
  suite.run(changed(cfg, templates=str(other)), tmp_path)
  assert len(done) == 2
  assert not reads  # prompts change no picture


def test_jobs_share_the_tasks_and_are_merged_when_all_have_ended(cfg, tmp_path):
  cfg = changed(cfg, probe="sweep", num_shards=3)
  parts = [jobs.mine(changed(cfg, shard=i)) for i in range(3)]
  assert sorted(itertools.chain(*parts)) == sorted(jobs.whole(cfg))
  assert len(jobs.whole(cfg)) == 8
  suite.run(changed(cfg, shard=0), tmp_path)
  suite.run(changed(cfg, shard=2), tmp_path)
  with pytest.raises(ValueError, match=r"Jobs \[1\] of 3 have not ended"):
    suite.merge(cfg, tmp_path)
  suite.run(changed(cfg, shard=1), tmp_path)
  said = suite.merge(cfg, tmp_path)
  assert "5 tasks are done, 3 were skipped" in said  # STL-10 has no train split here
  with (tmp_path / "results" / "results.csv").open(newline="") as file:
    lines = list(csv.DictReader(file))
  (skip,) = [x for x in lines if (x["dataset"], x["task"]) == ("stl10", "linear_probe")]
  assert skip["note"].startswith("skipped: there is no split 'train'")
  (line,) = [x for x in lines if x["metric"] == "image_retrieval_recall@1"]
  result = written(tmp_path)["flickr30k", "zeroshot_retrieval"]["metrics"]
  assert float(line["value"]) == result["image_retrieval_recall@1"]
  (tmp_path / "results" / "flickr30k_zeroshot_retrieval.json").unlink()
  with pytest.raises(ValueError, match="no result for zeroshot_retrieval of flickr30k"):
    suite.merge(cfg, tmp_path)


def test_data_that_changed_are_measured_again(cfg, tmp_path):
  folder = sets.write_class_folders(tmp_path / "mine", {"cat": 2, "dog": 4})
  (tmp_path / "prompts.txt").write_text("a {c}\n")
  cfg = changed(cfg, datasets=str(folder), templates=str(tmp_path / "prompts.txt"))
  cfg = changed(cfg, predictions=True)

  def labels(workdir):
    suite.run(cfg, workdir)
    name = "mine_zeroshot_classification.npz"
    with np.load(workdir / "results" / "predictions" / name) as file:
      return file["keys"].tolist(), file["labels"].tolist()

  run = tmp_path / "run"
  assert labels(run)[1] == [0, 0, 1, 1, 1, 1]
  (folder / "test" / "cat").rename(folder / "test" / "zebra")
  assert labels(run) == labels(tmp_path / "fresh")
  assert labels(run)[1] == [0, 0, 0, 0, 1, 1]
  (folder / "test" / "dog" / "002.png").write_bytes(b"none")
  with pytest.raises(ValueError, match=r"002\.png"):
    suite.run(cfg, run)


def test_probes_notice_that_training_data_changed(cfg, tmp_path, monkeypatch):
  names, folder = ("a", "b"), tmp_path / "mine"
  sets.write_tars(folder, [sets.labelled(0, 1)], names=names, templates=["a {c}"])
  sets.write_tars(folder, [sets.labelled(0, 1, 1)], split="train")
  cfg = changed(cfg, datasets=str(folder), probe="released")
  suite.run(cfg, tmp_path / "run")
  done = count_calls(monkeypatch, measuring._TASKS, "linear_probe")
  suite.run(cfg, tmp_path / "run")
  assert not done
  sets.write_tars(folder, [sets.labelled(1, 0, 0)], split="train")
  suite.run(cfg, tmp_path / "run")
  assert len(done) == 1


def test_a_folder_in_the_place_of_a_known_set_is_probed_with_its_own(cfg, tmp_path):
  stl10 = dict.fromkeys(prompts.classes_of(table.find("stl10")).labels, 1)
  root = tmp_path / "folders"
  for split in ("train", "test"):
    sets.write_class_folders(root / "stl10", stl10, split)
  known = pathlib.Path(cfg.eval.folder_dir) / "wds_stl10"
  shutil.copytree(known, root / "wds_stl10")
  names = list(stl10)
  sets.write_tars(root / "wds_stl10", [sets.labelled(*[1] * 30)], split="train")
  assert len(names) == 10
  cfg = changed(cfg, folder_dir=str(root), datasets=str(root / "stl10"), few_shot=(1,))
  suite.run(changed(cfg, few_shot_seeds=1), tmp_path / "run")
  found = written(tmp_path / "run")["stl10", "few_shot_probe"][results.EXTRAS]
  assert found["train_examples"] == 10


def test_bfloat16_and_float32_share_nothing(cfg):
  weights = start.read(pathlib.Path(cfg.init.weights))
  half = dataclasses.replace(weights, size=sizes.changed(weights.size, dtype="bfloat16"))
  digests = [features.of_model(inference.Model(each)) for each in (weights, half)]
  assert digests[0] != digests[1]


def test_embeddings_without_a_direction_are_refused(cfg, tmp_path, monkeypatch):
  encode = inference.Model.encode_pictures
  nothing = lambda *args, **options: encode(*args, **options) * [[0], [1], [1], [1], [1]]
  monkeypatch.setattr(inference.Model, "encode_pictures", nothing)
  message = "stl10@test: .*above 0, got 0 for 's0000000', the first of 1 of 5"
  with pytest.raises(ValueError, match=message):
    suite.run(changed(cfg, datasets="stl10"), tmp_path)


def test_a_result_without_metrics_is_made_again(cfg, tmp_path):
  cfg = changed(cfg, datasets="stl10")
  suite.run(cfg, tmp_path)
  path = tmp_path / "results" / "stl10_zeroshot_classification.json"
  record = json.loads(path.read_text())
  path.write_text(json.dumps(record | {"metrics": None}))
  with pytest.raises(ValueError, match=r"expected metrics by name, got None: remove it"):
    suite.merge(cfg, tmp_path)
  suite.run(cfg, tmp_path)
  assert json.loads(path.read_text())["metrics"] == record["metrics"]


def test_a_damaged_picture_is_an_error_that_names_it(cfg, tmp_path):
  folder = sets.write_class_folders(tmp_path / "mine", {"cat": 2, "dog": 2})
  (folder / "test" / "dog" / "003.png").write_bytes(b"none")
  prompts_file = tmp_path / "prompts.txt"
  prompts_file.write_text("a {c}\n")
  with pytest.raises(ValueError, match=r"003\.png"):
    suite.run(changed(cfg, datasets=str(folder), templates=str(prompts_file)), tmp_path)
  assert not written(tmp_path)


def processes(cfg, workdir: pathlib.Path, count: int, *of_last: str) -> list[str]:
  """The same by `main.py`, as so many processes with two devices in all.

  Args:
    cfg: see `cfg`.
    workdir: of the run.
    count: of processes.
    of_last: more flags of the last one, with which all are to fail.

  Returns:
    What they said.
  """
  flags = [
    "--config=configs/openmoji.py", f"--workdir={workdir}", "--config.mode=eval",
    f"--config.init.weights={cfg.init.weights}", "--config.model.name=loaded",
    "--config.model.dtype=float32", f"--config.data.tfds_dir={cfg.data.tfds_dir}",
    f"--config.eval.folder_dir={cfg.eval.folder_dir}",
    "--config.eval.datasets=cifar10,flickr30k", "--config.eval.batch_size=16",
    "--config.eval.predictions=true",
  ]  # fmt: skip
  own = loopback.flags(count)
  own[-1] += of_last
  running = [
    subprocess.Popen(
      [sys.executable, "main.py", *flags, *more],
      cwd=pathlib.Path(__file__).parents[2],
      env={**os.environ, "JAX_NUM_CPU_DEVICES": str(2 // count)},
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for more in own
  ]
  try:
    outputs = [process.communicate(timeout=240)[0] for process in running]
  finally:
    for process in running:
      process.kill()
  assert all(bool(process.returncode) == bool(of_last) for process in running), outputs
  return outputs


def test_two_processes_measure_what_one_does(cfg, tmp_path):
  one, two = tmp_path / "one", tmp_path / "two"
  processes(cfg, one, 1)
  processes(cfg, two, 2)
  assert written(one).keys() == written(two).keys()
  for name, expected in written(one).items():
    got = written(two)[name]
    assert got["metrics"] == pytest.approx(expected["metrics"], abs=1e-6)
    assert got[results.EXTRAS]["images"] == expected[results.EXTRAS]["images"]
  names = lambda folder: sorted(p.name for p in folder.rglob("*.npz"))
  assert names(one) == names(two)
  note = notes.read(two, "0_of_1")
  assert note is not None
  assert note.ended
  assert not note.visits[0].skipped


def test_what_one_process_lacks_stops_all_of_them(cfg, tmp_path):
  elsewhere = f"--config.data.tfds_dir={tmp_path / 'none'}"
  outputs = processes(cfg, tmp_path / "run", 2, elsewhere)
  for said in outputs:
    assert "process 1 does not find it, and process 0 does" in said


def test_jobs_of_one_workdir_take_one_lock_a_shard(cfg, tmp_path):
  cfg = changed(cfg, datasets="stl10,flickr30k", num_shards=2)
  with lock.held(tmp_path / "results" / "locks" / "0_of_2.json", "Another", "wait."):
    with pytest.raises(ValueError, match=r"Job 0 of 2 on .* runs already .*eval.shard"):
      suite.run(cfg, tmp_path)
    assert suite.run(changed(cfg, shard=1), tmp_path)
    with pytest.raises(ValueError, match=r"Job 0 of 2 on .*num_shards=2 here too"):
      suite.run(changed(cfg, shard=0, num_shards=1), tmp_path)
  assert suite.run(changed(cfg, shard=0, num_shards=1), tmp_path)
