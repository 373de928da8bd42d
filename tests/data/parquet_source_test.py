import concurrent.futures
import pickle
import threading
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from absl import logging
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rankclip_jax.data import parquet_source
from rankclip_jax.data.parquet_source import ParquetSource
from tests.data.examples import put
from tests.data.parquets import (
  PICTURES,
  STRUCT,
  TEXTS,
  outcome,
  outcomes,
  pairs,
  write,
)


@pytest.mark.parametrize(
  "name, kind",
  [
    ("image", pa.binary()),
    ("jpg", pa.large_binary()),
    ("image_bytes", pa.binary()),
    ("image", pa.binary_view()),
  ],
)
@pytest.mark.parametrize("strict", [True, False])
def test_pictures_are_bytes(tmp_path, name, kind, strict):
  other = pa.array([None] * 5, pa.string())
  columns = {"path": other, name: pa.array(PICTURES, kind), "caption": TEXTS}
  source = ParquetSource(path := write(tmp_path / "a.parquet", columns), strict=strict)
  assert len(source) == 5
  for i, example in enumerate(source):
    assert (example.image, example.captions) == (PICTURES[i], (TEXTS[i],))
    assert (example.key, example.shard) == (f"{path}:{i + 1}", path)


@pytest.mark.parametrize("name", ["image", "jpg"])
@pytest.mark.parametrize("strict", [True, False])
def test_pictures_are_bytes_or_paths_in_a_struct(tmp_path, name, strict):
  put(tmp_path / "b.png", b"beside")
  values = [
    {"bytes": b"picture 0", "path": None},
    {"bytes": b"picture 1", "path": "b.png"},
    {"bytes": None, "path": "b.png"},
  ]
  columns = {name: pa.array(values, STRUCT), "text": TEXTS[:3]}
  source = ParquetSource(path := write(tmp_path / "a.parquet", columns), strict=strict)
  assert [(e.key, e.image, *e.captions) for e in source] == [
    (f"{path}:1", b"picture 0", "caption 0"),
    (f"{path}:2", b"picture 1", "caption 1"),
    ("b.png", b"beside", "caption 2"),
  ]
  # Other fields are not needed, nor is the path.
  values = pa.array([{"bytes": b"x", "width": 3}])
  assert outcomes(
    ParquetSource(write(path, {name: values, "text": ["t"]}), strict=strict)
  ) == [(b"x", ("t",))]


@pytest.mark.parametrize(
  "name, kind",
  [
    ("filepath", pa.string()),
    ("image_path", pa.large_string()),
    ("path", pa.string_view()),
    ("image", pa.string()),
    ("image", pa.dictionary(pa.int32(), pa.string())),
  ],
)
@pytest.mark.parametrize("strict", [True, False])
def test_pictures_are_paths(tmp_path, remote, name, kind, strict):
  (tmp_path / "images").mkdir()
  put(tmp_path / "images/0.png", b"relative")
  put(tmp_path / "1.png", b"absolute")
  put(f"{remote}/2.png", b"remote")
  paths = ["images/0.png", f"{tmp_path}/1.png", f"{remote}/2.png"]
  columns = {name: pa.array(paths, kind), "title": TEXTS[:3]}
  source = ParquetSource(write(tmp_path / "a.parquet", columns), strict=strict)
  assert [example.key for example in source] == paths
  assert [example.image for example in source] == [b"relative", b"absolute", b"remote"]
  columns["title"] = TEXTS[1:4]
  put(tmp_path / "2.png", b"here")
  columns[name] = pa.array(["2.png", "./2.png", f"{tmp_path}/2.png"])
  source = ParquetSource(write(f"{remote}/b.parquet", columns), strict=strict)
  assert outcomes(source) == [
    (b"remote", ("caption 1",)),
    (b"remote", ("caption 2",)),
    (b"here", ("caption 3",)),
  ]


@pytest.mark.parametrize(
  "kind",
  [
    pa.list_(pa.string()),
    pa.large_list(pa.large_string()),
    pa.list_(pa.string(), 2),
    pa.list_(pa.binary()),
  ],
  ids=str,
)
@pytest.mark.parametrize("strict", [True, False])
def test_captions_are_lists(tmp_path, kind, strict):
  texts = [["a", "b é"], ["c", "d"]]
  columns = {"image": PICTURES[:2], "caption": pa.array(texts, kind)}
  source = ParquetSource(write(tmp_path / "a.parquet", columns), strict=strict)
  assert [example.captions for example in source] == [("a", "b é"), ("c", "d")]


@pytest.mark.parametrize(
  "kind",
  [
    pa.large_string(),
    pa.string_view(),
    pa.binary(),
    pa.dictionary(pa.int8(), pa.string()),
  ],
  ids=str,
)
def test_captions_are_text_of_every_type(tmp_path, kind):
  columns = {"image": PICTURES[:2], "title": pa.array(["ä", "b"]).cast(kind)}
  source = ParquetSource(write(tmp_path / "a.parquet", columns), strict=True)
  assert [example.captions for example in source] == [("ä",), ("b",)]


@given(
  counts=st.lists(st.integers(0, 7), min_size=1, max_size=4),
  group=st.integers(1, 5),
  data=st.data(),
)
@settings(
  max_examples=50,
  deadline=None,
  suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_every_row_is_found_by_its_number(tmp_path, counts, group, data):
  expected, paths = [], []
  for i, count in enumerate(counts):
    columns = pairs(count, start=10 * i)
    paths.append(write(tmp_path / f"{i}.parquet", pa.table(columns, SCHEMA), group=group))
    expected += zip(columns["image"], columns["caption"], strict=True)
  if not expected:
    with pytest.raises(ValueError, match="has no rows"):
      ParquetSource("::".join(paths))
    return
  source = ParquetSource("::".join(paths), strict=data.draw(st.booleans()))
  assert len(source) == len(expected)
  for index in data.draw(st.permutations(range(len(expected)))):
    assert outcome(source, index) == (expected[index][0], (expected[index][1],))


SCHEMA = pa.schema([("image", pa.binary()), ("caption", pa.string())])


def test_files_are_named_by_patterns_and_folders(tmp_path, remote):
  (tmp_path / "data [1]").mkdir()
  for place, start in (("data [1]/b", 2), ("data [1]/a", 0), ("c0", 4), ("c1", 6)):
    write(tmp_path / f"{place}.parquet", pairs(2, start))
  (tmp_path / "data [1]" / "readme.txt").write_text("no data")
  write(f"{remote}/more/e.parquet", pairs(1, 9))
  write(f"{remote}/more/d.parquet", pairs(1, 8))
  (tmp_path / "folder.parquet").mkdir()  # as Spark calls its folders
  write(tmp_path / "folder.parquet/part-0.parquet", pairs(1, 10))
  spec = [
    f"{tmp_path}/c{{0..1}}.parquet",
    f"{remote}/more",
    f"{tmp_path}/folder.parquet/",
    f"{remote}/more/*.parquet",
  ]
  found = [pixels for pixels, _ in outcomes(ParquetSource("::".join(spec)))]
  numbers = [4, 5, 6, 7, 8, 9, 10, 8, 9]
  assert found == [b"picture %d" % i for i in numbers]
  found = [pixels for pixels, _ in outcomes(ParquetSource(f"{tmp_path}/data*"))]
  assert found == [b"picture %d" % i for i in range(4)]
  (tmp_path / "empty").mkdir()
  with pytest.raises(ValueError, match=r"empty/\*.parquet' matches no file"):
    ParquetSource(f"{tmp_path}/empty")


def test_row_groups_are_kept_up_to_a_number_of_bytes(tmp_path, monkeypatch):
  columns = {"image": [bytes(1000)] * 40, "caption": ["a"] * 40, "more": [bytes(99)] * 40}
  path = write(tmp_path / "a.parquet", columns, group=4, compression="none")
  monkeypatch.setattr(parquet_source, "_KEPT_GROUPS", 10_000)  # two row groups
  source, read = ParquetSource(path), []
  read_row_group = pq.ParquetFile.read_row_group

  def reading(self, number, columns, **options):
    read.append(number)
    assert columns == ["image", "caption"]
    return read_row_group(self, number, columns=columns, **options)

  monkeypatch.setattr(pq.ParquetFile, "read_row_group", reading)
  for index in (0, 1, 4, 5, 0, 3, 8, 0, 4, 0, 8):
    source[index]
  #            0, 1 and 0 again, 2 for 1, then 1 for 2, 0 is still there, 2 for 1
  assert read == [0, 1, 2, 1, 2]
  # A row group that is too large alone is kept all the same.
  monkeypatch.setattr(parquet_source, "_KEPT_GROUPS", 10)
  source = ParquetSource(path)
  read.clear()
  for index in (0, 1, 2, 4, 5, 0):
    source[index]
  assert read == [0, 1, 0]


def test_threads_share_what_they_read(tmp_path, monkeypatch):
  write(tmp_path / "a.parquet", pairs(200), group=10)
  write(tmp_path / "b.parquet", pairs(100, 200), group=7)
  source, read, lock = ParquetSource(f"{tmp_path}/*.parquet"), [], threading.Lock()
  read_row_group = pq.ParquetFile.read_row_group

  def reading(self, number, **options):
    with lock:
      read.append((self.metadata.num_row_groups, number))
    return read_row_group(self, number, **options)

  monkeypatch.setattr(pq.ParquetFile, "read_row_group", reading)
  order = np.random.default_rng(0).permutation(np.repeat(np.arange(300), 4)).tolist()
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    for i, found in zip(
      order, pool.map(lambda i: outcome(source, i), order), strict=True
    ):
      assert found == (b"picture %d" % i, (f"caption {i}",))
  assert len(read) == len(set(read)) == 20 + 15


def test_no_pictures_and_no_footers_travel(tmp_path):
  source = ParquetSource(write(tmp_path / "a.parquet", pairs(50), group=1))
  expected = outcomes(source)
  assert len(data := pickle.dumps(source)) < 2000 + 50 * 16
  assert outcomes(pickle.loads(data)) == expected


@pytest.fixture
def warnings(monkeypatch):
  said = []
  monkeypatch.setattr(logging, "warning", lambda text, *args: said.append(text % args))
  return said


def test_large_row_groups_are_warned_of(tmp_path, monkeypatch, warnings):
  columns = {"image": [bytes(1000)] * 40, "caption": ["a"] * 40}
  options = {"group": 10, "compression": "zstd", "use_dictionary": False}
  path = write(tmp_path / "a.parquet", columns, **options)
  size = pq.ParquetFile(path).metadata.row_group(0).total_byte_size
  assert 10_000 < size < 13_000
  monkeypatch.setattr(parquet_source, "_KEPT_GROUPS", 4 * size)
  monkeypatch.setattr(parquet_source, "_SLOW_READ", 1)
  ParquetSource(path)
  assert not warnings  # All of it can be kept.
  # One of the four is kept, so that a row costs three quarters of one.
  monkeypatch.setattr(parquet_source, "_KEPT_GROUPS", size)
  monkeypatch.setattr(parquet_source, "_SLOW_READ", int(0.76 * size))
  ParquetSource(path)
  assert not warnings
  monkeypatch.setattr(parquet_source, "_SLOW_READ", int(0.74 * size))
  ParquetSource(path)
  (warning,) = warnings
  assert "a.parquet has row groups of up to" in warning
  assert "python -m rankclip_jax.data reshard" in warning
  # What is not read does not count.
  columns = {"more": columns["image"], "image": [b"x"] * 40, "caption": ["a"] * 40}
  ParquetSource(write(path, columns, **options))
  assert len(warnings) == 1


def test_an_index_spares_the_footers(tmp_path, remote, monkeypatch):
  cache = tmp_path / "cache"
  write(tmp_path / "a.parquet", pairs(5))
  write(f"{remote}/b.parquet", pairs(3, 5))
  spec = f"{tmp_path}/a.parquet::{remote}/b.parquet"
  expected = outcomes(ParquetSource(spec, cache=cache))
  # That of a small local file is not worth it.
  assert len(list(cache.iterdir())) == 1
  assert not (tmp_path / ".a.parquet.index").exists()
  monkeypatch.setattr(parquet_source, "_CACHED_FROM", 0)
  ParquetSource(spec, cache=cache)
  assert (tmp_path / ".a.parquet.index").exists()
  with mock.patch.object(parquet_source, "_open", side_effect=AssertionError):
    source = ParquetSource(spec, cache=cache)
    assert len(source) == 8
  assert outcomes(source) == expected
  # Another column may not be there, whatever the index says.
  with pytest.raises(ValueError, match="captions in alt"):
    ParquetSource(spec, cache=cache, caption_key="alt")
  with pytest.raises(ValueError, match="pictures as bytes in a column alt"):
    ParquetSource(spec, cache=cache, image_key="alt")
  # Stale ones are made anew.
  write(f"{remote}/b.parquet", pairs(4, 5), group=3)
  source = ParquetSource(spec, cache=cache)
  assert outcomes(source) == [*expected, (b"picture 8", ("caption 8",))]
  with mock.patch.object(parquet_source, "_open", side_effect=AssertionError):
    assert len(ParquetSource(spec, cache=cache)) == 9


def test_bars_are_for_much_to_do(tmp_path, monkeypatch, capsys):
  monkeypatch.setenv("TTY_COMPATIBLE", "1")
  path = write(tmp_path / "a.parquet", pairs(5))
  ParquetSource(path, strict=True)
  assert not capsys.readouterr().err
  monkeypatch.setattr(parquet_source, "_SHOWN_FROM", (1, 5))
  ParquetSource(path, strict=True)
  shown = capsys.readouterr().err
  assert "opening" in shown
  assert "checking" in shown
