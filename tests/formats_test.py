"""Training on files: every format the same, damage, mixtures, several processes."""

import dataclasses
import functools
import io
import itertools
import json
import os
import pathlib
import subprocess
import sys
import tarfile

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow_datasets as tfds

from rankclip_jax import checkpoint, config, plan, state, train
from rankclip_jax.data import pipeline, records
from rankclip_jax.data.source import Example
from rankclip_jax.data.tokenizer import Tokenizer
from tests.data.pictures import encoded, photograph

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
    return {"train": self._generate_examples()}

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


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_makes_the_same_batches(data, name):
  cfg = of(data[name], test="")
  expected = first_batches(of(data["csv"]))
  found = first_batches(cfg)
  if name == "tfds":  # which shuffles what it is given by the hash of its keys
    order = [plan.source_of(cfg, "train")[i].captions[0] for i in range(COUNT)]
    assert sorted(order) == sorted(caption(i) for i in range(COUNT))
    return
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


def test_training_on_files_ends_with_the_same_parameters(data, tmp_path):
  ends = {}
  for name in ("tar", "mixture"):
    workdir = tmp_path / name
    workdir.mkdir()
    assert train.run(of(data[name]), workdir)
    ends[name] = final_params(workdir, of(data[name]))
    assert (workdir / "results").is_dir()
    assert not (workdir / "bad_examples.jsonl").exists()
  jax.tree.map(np.testing.assert_array_equal, ends["tar"], ends["mixture"])


def test_what_is_held_out_may_be_of_another_format(data):
  cfg = of(data["tar"], test=data["csv"].test)
  assert len(plan.source_of(cfg, "test")) == COUNT
  assert plan.source_of(cfg, "test")[0].key == "00.jpg"


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


def test_damage_is_replaced_counted_and_listed(data, damaged, tmp_path):
  workdir = tmp_path / "run"
  workdir.mkdir()
  cfg = of(damaged, test=data["csv"].test)
  assert train.run(cfg, workdir)
  listed = (workdir / "bad_examples.jsonl").read_text().splitlines()
  reasons = {x["key"]: x["reason"] for x in map(json.loads, listed)}
  assert reasons == {
    "03.jpg": "undecodable picture",
    "04.jpg": "undecodable picture",
    "05.jpg": "missing picture",
  }
  steps = (workdir / "metrics.jsonl").read_text().splitlines()
  assert sum(x.get("replaced_examples", 0) for x in map(json.loads, steps)) >= 3


def test_too_much_damage_stops_the_run(data, damaged, tmp_path):
  cfg = of(damaged, test=data["csv"].test, max_bad_fraction=0.0)
  with pytest.raises(ValueError, match=r"max_bad_fraction=0\.0 .*bad_examples\.jsonl"):
    train.run(cfg, tmp_path)
  assert (tmp_path / "bad_examples.jsonl").is_file()


def test_damage_in_what_is_held_out_is_an_error(data, damaged, tmp_path):
  cfg = of(damaged, train=data["csv"].train, test=damaged.train)
  with pytest.raises(ValueError, match=r"0[345]\.jpg"):
    train.run(cfg, tmp_path)


SCRIPT = """
import hashlib, json, sys
import numpy as np
from absl import flags
from rankclip_jax.data import opening, pipeline
from rankclip_jax.data.tokenizer import Tokenizer

flags.FLAGS.mark_as_parsed()
spec, index, count, start = sys.argv[1], *map(int, sys.argv[2:])
source = opening.open_source("tar", spec, opening.Options())
batches = pipeline.train_batches(
  source, image_size=32, tokenizer=Tokenizer(16), augment_scale=(0.5, 1.0), flip=True,
  global_batch=8, num_steps=7, seed=1, process_index=index, process_count=count,
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
      env={**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[1])},
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
