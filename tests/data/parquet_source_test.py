import concurrent.futures
import errno
import io
import pickle
import threading
import uuid
from unittest import mock

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from absl import logging
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from rankclip_jax.data import files, parquet_source, pipeline, tokenizer
from rankclip_jax.data.parquet_source import ParquetSource
from rankclip_jax.data.source import BadExample, Loss, losses_of


@pytest.fixture
def remote():
  """A folder of fsspec's memory file system."""
  system, name = fsspec.filesystem("memory"), f"/{uuid.uuid4().hex}"
  system.mkdir(name)
  yield f"memory:/{name}"
  system.rm(name, recursive=True)


def write(path, columns, *, group: int = 2, **options):
  """Writes a table, here or in memory, and returns the path."""
  table = columns if isinstance(columns, pa.Table) else pa.table(columns)
  options = {"row_group_size": group} | options
  if files.is_remote(str(path)):
    pq.write_table(table, out := io.BytesIO(), **options)
    fsspec.filesystem("memory").pipe(path.removeprefix("memory:/"), out.getvalue())
  else:
    pq.write_table(table, path, **options)
  return str(path)


def pairs(count: int, start: int = 0) -> dict[str, list]:
  numbers = range(start, start + count)
  return {
    "image": [b"picture %d" % i for i in numbers],
    "caption": [f"caption {i}" for i in numbers],
  }


def outcome(source, index):
  """Picture and captions of an example, or key and reason of what is none."""
  try:
    example = source[index]
    return example.image, example.captions
  except BadExample as bad:
    return bad.key, bad.reason


def outcomes(source):
  return [outcome(source, i) for i in range(len(source))]


PICTURES = [b"picture %d" % i for i in range(5)]
TEXTS = [f"caption {i}" for i in range(5)]
STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


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
  with pytest.raises(IndexError, match="has rows 0 to 4, got 5"):
    source[5]
  with pytest.raises(IndexError, match="got -1"):
    source[-1]


@pytest.mark.parametrize("name", ["image", "jpg"])
@pytest.mark.parametrize("strict", [True, False])
def test_pictures_are_bytes_or_paths_in_a_struct(tmp_path, name, strict):
  (tmp_path / "b.png").write_bytes(b"beside")
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
  (tmp_path / "images/0.png").write_bytes(b"relative")
  (tmp_path / "1.png").write_bytes(b"absolute")
  fsspec.filesystem("memory").pipe(remote.removeprefix("memory:/") + "/2.png", b"remote")
  paths = ["images/0.png", f"{tmp_path}/1.png", f"{remote}/2.png"]
  columns = {name: pa.array(paths, kind), "title": TEXTS[:3]}
  source = ParquetSource(write(tmp_path / "a.parquet", columns), strict=strict)
  assert [example.key for example in source] == paths
  assert [example.image for example in source] == [b"relative", b"absolute", b"remote"]
  columns["title"] = TEXTS[1:4]
  (tmp_path / "2.png").write_bytes(b"here")
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


def test_columns_are_chosen_by_name_and_type(tmp_path):
  columns = {
    "text": ["text"],
    "title": ["title"],
    "caption": [7],
    "alt": ["alt"],
    "image": [b"bytes"],
    "path": ["x.png"],
  }
  path = write(tmp_path / "a.parquet", columns)
  assert outcomes(ParquetSource(path)) == [(b"bytes", ("title",))]
  assert outcomes(ParquetSource(path, caption_key="alt")) == [(b"bytes", ("alt",))]
  for wrong in ("caption", "nothing"):
    with pytest.raises(ValueError, match=f"a.parquet: .*captions in {wrong}, got text"):
      ParquetSource(path, caption_key=wrong)
  for name in ("image", "title"):
    without = {k: v for k, v in columns.items() if k not in (name, "path", "text")}
    other = write(tmp_path / "b.parquet", without)
    # Also among good files: these are not the columns that were meant.
    with pytest.raises(ValueError, match=r"b.parquet: expected .* rename the columns"):
      ParquetSource(f"{path}::{other}")


def test_columns_of_one_name_are_none(tmp_path):
  table = pa.table([PICTURES, TEXTS, TEXTS], ["image", "caption", "caption"])
  path = write(tmp_path / "a.parquet", table)
  with pytest.raises(ValueError, match="a.parquet: expected pictures .* captions"):
    ParquetSource(path)
  path = write(path, table.append_column("title", pa.array(TEXTS)))
  assert outcome(ParquetSource(path), 4) == (PICTURES[4], (TEXTS[4],))


BAD = [
  ({"image": None}, "missing picture"),
  ({"image": b""}, "empty picture"),
  ({"caption": None}, "missing caption"),
  ({"caption": ""}, "empty caption"),
  ({"caption": " \n"}, "empty caption"),
  ({"caption": b"\xff"}, "undecodable caption"),
  ({"image": None, "caption": None}, "missing caption"),
]


@pytest.mark.parametrize("change, reason", BAD)
def test_bad_rows_keep_their_place(tmp_path, change, reason):
  rows = [
    {"image": p, "caption": t.encode()} for p, t in zip(PICTURES, TEXTS, strict=True)
  ]
  caption = change.get("caption")
  if isinstance(caption, str):
    change = change | {"caption": caption.encode()}
  rows[3] |= change
  table = pa.Table.from_pylist(rows)
  # Text that is none is written as text, as nothing checks it.
  captions = pa.StringArray.from_buffers(
    5,
    *table["caption"].combine_chunks().buffers()[1:],
    table["caption"].chunk(0).buffers()[0],
  )
  table = table.set_column(1, "caption", captions)
  source = ParquetSource(path := write(tmp_path / "a.parquet", table))
  found = outcomes(source)
  assert found[3] == ("row 4", reason)
  del found[3]
  assert found == [(PICTURES[i], (TEXTS[i],)) for i in (0, 1, 2, 4)]
  with pytest.raises(BadExample, match="a.parquet, row 4: ") as error:
    source[3]
  assert error.value.shard == path
  # That a picture is empty is seen when it is read.
  if reason != "empty picture":
    with pytest.raises(ValueError, match="a.parquet, row 4: "):
      ParquetSource(path, strict=True)


@pytest.mark.parametrize(
  "value, found, strictly",
  [
    (None, "missing caption", False),
    ([], "missing caption", False),
    ([None], "missing caption", False),
    (["", " "], "empty caption", False),
    (["a", None, " ", "b"], ("a", "b"), False),
    (["a", "b"], ("a", "b"), True),
  ],
)
def test_lists_of_captions_with_gaps(tmp_path, value, found, strictly):
  captions = pa.array([["x"], value], pa.list_(pa.string()))
  path = write(tmp_path / "a.parquet", {"image": PICTURES[:2], "caption": captions})
  assert outcome(ParquetSource(path), 1)[1] == found
  if strictly:
    assert len(ParquetSource(path, strict=True)) == 2
  else:
    with pytest.raises(ValueError, match=r"a.parquet, row 2: expected a caption, got"):
      ParquetSource(path, strict=True)


@pytest.mark.parametrize(
  "kind, value, key, reason",
  [
    ("path", None, "row 3", "missing picture"),
    ("path", " ", "row 3", "missing picture"),
    ("path", "9.png", "9.png", "missing picture"),
    ("path", "empty.png", "empty.png", "empty picture"),
    ("struct", None, "row 3", "missing picture"),
    ("struct", {"bytes": None, "path": None}, "row 3", "missing picture"),
    ("struct", {"bytes": None, "path": "9.png"}, "9.png", "missing picture"),
    ("struct", {"bytes": None, "path": "empty.png"}, "empty.png", "empty picture"),
    ("struct", {"bytes": b"", "path": "0.png"}, "row 3", "empty picture"),
  ],
)
def test_paths_that_lead_nowhere(tmp_path, kind, value, key, reason):
  (tmp_path / "0.png").write_bytes(b"picture")
  (tmp_path / "empty.png").write_bytes(b"")
  good = "0.png" if kind == "path" else {"bytes": b"picture", "path": "0.png"}
  values = pa.array([good, good, value, good], pa.string() if kind == "path" else STRUCT)
  path = write(tmp_path / "a.parquet", {"image": values, "caption": TEXTS[:4]})
  source = ParquetSource(path)
  assert outcome(source, 2) == (key, reason)
  assert [outcome(source, i)[0] for i in (0, 1, 3)] == [b"picture"] * 3
  with pytest.raises(BadExample, match="a.parquet, row 3: ") as error:
    source[2]
  assert error.value.shard == path
  # Bytes are looked at where the footer says that some are missing.
  if value != {"bytes": b"", "path": "0.png"}:
    with pytest.raises(ValueError, match="a.parquet, row 3: "):
      ParquetSource(path, strict=True)


def test_without_statistics_missing_bytes_are_met_when_they_are_drawn(tmp_path):
  columns = {"image": [b"picture", None], "caption": TEXTS[:2]}
  path = write(tmp_path / "a.parquet", columns, write_statistics=False)
  source = ParquetSource(path, strict=True)
  assert outcomes(source) == [(b"picture", (TEXTS[0],)), ("row 2", "missing picture")]


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
  for place in (tmp_path, remote):
    with pytest.raises(ValueError, match=r"There is no file .*nothing.parquet"):
      ParquetSource(f"{tmp_path}/c0.parquet::{place}/nothing.parquet")


WHOLE = 12


@pytest.fixture
def whole(tmp_path):
  """A good file of 12 rows in 3 row groups, and its bytes."""
  path = write(tmp_path / "whole.parquet", pairs(WHOLE), group=4, compression="none")
  return path, (tmp_path / "whole.parquet").read_bytes()


DAMAGE = {
  "empty": lambda data: b"",
  "one byte": lambda data: b"P",
  "magic alone": lambda data: b"PAR1",
  "html": lambda data: b"<html>404</html>" * 10,
  "text": lambda data: b"image,caption\na,b\n",
  "zeros": lambda data: bytes(len(data)),
  "first half": lambda data: data[: len(data) // 2],
  "last half": lambda data: data[len(data) // 2 :],
  "last byte gone": lambda data: data[:-1],
  "footer gone": lambda data: data[:-8] + b"PAR1",
  "footer too long": lambda data: data[:-8] + (10**6).to_bytes(4, "little") + b"PAR1",
  "footer zeroed": lambda data: data[:-400] + bytes(392) + data[-8:],
  "encrypted": lambda data: data[:-4] + b"PARE",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_among_others_is_a_loss(tmp_path, whole, damage):
  path, data = whole
  (tmp_path / "bad.parquet").write_bytes(DAMAGE[damage](data))
  bad = f"{tmp_path}/bad.parquet"
  source = ParquetSource(f"{bad}::{path}")
  assert outcomes(source) == [
    (b"picture %d" % i, (f"caption {i}",)) for i in range(WHOLE)
  ]
  (loss,) = losses_of(source)
  assert isinstance(loss, Loss)
  assert (loss.shard, loss.reason, loss.count) == (bad, "truncated shard", 0)
  assert loss.detail
  for spec, strict in ((bad, False), (f"{bad}::{bad}", False), (f"{path}::{bad}", True)):
    with pytest.raises(ValueError, match=r"bad.parquet cannot be read \(.+\); fetch it"):
      ParquetSource(spec, strict=strict)


@pytest.mark.parametrize("checksums", [True, False])
def test_a_damaged_row_group_loses_its_own_rows(tmp_path, checksums):
  path = write(
    tmp_path / "a.parquet",
    pairs(WHOLE),
    group=4,
    compression="none" if checksums else "zstd",
    write_page_checksum=checksums,
  )
  data = bytearray((tmp_path / "a.parquet").read_bytes())
  column = pq.ParquetFile(path).metadata.row_group(1).column(0)
  if checksums:  # Nothing else tells that it is another picture.
    data[data.index(b"picture 6")] ^= 1
  else:
    middle = column.data_page_offset + column.total_compressed_size // 2
    data[middle : middle + 4] = b"\xff\xff\xff\xff"
  (tmp_path / "a.parquet").write_bytes(data)
  source = ParquetSource(path)
  found = outcomes(source)
  assert found[4:8] == [(f"row {i}", "truncated shard") for i in (5, 6, 7, 8)]
  assert found[:4] + found[8:] == [
    (b"picture %d" % i, (f"caption {i}",)) for i in (0, 1, 2, 3, 8, 9, 10, 11)
  ]
  with pytest.raises(BadExample, match=r"a.parquet, row 6: row group 1 cannot be read"):
    source[5]
  # It is not tried again and again.
  with mock.patch.object(parquet_source, "_open", side_effect=AssertionError):
    assert outcome(source, 6) == ("row 7", "truncated shard")


def test_a_row_group_of_too_few_rows_is_damaged(whole, monkeypatch):
  read_row_group = pq.ParquetFile.read_row_group

  def reading(self, number, **options):
    return read_row_group(self, number, **options).slice(int(number == 1))

  monkeypatch.setattr(pq.ParquetFile, "read_row_group", reading)
  source = ParquetSource(whole[0])
  assert source[0].image == b"picture 0"
  with pytest.raises(BadExample, match=r"row group 1 cannot be read \(3 of 4 rows\)"):
    source[4]


def test_captions_that_cannot_be_read_are_refused(tmp_path):
  path = write(tmp_path / "a.parquet", pairs(8), group=4, compression="zstd")
  data = bytearray((tmp_path / "a.parquet").read_bytes())
  column = pq.ParquetFile(path).metadata.row_group(1).column(1)
  start = column.dictionary_page_offset or column.data_page_offset
  data[start : start + column.total_compressed_size] = bytes(column.total_compressed_size)
  (tmp_path / "a.parquet").write_bytes(data)
  assert [found[1] for found in outcomes(ParquetSource(path))[4:]] == [
    "truncated shard"
  ] * 4
  with pytest.raises(ValueError, match="a.parquet: row group 1 cannot be read"):
    ParquetSource(path, strict=True)


def test_a_disk_that_fails_is_no_damage(whole):
  path, _ = whole
  source = ParquetSource(path)
  assert source[WHOLE - 1].image == b"picture 11"
  for error in (OSError(errno.EIO, "Input/output error"), TimeoutError("no answer")):
    with mock.patch.object(parquet_source, "_open", side_effect=error):
      with pytest.raises(type(error)) as caught:
        source[0]
      assert not isinstance(caught.value, BadExample)
      with pytest.raises(type(error)):
        ParquetSource(f"{path}::{path}")
  # And it may come back.
  assert source[0].image == b"picture 0"


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


def test_it_travels_to_other_processes(tmp_path, remote):
  write(tmp_path / "a.parquet", pairs(50), group=1)
  write(f"{remote}/b.parquet", pairs(3, 50))
  source = ParquetSource(f"{tmp_path}/a.parquet::{remote}/b.parquet")
  expected = outcomes(source)
  data = pickle.dumps(source)
  assert len(data) < 3000 + 50 * 16  # no pictures and no footers
  assert outcomes(pickle.loads(data)) == expected
  assert expected == [(b"picture %d" % i, (f"caption {i}",)) for i in range(53)]


@pytest.mark.parametrize("place", ["local", "remote"])
def test_a_file_that_changes_is_noticed(tmp_path, remote, place):
  path = f"{tmp_path}/a.parquet" if place == "local" else f"{remote}/a.parquet"
  source = ParquetSource(write(path, pairs(4)))
  assert source[0].image == b"picture 0"
  write(path, pairs(5))
  with pytest.raises(ValueError, match="a.parquet has changed since it was opened"):
    source[2]


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
  # Stale and damaged ones are made anew.
  index = tmp_path / ".a.parquet.index"
  index.write_bytes(index.read_bytes()[:-8])
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


def test_it_trains(tmp_path):
  colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]
  pictures = []
  for colour in colours:
    Image.new("RGB", (4, 4), colour).save(data := io.BytesIO(), "PNG")
    pictures.append(data.getvalue())
  columns = {
    "image": [pictures[i % 3] for i in range(10)],
    "caption": [str(i % 3) for i in range(10)],
  }
  words = tokenizer.Tokenizer(8)
  (batch,) = pipeline.train_batches(
    ParquetSource(write(tmp_path / "a.parquet", columns, group=3)),
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
    np.testing.assert_array_equal(image, np.full((4, 4, 3), colours[index % 3]))
    np.testing.assert_array_equal(tokens, words([str(index % 3)])[0])
