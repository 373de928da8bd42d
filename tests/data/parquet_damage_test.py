"""What is wrong with rows, row groups and files of parquet, and what that costs."""

import errno
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rankclip_jax.data import parquet_source
from rankclip_jax.data.parquet_source import ParquetSource
from rankclip_jax.data.source import BadExample, Loss, losses_of
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
  put(tmp_path / "0.png", b"picture")
  put(tmp_path / "empty.png", b"")
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
