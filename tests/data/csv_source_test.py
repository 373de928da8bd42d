import errno
import os
import pathlib
import pickle
from unittest import mock

import pytest

from rankclip_jax.data import csv_rows, csv_source, files
from rankclip_jax.data.csv_source import CsvSource
from rankclip_jax.data.source import BadExample
from tests.data import examples
from tests.data.examples import put
from tests.data.pictures import encoded, photograph

PICTURES = [b"picture 0", b"picture 1", b"picture 2"]


@pytest.fixture
def folder(tmp_path):
  """A folder with images/0.png to 2.png."""
  (tmp_path / "images").mkdir()
  for i, picture in enumerate(PICTURES):
    put(tmp_path / f"images/{i}.png", picture)
  return tmp_path


def outcomes(source):
  return examples.outcomes(source, "key", "captions")


@pytest.mark.parametrize(
  "text",
  [
    "filepath\ttitle\nimages/0.png\ta, b\nimages/1.png\tc | d; e\n",
    'image,caption\r\nimages/0.png,"a, b"\r\nimages/1.png,c | d; e\r\n',
    '\ufeff"image";"caption"\nimages/0.png;a, b\nimages/1.png;"c | d; e"',
    'caption|n|image\n\na, b|1|images/0.png\n\n"c | d; e"|2|images/1.png\n\n\n',
    ',filepath,caption\n0,images/0.png,"a, b"\n1,images/1.png,c | d; e\n',
    'image,caption\r\r\nimages/0.png,"a, b"\r\r\n\r\r\n\r\nimages/1.png,c | d; e\r\r\n\r',
  ],
  ids=[
    "open_clip",
    "rankclip",
    "bom",
    "order_and_blank_lines",
    "pandas_index",
    "windows",
  ],
)
@pytest.mark.parametrize("strict", [True, False])
def test_delimiter_and_columns_are_read_off_the_first_line(folder, text, strict):
  path = put(folder / "pairs", text)
  source = CsvSource(path, strict=strict)
  examples = list(source)
  assert [(e.key, e.captions, e.shard) for e in examples] == [
    ("images/0.png", ("a, b",), str(path)),
    ("images/1.png", ("c | d; e",), str(path)),
  ]
  for i, example in enumerate(examples):
    assert example.image == PICTURES[i]


@pytest.mark.parametrize(
  "text, message",
  [
    ("image,caption\n\n", "names columns but has no rows"),
    ("image,caption\na,b\nc\n", "line 3: expected the 2 fields .* got 1"),
    ('image,caption\n\na,"b\nb"\nc,d,e\n', "line 5: .* got 3"),
    (
      "image,caption\na,b\nc, \n",
      "line 3: expected a path and a caption, got 'c' and ' '",
    ),
    ("image,caption\n,b\n", "line 2: expected a path and a caption"),
    ('image,caption\na,b\nc,"d\ne,f\n', "line 3: unexpected end of data; close quotes"),
    ('image,caption\na,"b" c\nd,e\n', "line 2: ',' expected after '\"'; close quotes"),
    (
      "image,caption\na,b\rc,d\n",
      "line 2: new-line .*quote fields that hold line breaks",
    ),
    ("image,caption\na,b\nc,é\n".encode("latin-1"), "line 3: .*utf-8.*convert the file"),
    (
      'image,caption\nimages/0.png,a\n"images/9.png",b\nimages/8.png,c\n',
      "line 3: there is no picture 'images/9.png'",
    ),
    ("image,caption\n\nempty.png,a\n", "line 3: the picture 'empty.png' is empty"),
    ("image,caption\nimages,a\n", "line 2: there is no picture 'images'"),
    ("image,caption\na\0b,a\n", "line 2: there is no picture"),
  ],
)
def test_damaged_files_are_refused_with_the_line(folder, text, message):
  put(folder / "empty.png", "")
  path = put(folder / "pairs.csv", text)
  with pytest.raises(ValueError, match=message) as error:
    CsvSource(path, strict=True)
  assert str(path) in str(error.value)


GOOD = ("images/0.png", ("a",)), ("images/1.png", ("b",))


@pytest.mark.parametrize(
  "damage, row, message",
  [
    ("images/2.png", "malformed row", "row 2: expected the 2 fields .* got 1"),
    ("images/2.png,c,d", "malformed row", "row 2: .* got 3"),
    (",c", "malformed row", "row 2: expected a path and a caption, got '' and 'c'"),
    (" ,c", "malformed row", "expected a path"),
    ("images/2.png,", "missing caption", "row 2: expected .* got 'images/2.png' and ''"),
    ('images/2.png,""', "missing caption", "take the row out"),
    ("images/2.png, \t", "empty caption", r"got 'images/2.png' and ' \\t'"),
    ('images/2.png,"c', "malformed row", "row 2: unexpected end of data; close quotes"),
    ('images/2.png,"c" d', "malformed row", "row 2: ',' expected after '\"'"),
    ('"images/2.png,c', "malformed row", "unexpected end of data"),
    ('images/2.png,c,"', "malformed row", "unexpected end of data"),
    ("images/2.png,c\rd", "malformed row", "row 2: new-line"),
    (b"images/2.png,\xe9", "undecodable caption", "row 2: .*utf-8.*convert"),
    (b"images/\xe9.png,c", "undecodable caption", "row 2: .*utf-8"),
    (b'images/2.png,"%s"' % (b"c" * 132_000), "malformed row", "larger than field limit"),
    (b"\0" * 300, "malformed row", "got 1"),
  ],
)
def test_bad_rows_keep_their_place_and_say_what_is_wrong(folder, damage, row, message):
  damage = damage if isinstance(damage, bytes) else damage.encode()
  path = put(
    folder / "pairs.csv", b"image,caption\nimages/0.png,a\n%s\nimages/1.png,b\n" % damage
  )
  source = CsvSource(path)
  assert outcomes(source) == [GOOD[0], ("row 2", row), GOOD[1]]
  with pytest.raises(BadExample, match=message) as error:
    source[1]
  assert error.value.shard == str(path)
  with pytest.raises(ValueError, match="line 3: "):
    CsvSource(path, strict=True)


def test_a_folder_is_no_file(folder, remote):
  for place in (folder, remote):
    put(f"{place}/images/3.png", b"")
    with pytest.raises(ValueError, match="There is no file .*images"):
      CsvSource(f"{place}/images")


@pytest.mark.parametrize("form", ["html", "PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("strict", [True, False])
def test_pictures_are_not_decoded(folder, form, strict):
  data = b"<html>404</html>" if form == "html" else encoded(photograph(), form)
  put(folder / "bad.img", data[: len(data) // 2])
  path = put(folder / "pairs.csv", "image,caption\nimages/1.png,a\nbad.img,b\n")
  assert CsvSource(path, strict=strict)[1].image == data[: len(data) // 2]


def test_what_may_pass_is_no_bad_example(folder, monkeypatch):
  path = put(folder / "pairs.csv", "image,caption\nimages/0.png,a\nabfs://b/c,b\n")
  source = CsvSource(path)
  # A driver that is not installed.
  with pytest.raises(ValueError, match="adlfs") as error:
    source[1]
  assert not isinstance(error.value, BadExample)
  # A disk that fails.
  read = files.read

  def fail(path, *args):
    if path.endswith(".png"):
      raise OSError(errno.EIO, "Input/output error", path)
    return read(path, *args)

  monkeypatch.setattr(files, "read", fail)
  with pytest.raises(OSError, match="Input/output error"):
    source[0]


def test_remote_files_name_pictures_beside_them_and_anywhere(folder, remote):
  for i, picture in enumerate(PICTURES):
    put(f"{remote}/images/{i}.png", picture)
  rows = {
    "images/0.png": 0,
    "./images/1.png": 1,
    "../{}/images/2.png".format(remote.rsplit("/", 1)[1]): 2,
    str(folder / "images/0.png"): 0,
    f"{remote}/images/1.png": 1,
  }
  text = "image,caption\n" + "".join(f"{name},{i}\n" for name, i in rows.items())
  path = put(f"{remote}/pairs.csv", text + "images/9.png,a\n")
  source = pickle.loads(pickle.dumps(CsvSource(path)))
  for row, (name, i) in enumerate(rows.items()):
    example = source[row]
    assert (example.key, example.captions, example.shard) == (name, (str(i),), path)
    assert example.image == PICTURES[i]
  assert outcomes(source)[5:] == [("images/9.png", "missing picture")]
  with pytest.raises(
    BadExample, match=r"pairs.csv, row 6: there is no picture 'images/9"
  ):
    source[5]


def test_several_files_of_several_kinds_follow_each_other(folder, remote):
  (folder / "sub").mkdir()
  for i, name in enumerate(["a1.csv", "a2.csv", "b.csv", "sub/c.tsv"]):
    comma = "\t" if name.endswith(".tsv") else ","
    picture = "../images/0.png" if "/" in name else "images/0.png"
    rows = [f"{picture}{comma}{name} {j}\n" for j in range(i)]
    put(folder / name, f"image{comma}caption\n" + "".join(rows))
  put(f"{remote}/d.csv", "title;filepath\nd;images/1.png\n")
  put(f"{remote}/images/1.png", PICTURES[1])
  spec = f"{folder}/a{{2,1}}.csv::{folder}/b*.csv::{folder}/sub/c.tsv::{remote}/d.csv"
  source = CsvSource(spec)
  assert [example.captions[0] for example in source] == [
    *("a2.csv 0", "b.csv 0", "b.csv 1", "sub/c.tsv 0", "sub/c.tsv 1", "sub/c.tsv 2"),
    "d",
  ]
  assert [source[i].image for i in (5, 6)] == PICTURES[:2]
  with pytest.raises(ValueError, match=r"a1.csv names columns but has no rows"):
    CsvSource(spec, strict=True)
  with pytest.raises(ValueError, match="names columns but has no rows"):
    CsvSource(f"{folder}/a1.csv::{folder}/a1.csv")
  put(folder / "b.csv", "image,text\na,b\n")
  with pytest.raises(ValueError, match=r"b.csv: expected a first line"):
    CsvSource(spec)


def test_columns_can_be_named(folder):
  text = "image,caption,alt text,my image\nimages/0.png,a,b,images/1.png\nx,c,,y\n"
  path = put(folder / "pairs.csv", text)
  assert outcomes(CsvSource(path, caption_key="alt text")) == [
    ("images/0.png", ("b",)),
    ("row 2", "missing caption"),
  ]
  source = CsvSource(path, image_key="my image")
  assert outcomes(source) == [("images/1.png", ("a",)), ("y", "missing picture")]
  assert source[0].image == PICTURES[1]
  for key in ("caption_key", "image_key"):
    with pytest.raises(ValueError, match=r"pairs.csv: .* got 'image,caption,alt text,my"):
      CsvSource(path, **{key: "alt"})


def test_a_remote_file_is_looked_at_now_and_then(remote, monkeypatch):
  """Asking takes as long as reading a row."""
  path = put(f"{remote}/pairs.csv", "image,caption\n0.png,a\n0.png,b\n")
  put(f"{remote}/0.png", PICTURES[0])
  source = CsvSource(path)
  assert source[0].captions == ("a",)
  put(path, "image,caption\n0.png,a\n0.png,b\n\n")
  assert source[1].captions == ("b",)
  monkeypatch.setattr(csv_source, "_SECONDS_BETWEEN_LOOKS", 0)
  with pytest.raises(ValueError, match="has changed since it was read"):
    source[0]


@pytest.fixture
def indexed(folder, monkeypatch):
  """A file of 100 rows, of which some are damaged, large enough to have an index."""
  monkeypatch.setattr(csv_source, "_CACHED_FROM", 0)
  rows = [f'images/{i % 3}.png,"{i}' + '"' * (i % 7 != 3) + "\n" for i in range(100)]
  return pathlib.Path(put(folder / "pairs.csv", "image,caption\n" + "".join(rows)))


def test_an_index_travels_as_its_place_alone(indexed):
  expected = outcomes(CsvSource(indexed))
  assert len(expected) == 100
  assert expected[3] == ("row 4", "malformed row")
  with mock.patch.object(csv_rows, "find", side_effect=AssertionError):
    source = CsvSource(indexed)
    assert outcomes(source) == expected
    assert len(data := pickle.dumps(source)) < 100 * 8
    assert outcomes(pickle.loads(data)) == expected


@pytest.mark.parametrize("changed", ["size", "time", "columns", "format"])
def test_a_stale_index_is_made_anew(indexed, changed, monkeypatch):
  CsvSource(indexed)
  place = indexed.with_name(".pairs.csv.index")
  before, time = place.read_bytes(), indexed.stat().st_mtime_ns
  text = indexed.read_text()
  if changed == "size":
    put(indexed, text + "images/0.png,new\n")
    os.utime(indexed, ns=(time, time))
  elif changed == "time":
    put(indexed, text.replace("images/0.png", "i.png,twelve"))
    assert indexed.stat().st_size == len(text)
    os.utime(indexed, ns=(time, time + 1))
  elif changed == "columns":
    put(indexed, text.replace(",", ";"))
    os.utime(indexed, ns=(time, time))
  else:
    monkeypatch.setattr(csv_source, "_FORMAT", -1)
  source = CsvSource(indexed)
  assert place.read_bytes() != before
  with mock.patch.object(csv_source, "_CACHED_FROM", 2**40):
    assert outcomes(source) == outcomes(CsvSource(indexed))


def test_a_source_opened_elsewhere_does_without_its_index(indexed):
  expected = outcomes(CsvSource(indexed))
  data = pickle.dumps(CsvSource(indexed))
  indexed.with_name(".pairs.csv.index").unlink()
  assert outcomes(pickle.loads(data)) == expected
  put(indexed, "image,caption\nimages/0.png,a\n")
  with pytest.raises(ValueError, match="has changed since it was read"):
    pickle.loads(data)[0]


def test_small_files_have_no_index(folder):
  path = put(folder / "pairs.csv", "image,caption\nimages/0.png,a\n")
  CsvSource(path, cache=folder / "cache")
  assert {p.name for p in folder.iterdir()} == {"images", "pairs.csv"}
