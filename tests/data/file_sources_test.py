"""What CSV, parquet and tar have in common."""

import concurrent.futures
import contextlib
import csv
import dataclasses
import glob
import io
import os
import pathlib
import pickle
import shutil
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rankclip_jax.data import csv_rows, csv_source, parquet_source, pipeline, tar_index
from rankclip_jax.data.csv_source import CsvSource
from rankclip_jax.data.order import Concatenated
from rankclip_jax.data.parquet_source import ParquetSource
from rankclip_jax.data.source import BadExample, Shard, identity_of
from rankclip_jax.data.tar_source import TarSource
from rankclip_jax.data.tokenizer import Tokenizer
from tests.data import examples, tars
from tests.data.pictures import encoded

COLOURS = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]
PICTURES = [encoded(np.full((4, 4, 3), c, np.uint8), "PNG") for c in COLOURS]


def captions(numbers: Sequence[int]) -> list[str]:
  return [f"{i},\nand ü" for i in numbers]


def as_csv(numbers: Sequence[int]) -> bytes:
  out = io.StringIO()
  rows = zip([f"{i % 3}.png" for i in numbers], captions(numbers), strict=True)
  csv.writer(out, lineterminator="\n").writerows([("image", "caption"), *rows])
  return out.getvalue().encode()


def as_parquet(numbers: Sequence[int]) -> bytes:
  columns = {"image": [PICTURES[i % 3] for i in numbers], "caption": captions(numbers)}
  pq.write_table(pa.table(columns), out := io.BytesIO(), row_group_size=3)
  return out.getvalue()


def as_tar(numbers: Sequence[int]) -> bytes:
  pairs = zip(numbers, captions(numbers), strict=True)
  members = [
    member
    for i, text in pairs
    for member in ((f"{i}.png", PICTURES[i % 3]), (f"{i}.txt", text.encode()))
  ]
  return tars.tar(members)


@dataclasses.dataclass(frozen=True)
class Format:
  """A format of files.

  Attributes:
    source: opens them.
    encode: makes one.
    making: what makes an index.
    index: name of the index of a file.
    absent: what is said of a file that is not there.
  """

  source: Callable
  encode: Callable[[Sequence[int]], bytes]
  making: tuple[Any, str]
  index: str
  absent: str


FORMATS = {
  "csv": Format(
    *(CsvSource, as_csv, (csv_rows, "find"), ".{}.index"),
    "There is no file .*/nothing.csv; give a CSV or TSV",
  ),
  "parquet": Format(
    *(ParquetSource, as_parquet, (parquet_source, "_open"), ".{}.index"),
    "There is no file .*/nothing.parquet; give parquet files",
  ),
  "tar": Format(
    *(TarSource, as_tar, (tar_index, "build"), "{}.index"),
    "1 of . tars cannot be opened: .*/nothing.tar",
  ),
}


@pytest.fixture(params=FORMATS)
def kind(request, monkeypatch):
  """A format's name. Small files have indices too."""
  monkeypatch.setattr(csv_source, "_CACHED_FROM", 0)
  monkeypatch.setattr(parquet_source, "_CACHED_FROM", 0)
  return request.param


@pytest.fixture
def here(tmp_path):
  """A folder with the pictures that CSVs name."""
  for i, picture in enumerate(PICTURES):
    examples.put(tmp_path / f"{i}.png", picture)
  return str(tmp_path)


@pytest.fixture
def elsewhere(remote):
  """Another one, in memory."""
  for i, picture in enumerate(PICTURES):
    examples.put(f"{remote}/{i}.png", picture)
  return remote


@pytest.fixture(params=["here", "elsewhere"])
def folder(request):
  return request.getfixturevalue(request.param)


def write(kind: str, folder: str, name: str, numbers: Sequence[int]) -> str:
  return examples.put(f"{folder}/{name}.{kind}", FORMATS[kind].encode(numbers))


def opened(kind: str, spec: str, **options):
  return FORMATS[kind].source(spec, **options)


def seen(source):
  return examples.outcomes(source, "image", "captions")


def expected(numbers: Sequence[int]):
  return [
    (PICTURES[i % 3], (text,)) for i, text in zip(numbers, captions(numbers), strict=True)
  ]


def unmade(kind: str) -> contextlib.AbstractContextManager:
  """Where indices cannot be made."""
  return mock.patch.object(*FORMATS[kind].making, side_effect=AssertionError("made anew"))


@pytest.mark.parametrize("strict", [True, False])
def test_files_follow_each_other(kind, folder, strict):
  paths = [
    write(kind, folder, name, numbers)
    for name, numbers in {"a0": [0, 1, 2, 3], "a1": [4], "b": [5, 6], "c": [7]}.items()
  ]
  spec = f"{folder}/b.{kind}::{folder}/a{{1,0}}.{kind}::{folder}/[cd].{kind}::{paths[1]}"
  source = opened(kind, spec, strict=strict)
  numbers = [5, 6, 4, 0, 1, 2, 3, 7, 4]
  assert seen(source) == expected(numbers)
  shards = ["b", "b", "a1", "a0", "a0", "a0", "a0", "c", "a1"]
  for i, shard in enumerate(shards):
    assert os.path.basename(source[i].shard) == f"{shard}.{kind}"
  assert source[0].shard == f"{folder}/b.{kind}"
  assert source[np.int64(3)].captions == tuple(captions([0]))
  for index in (-1, 9):
    with pytest.raises(IndexError, match=rf" has (rows|samples) 0 to 8, got {index}"):
      source[index]


def test_its_files_tell_whether_it_is_the_same(kind, here, tmp_path):
  a, b = (write(kind, here, name, range(i + 2)) for i, name in enumerate("ab"))
  source = opened(kind, f"{b}::{a}")
  assert [dataclasses.replace(shard, contents=0) for shard in source.shards] == [
    Shard(b, 3, os.path.getsize(b)),
    Shard(a, 2, os.path.getsize(a)),
  ]
  moved = tmp_path / "moved"
  moved.mkdir()
  there = opened(kind, f"{shutil.copy(b, moved)}::{shutil.copy(a, moved)}")
  same = identity_of(source)
  assert identity_of(there) == same
  assert (same["examples"], same["shards"]) == (5, 2)
  assert identity_of(Concatenated([opened(kind, b), opened(kind, a)])) == same
  assert identity_of(opened(kind, f"{a}::{b}")) != same
  assert identity_of(opened(kind, a)) != same
  parts = [opened(kind, path) for path in (a, b, a)]
  two = [Concatenated(parts), Concatenated([Concatenated(parts[:2]), parts[2]])]
  assert identity_of(two[0]) == identity_of(two[1])
  assert len({identity_of(x, in_parts=True)["digest"] for x in two}) == 2


def test_what_is_not_there_is_an_error(kind, folder):
  path = write(kind, folder, "there", [0])
  absent = f"{folder}/nothing.{kind}"
  for spec in (absent, f"{path}::{absent}"):
    with pytest.raises(ValueError, match=FORMATS[kind].absent):
      opened(kind, spec)
  with pytest.raises(ValueError, match=rf"'{folder}/x\*.{kind}' matches no file"):
    opened(kind, f"{path}::{folder}/x*.{kind}")


def test_many_threads_read_at_once(kind, here):
  numbers = range(30)
  source = opened(kind, write(kind, here, "a", numbers))
  order = np.random.default_rng(0).integers(0, len(numbers), 600).tolist()
  whole = expected(numbers)
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    for i, one in zip(order, pool.map(source.__getitem__, order), strict=True):
      assert (one.image, one.captions) == whole[i]


def test_it_travels_to_other_processes(kind, folder):
  spec = "::".join(write(kind, folder, name, range(9)) for name in "ab")
  copy = pickle.loads(pickle.dumps(opened(kind, spec)))
  assert seen(copy) == expected([*range(9), *range(9)])


def test_a_file_that_changes_is_noticed(kind, folder, monkeypatch):
  monkeypatch.setattr(csv_source, "_SECONDS_BETWEEN_LOOKS", 0)
  path = write(kind, folder, "a", range(8))
  source = opened(kind, path)
  assert source[0].captions == tuple(captions([0]))
  if "://" in path:  # Of tars elsewhere, it is seen that they became too short.
    write(kind, folder, "a", [0])
  else:
    before = os.stat(path)
    write(kind, folder, "a", range(1, 9))
    assert kind == "parquet" or os.stat(path).st_size == before.st_size
    os.utime(path, ns=(before.st_mtime_ns, before.st_mtime_ns + 10**9))
  again = opened(kind, path)
  assert seen(again) == expected([0] if "://" in path else range(1, 9))
  with pytest.raises(
    ValueError, match=r"has changed since it was (read|opened)"
  ) as error:
    source[7]
  assert not isinstance(error.value, BadExample)


def test_an_index_is_made_once(kind, folder, tmp_path):
  cache = tmp_path / "some" / "cache"
  path = write(kind, folder, "a", range(9))
  assert seen(opened(kind, path, cache=cache)) == expected(range(9))
  if "://" in path:
    (place,) = cache.iterdir()
  else:
    assert not cache.exists()
    place = pathlib.Path(folder, FORMATS[kind].index.format(f"a.{kind}"))
    # Nothing else is left there, and globs do not take the index for data.
    left = {"0.png", "1.png", "2.png", f"a.{kind}", place.name}
    assert set(os.listdir(folder)) == left
    assert glob.glob(f"{folder}/*.{kind}") == [path]
  before = place.read_bytes()
  with unmade(kind):
    source = opened(kind, path, cache=cache)
  assert seen(source) == expected(range(9))
  assert place.read_bytes() == before


@pytest.mark.parametrize(
  "damage",
  [
    lambda data: b"",
    lambda data: b"no index",
    lambda data: b"rankclip_jax",
    lambda data: b"\n\n\n",
    lambda data: data[:16],
    lambda data: data[:-8],
    lambda data: data[:-3],
    lambda data: data[:-1],
    lambda data: data + data[-8:],
    lambda data: data[:40] + bytes([data[40] ^ 1]) + data[41:],
    lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    lambda data: bytes(len(data)),
  ],
)
def test_a_damaged_index_is_made_anew(kind, here, damage):
  path = write(kind, here, "a", range(9))
  opened(kind, path)
  place = pathlib.Path(here, FORMATS[kind].index.format(f"a.{kind}"))
  place.write_bytes(damage(whole := place.read_bytes()))
  assert seen(opened(kind, path)) == expected(range(9))
  assert place.read_bytes() == whole
  with unmade(kind):
    opened(kind, path)


def test_an_index_goes_elsewhere_where_it_cannot_lie_beside(kind, here, tmp_path):
  other = tmp_path / "other"
  other.mkdir()
  for i, picture in enumerate(PICTURES):
    examples.put(other / f"{i}.png", picture)
  twins = write(kind, here, "a", range(9)), write(kind, str(other), "a", [4])
  places = [
    pathlib.Path(path).with_name(FORMATS[kind].index.format(f"a.{kind}"))
    for path in twins
  ]
  for place in places:
    place.mkdir()  # Nothing can be written there, by root neither.
  spec, numbers = "::".join(twins), [*range(9), 4]
  names = set(tmp_path.rglob("*"))
  # Without another place it works all the same, in memory.
  source = pickle.loads(pickle.dumps(opened(kind, spec)))
  assert seen(source) == expected(numbers)
  assert set(tmp_path.rglob("*")) == names
  cache = tmp_path / "some" / "cache"
  assert seen(opened(kind, spec, cache=cache)) == expected(numbers)
  kept = list(cache.iterdir())
  assert len(kept) == 2
  assert set(tmp_path.rglob("*")) == names | {cache.parent, cache, *kept}
  with unmade(kind):
    source = opened(kind, spec, cache=cache)
    with pytest.raises(AssertionError, match="made anew"):
      opened(kind, spec)
  assert seen(pickle.loads(pickle.dumps(source))) == expected(numbers)


def test_it_trains(kind, here):
  words = Tokenizer(8)
  (batch,) = pipeline.train_batches(
    opened(kind, write(kind, here, "a", range(10))),
    image_size=4,
    tokenizer=words,
    augment_scale=None,
    global_batch=10,
    num_steps=1,
    seed=0,
  )
  assert sorted(batch["id"]) == list(range(10))
  for image, tokens, index in zip(
    batch["image"], batch["tokens"], batch["id"], strict=True
  ):
    np.testing.assert_array_equal(image, np.full((4, 4, 3), COLOURS[index % 3]))
    np.testing.assert_array_equal(tokens, words(captions([index]))[0])
