"""Training on files: every format the same, damage, mixtures, several processes."""

import dataclasses
import functools
import io
import itertools
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
import tarfile

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow_datasets as tfds

from benchmarks import loopback
from rankclip_jax import checkpoint, config, plan, state, train
from rankclip_jax.data import pipeline, records
from rankclip_jax.data.source import Example
from rankclip_jax.data.tokenizer import Tokenizer
from tests.data.pictures import encoded, photograph

ROOT = pathlib.Path(__file__).parents[1]
COUNT, BATCH = 24, 8
FORMATS = ("csv", "tar", "parquet", "array_record", "tfds", "mixture")
CONFIG = config.Config(
  data=config.DataConfig(batch_size=BATCH, crop_scale=(0.5, 1.0), flip=True),
  model=config.ModelConfig(name="nano", dtype="float32"),
  objective=config.ObjectiveConfig(name="clip"),
  optim=config.OptimConfig(epochs=1, eps=1e-5),
  eval=config.EvalConfig(every_epochs=0, batch_size=8),
)


@functools.cache
def picture(number: int) -> bytes:
  """A part of the cat, as JPEG."""
  left, top = 7 * number % 200, 5 * number % 150
  return encoded(photograph().crop((left, top, left + 180, top + 150)))


def caption(number: int) -> str:
  return f"part {number} of a cat"


class Cats(tfds.core.GeneratorBasedBuilder):
  """The examples as a TFDS data set."""

  VERSION = tfds.core.Version("1.0.0")

  def _info(self):
    features = {"image": tfds.features.Image(), "caption": tfds.features.Text()}
    return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

  def _split_generators(self, dl_manager):
    return {split: self._generate_examples() for split in ("train", "test")}

  def _generate_examples(self):
    for i in range(COUNT):
      yield i, {"image": io.BytesIO(picture(i)), "caption": caption(i)}


def write_csv(folder: pathlib.Path, numbers=range(COUNT)) -> str:
  for i in numbers:
    (folder / f"{i:02}.jpg").write_bytes(picture(i))
  rows = "".join(f"{i:02}.jpg\t{caption(i)}\n" for i in numbers)
  path = folder / "pairs.tsv"
  path.write_text("filepath\ttitle\n" + rows)
  return str(path)


def write_tars(folder: pathlib.Path, numbers=range(COUNT)) -> str:
  for shard in (0, 1):
    with tarfile.open(folder / f"0000{shard}.tar", "w") as tar:
      for i in numbers[shard * len(numbers) // 2 : (shard + 1) * len(numbers) // 2]:
        for ending, data in (("jpg", picture(i)), ("txt", caption(i).encode())):
          info = tarfile.TarInfo(f"{i:09}.{ending}")
          info.size = len(data)
          tar.addfile(info, io.BytesIO(data))
  return str(folder / "{00000..00001}.tar")


def write_parquet(folder: pathlib.Path, numbers=range(COUNT)) -> str:
  path = folder / "pairs.parquet"
  table = pa.table(
    {"image": [picture(i) for i in numbers], "caption": [caption(i) for i in numbers]}
  )
  pq.write_table(table, path, row_group_size=5)
  return str(path)


def write_array_record(folder: pathlib.Path, numbers=range(COUNT)) -> str:
  path = folder / "pairs.array_record"
  examples = (Example(f"{i}", picture(i), (caption(i),)) for i in numbers)
  records.write_array_record(path, examples)
  return str(path)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> dict[str, config.DataConfig]:
  """The same examples in every format, in one order where the format has one."""
  root = tmp_path_factory.mktemp("data")
  folders = {name: root / name for name in (*FORMATS, "half", "rest")}
  for folder in folders.values():
    folder.mkdir()
  half, rest = range(COUNT // 2), range(COUNT // 2, COUNT)
  builder = Cats(data_dir=str(folders["tfds"]), file_format="array_record")
  builder.download_and_prepare()
  specs = {
    "csv": write_csv(folders["csv"]),
    "tar": write_tars(folders["tar"]),
    "parquet": write_parquet(folders["parquet"]),
    "array_record": write_array_record(folders["array_record"]),
    "tfds": "cats",
    "mixture": f"{write_tars(folders['half'], half)}::"
    + write_parquet(folders["rest"], rest),
  }
  return {
    name: dataclasses.replace(
      CONFIG.data,
      source=name,
      train=spec,
      test=spec,
      tfds_dir=str(folders["tfds"]) if name == "tfds" else "",
    )
    for name, spec in specs.items()
  }


def of(data: config.DataConfig, **changes) -> config.Config:
  return dataclasses.replace(CONFIG, data=dataclasses.replace(data, **changes))


def first_batches(cfg: config.Config) -> list[dict[str, np.ndarray]]:
  p = plan.make(cfg)
  batches = list(plan.batches_of(cfg, p, 0))
  assert len(batches) == COUNT // BATCH
  return batches


@pytest.fixture(scope="module")
def in_order_of_tfds(data, tmp_path_factory) -> config.DataConfig:
  """The TSV in the order of TFDS, which sorts by the hash of keys."""
  source = plan.source_of(of(data["tfds"]), "train")
  numbers = [int(source[i].captions[0].split()[1]) for i in range(COUNT)]
  assert sorted(numbers) == list(range(COUNT))
  assert numbers != sorted(numbers)
  path = write_csv(tmp_path_factory.mktemp("ordered"), numbers)
  return dataclasses.replace(data["csv"], train=path, test=path)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_makes_the_same_batches(data, in_order_of_tfds, name):
  plain = in_order_of_tfds if name == "tfds" else data["csv"]
  expected, found = first_batches(of(plain)), first_batches(of(data[name], test=""))
  for one, other in zip(found, expected, strict=True):
    for key in ("image", "tokens", "id", "replaced"):
      np.testing.assert_array_equal(one[key], other[key])


def final_params(workdir: pathlib.Path, cfg: config.Config):
  p = plan.make(cfg)
  saved = checkpoint.Checkpoints(workdir, read_only=True)
  step, _ = saved.facts("latest")
  assert step == COUNT // BATCH
  shapes = state.abstract(p.size, p.objective, p.optimizer, p.mesh).params
  return saved.restore_params(step, shapes)


def trained(workdir: pathlib.Path, cfg: config.Config):
  workdir.mkdir(exist_ok=True)
  assert train.run(cfg, workdir)
  return final_params(workdir, cfg)


def test_training_on_files_ends_with_the_same_parameters(
  data, in_order_of_tfds, tmp_path
):
  ends = {name: trained(tmp_path / name, of(data[name])) for name in FORMATS}
  ends["ordered"] = trained(tmp_path / "ordered", of(in_order_of_tfds))
  for name in FORMATS:
    expected = ends["ordered" if name == "tfds" else "csv"]
    jax.tree.map(np.testing.assert_array_equal, ends[name], expected)
    assert (tmp_path / name / "results").is_dir()
    assert not (tmp_path / name / "bad_examples.jsonl").exists()
  scale = lambda name: ends[name]["text"]["projection"]["kernel"]
  assert not np.array_equal(scale("tfds"), scale("csv"))  # the order matters


def test_what_is_held_out_may_be_of_another_format(data):
  cfg = of(data["tar"], test=data["csv"].test)
  assert len(plan.source_of(cfg, "test")) == COUNT
  assert plan.source_of(cfg, "test")[0].key == "00.jpg"


def test_the_command_of_the_page_trains(tmp_path):
  """docs/data.md's first, with a smaller model, on files of these names."""
  page = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
  (command,) = re.findall(r"python (main\.py .*data\.source=tar.*)", page)
  (tmp_path / "cc3m").mkdir()
  write_tars(tmp_path / "cc3m")
  (tmp_path / "cc3m" / "00000.tar").rename(tmp_path / "cc3m" / "00331.tar")
  for i in range(331):
    (tmp_path / "cc3m" / f"{i:05}.tar").write_bytes(
      (tmp_path / "cc3m" / "00331.tar").read_bytes()
    )
  held_out = pathlib.Path(write_csv(tmp_path, range(8)))
  held_out.rename(tmp_path / "cc3m_val.csv")
  small = "--config.model.name=nano --config.data.batch_size=1024 --config.optim.epochs=1"
  small += " --config.optim.warmup_steps=1"
  flags = shlex.split(command.replace("main.py", str(ROOT / "main.py")))
  flags = [x.replace("configs/", f"{ROOT}/configs/") for x in flags]
  done = subprocess.run(
    [sys.executable, *flags, *small.split()],
    cwd=tmp_path,
    env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "1"},
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  assert "on 3984 pairs of tar" in done.stdout
  assert (tmp_path / "runs" / "cc3m" / "report" / "index.html").is_file()


def test_the_built_in_data_reads_no_files():
  with pytest.raises(ValueError, match=r"data\.train is given.*data\.source=tar"):
    plan.source_of(of(CONFIG.data, train="mine.tsv"), "train")


@pytest.fixture
def damaged(tmp_path):
  """A TSV of which two pictures are cut short and one is missing."""
  folder = tmp_path / "damaged"
  folder.mkdir()
  path = write_csv(folder)
  for i in (3, 4):
    (folder / f"{i:02}.jpg").write_bytes(picture(i)[:2000])
  (folder / "05.jpg").unlink()
  return dataclasses.replace(CONFIG.data, source="csv", train=path)


@pytest.mark.parametrize("workers", [0, 2])
def test_damage_is_replaced_counted_and_listed_once(data, damaged, tmp_path, workers):
  cfg = of(damaged, test=data["csv"].test, num_workers=workers)
  cfg = dataclasses.replace(cfg, optim=dataclasses.replace(CONFIG.optim, epochs=2))
  assert train.run(cfg, tmp_path)
  listed = (tmp_path / "bad_examples.jsonl").read_text().splitlines()
  reasons = [(x["key"], x["reason"]) for x in map(json.loads, listed)]
  assert sorted(reasons) == [
    ("03.jpg", "undecodable picture"),
    ("04.jpg", "undecodable picture"),
    ("05.jpg", "missing picture"),
  ]
  steps = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
  p = plan.make(cfg)
  expected = [int(b["replaced"].sum()) for b in plan.batches_of(cfg, p, 0, str)]
  assert sum(expected) >= 6  # each of the three, in each epoch
  assert [x["replaced_examples"] for x in steps if "train/loss" in x] == expected


def test_too_much_damage_stops_the_run(data, damaged, tmp_path):
  cfg = of(damaged, test=data["csv"].test, max_bad_fraction=0.0)
  with pytest.raises(ValueError, match=r"max_bad_fraction=0\.0 .*bad_examples\.jsonl"):
    train.run(cfg, tmp_path)
  assert (tmp_path / "bad_examples.jsonl").is_file()


def test_a_failure_of_the_data_loses_no_step(data, tmp_path, monkeypatch):
  """A disk that goes, say: what was learnt is saved, and the same command goes on."""
  cfg = of(data["csv"])
  whole = trained(tmp_path / "whole", cfg)
  batches_of = train.plans.batches_of

  def failing(*args):
    yield from itertools.islice(batches_of(*args), 2)
    raise OSError("the disk is gone")

  with monkeypatch.context() as patch:
    patch.setattr(train.plans, "batches_of", failing)
    with pytest.raises(OSError, match="the disk is gone"):
      train.run(cfg, tmp_path / "run")
  saved = checkpoint.of_run(tmp_path / "run")
  assert max(saved.steps()) == 2
  assert saved.facts("latest")[1]["examples"] == {"read": 16, "bad": 0}
  saved.close()
  jax.tree.map(np.testing.assert_array_equal, trained(tmp_path / "run", cfg), whole)


def test_lost_shards_stop_the_run_before_it_begins(data, tmp_path):
  path = write_tars(tmp_path)
  (tmp_path / "00001.tar").write_bytes(b"")
  cfg = of(data["tar"], train=path, test=data["csv"].test, max_bad_fraction=0.0)
  with pytest.raises(ValueError, match=r"About 12 examples were lost .*00001\.tar"):
    train.run(cfg, tmp_path)
  assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_damage_in_what_is_held_out_is_an_error_before_any_step(data, damaged, tmp_path):
  cfg = of(damaged, train=data["csv"].train, test=damaged.train)
  (pathlib.Path(damaged.train).parent / "05.jpg").write_bytes(picture(5))
  with pytest.raises(ValueError, match=r"'03\.jpg'.*cannot be used"):
    train.run(cfg, tmp_path)
  assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_a_run_goes_on_with_data_that_moved_and_not_with_other_data(data, tmp_path):
  for folder in ("here", "there"):
    (tmp_path / folder).mkdir()
  here, there = (write_tars(tmp_path / folder) for folder in ("here", "there"))
  cfg = of(data["tar"], train=here)
  trained(tmp_path / "run", cfg)
  assert train.run(of(data["tar"], train=there), tmp_path / "run")
  with tarfile.open(tmp_path / "there" / "00001.tar", "a") as tar:
    tar.addfile(tarfile.TarInfo("more.txt"))
  with pytest.raises(ValueError, match=r"24 examples in 2 files, now there are 25"):
    train.run(of(data["tar"], train=there), tmp_path / "run")
  write_tars(tmp_path / "there", [*range(1, COUNT), 0])
  with pytest.raises(ValueError, match="some have other names or contents"):
    train.run(of(data["tar"], train=there), tmp_path / "run")


def processes(
  workdir: pathlib.Path, trains: list[str], tests: str | list[str], *flags: str
):
  """`main.py` as one process for each of `trains`; their exit codes and outputs."""
  tests = [tests] * len(trains) if isinstance(tests, str) else tests
  own = loopback.flags(len(trains))
  running = [
    subprocess.Popen(
      [
        sys.executable, "main.py", "--config=configs/openmoji.py", f"--workdir={workdir}",
        "--config.model.name=nano", "--config.objective.name=clip",
        "--config.data.source=csv", f"--config.data.train={path}",
        f"--config.data.test={tests[i]}", "--config.data.batch_size=8",
        *own[i], *flags,
      ],
      cwd=ROOT,
      env={**os.environ, "JAX_NUM_CPU_DEVICES": "1"},
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for i, path in enumerate(trains)
  ]  # fmt: skip
  try:
    outputs = [process.communicate(timeout=240)[0] for process in running]
  finally:
    for process in running:
      process.kill()
  return [process.returncode for process in running], outputs


def test_processes_stop_together_when_too_much_is_bad(data, damaged, tmp_path):
  codes, outputs = processes(
    tmp_path, [damaged.train] * 2, data["csv"].test, "--config.data.max_bad_fraction=0"
  )
  assert codes == [1, 1], outputs
  for output in outputs:
    assert "data.max_bad_fraction=0.0 allows 0.0%" in output
    assert "Traceback" not in output


def test_no_process_waits_for_one_whose_held_out_data_is_damaged(data, damaged, tmp_path):
  codes, outputs = processes(
    tmp_path, [data["csv"].train] * 2, [data["csv"].test, damaged.train]
  )
  assert codes == [1, 1], outputs
  assert "Process 1 failed; its own message says why" in outputs[0]
  assert "05.jpg" in outputs[1]


def test_processes_with_other_data_do_not_train(data, tmp_path):
  here = tmp_path / "here"
  here.mkdir()
  reversed_ = write_csv(here, range(COUNT - 1, -1, -1))
  codes, outputs = processes(tmp_path, [data["csv"].train, reversed_], data["csv"].test)
  assert codes == [1, 1], outputs
  for output in outputs:
    assert "Process 1 has other training data than process 0" in output


def test_no_process_waits_for_one_whose_data_fails(data, damaged, tmp_path):
  gone = tmp_path / "gone"
  gone.mkdir()
  bad = write_csv(gone)  # the same list
  for path in gone.glob("*.jpg"):
    path.unlink()
  codes, outputs = processes(tmp_path, [data["csv"].train, bad], data["csv"].test)
  assert codes == [1, 1], outputs
  assert "Process 1 could not read its data" in outputs[0]
  assert "201 examples in a row could not be used" in outputs[1]
  for output in outputs:
    assert "Traceback" not in output


SCRIPT = """
import hashlib, json, sys
import numpy as np
from absl import flags
from rankclip_jax.data import opening, pipeline
from rankclip_jax.data.tokenizer import Tokenizer

flags.FLAGS.mark_as_parsed()
spec, index, count, start = sys.argv[1], *map(int, sys.argv[2:])
source = opening.open_source("tar", spec, opening.Options())
own = 8 // count
batches = pipeline.train_batches(
  source, image_size=32, tokenizer=Tokenizer(16), augment_scale=(0.5, 1.0), flip=True,
  global_batch=8, num_steps=7, seed=1, rows=range(index * own, (index + 1) * own),
  start_step=start, num_threads=2, on_bad=lambda bad: None,
)
for batch in batches:
  rows = zip(batch["id"], batch["image"], batch["tokens"], strict=True)
  digest = lambda x, y: hashlib.sha256(x.tobytes() + y.tobytes()).hexdigest()
  print(json.dumps([[int(i), digest(image, tokens)] for i, image, tokens in rows]))
"""


def shares(spec: str, processes: int, start: int = 0) -> list[list]:
  """The global batches of steps `start`.. as several processes make them."""
  running = [
    subprocess.Popen(
      [sys.executable, "-c", SCRIPT, spec, str(i), str(processes), str(start)],
      stdout=subprocess.PIPE,
      text=True,
      env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    for i in range(processes)
  ]
  outputs = [process.communicate(timeout=120)[0] for process in running]
  assert not any(process.returncode for process in running)
  steps = [[json.loads(line) for line in output.splitlines()] for output in outputs]
  return [list(itertools.chain(*parts)) for parts in zip(*steps, strict=True)]


def test_processes_share_every_batch(data, tmp_path):
  """Real processes: any number of them, from any step."""
  spec = write_tars(tmp_path)
  whole = shares(spec, 1)
  assert len(whole) == 7
  for epoch in (whole[:3], whole[3:6]):
    assert sorted(i for batch in epoch for i, _ in batch) == list(range(COUNT))
  assert shares(spec, 2, start=2) == whole[2:]
  assert shares(spec, 4, start=5) == whole[5:]


def test_the_middle_of_ten_million_examples_is_as_near_as_the_beginning():
  """Nothing is read to get there (benchmarks/input.py --resume has the seconds)."""

  class Many:
    reads = 0

    def __len__(self):
      return 10_000_000

    def __getitem__(self, index):
      Many.reads += 1
      return Example(str(index), picture(index % COUNT), (caption(index),))

  batches = pipeline.train_batches(
    Many(),
    image_size=32,
    tokenizer=Tokenizer(16),
    augment_scale=None,
    global_batch=8,
    num_steps=10**7,
    seed=0,
    start_step=3_456_789,
    num_threads=0,
  )
  assert len(set(next(batches)["id"].tolist())) == 8
  assert Many.reads == 8
