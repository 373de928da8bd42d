import concurrent.futures
import csv
import errno
import io
import os
import pathlib
import pickle
import uuid
from unittest import mock

import fsspec
import hypothesis
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from rankclip_jax.data import csv_source, files, pipeline, tokenizer
from rankclip_jax.data.csv_source import CsvSource
from rankclip_jax.data.source import BadExample

COLOURS = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]


@pytest.fixture
def folder(tmp_path):
  """A folder with images/0.png to 2.png, each of one colour and a size of its own."""
  (tmp_path / "images").mkdir()
  for i, colour in enumerate(COLOURS):
    Image.new("RGB", (i + 1, 2), colour).save(tmp_path / f"images/{i}.png")
  return tmp_path


@pytest.fixture
def remote():
  """A folder of fsspec's memory file system with images/0.png to 2.png."""
  system, name = fsspec.filesystem("memory"), f"/{uuid.uuid4().hex}"
  for i, colour in enumerate(COLOURS):
    Image.new("RGB", (i + 1, 2), colour).save(data := io.BytesIO(), "PNG")
    system.pipe(f"{name}/images/{i}.png", data.getvalue())
  yield f"memory:/{name}"
  system.rm(name, recursive=True)


def write(path: pathlib.Path, data: bytes | str) -> pathlib.Path:
  path.write_bytes(data if isinstance(data, bytes) else data.encode())
  return path


def pixels(example) -> np.ndarray:
  assert isinstance(example.image, bytes)
  with Image.open(io.BytesIO(example.image)) as picture:
    return np.asarray(picture)


def outcome(source, index):
  """Key and captions of an example, or key and reason of what is none."""
  try:
    example = source[index]
    return example.key, example.captions
  except BadExample as bad:
    return bad.key, bad.reason


def outcomes(source):
  return [outcome(source, i) for i in range(len(source))]


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
  path = write(folder / "pairs", text)
  source = CsvSource(path, strict=strict)
  examples = list(source)
  assert [(e.key, e.captions, e.shard) for e in examples] == [
    ("images/0.png", ("a, b",), str(path)),
    ("images/1.png", ("c | d; e",), str(path)),
  ]
  for i, example in enumerate(examples):
    assert example.image == (folder / f"images/{i}.png").read_bytes()
    np.testing.assert_array_equal(pixels(example), np.full((2, i + 1, 3), COLOURS[i]))


# Whatever text there is, and often what delimits, quotes and ends lines. U+2028 and
# U+0085 end lines for str.splitlines, and for no CSV.
TEXT = st.text(
  st.sampled_from(",;|\t\"'\n\r \u2028\u0085\ufeffé😀") | st.characters(codec="utf-8"),
  min_size=1,
  max_size=12,
).filter(str.strip)


@given(
  captions=st.lists(TEXT, min_size=1, max_size=6),
  delimiter=st.sampled_from(",\t;|"),
  quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
  end=st.sampled_from(["\n", "\r\n"]),
  bom=st.booleans(),
  strict=st.booleans(),
  block=st.integers(1, 40),
)
@settings(
  max_examples=200,
  deadline=None,
  suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_every_text_comes_back(
  folder, captions, delimiter, quoting, end, bom, strict, block
):
  # Python's writer leaves a lone \r without quotes where it does not end lines.
  assume(quoting == csv.QUOTE_ALL or end == "\r\n" or "\r" not in "".join(captions))
  out = io.StringIO(newline="")
  writer = csv.writer(out, delimiter=delimiter, quoting=quoting, lineterminator=end)
  writer.writerow(["title", "filepath"])
  writer.writerows([caption, "images/0.png"] for caption in captions)
  data = out.getvalue().encode("utf-8-sig" if bom else "utf-8")
  with mock.patch.object(csv_source, "_BLOCK", block):
    source = CsvSource(write(folder / "pairs.csv", data), strict=strict)
  assert [e.captions for e in source] == [(caption,) for caption in captions]
  # Also out of order: every row is found by itself.
  assert source[len(captions) - 1].captions == (captions[-1],)


def fields_of(text: str, delimiter: str) -> list[str] | bool | None:
  """Fields of one record; None if it is still open at the end, False if it is none."""
  fields, rest = [], text
  while True:
    if rest.startswith('"'):
      # The field ends at the first quote that is not one of two.
      parts = rest[1:].replace('""', "\0\0").split('"', 1)
      if len(parts) == 1:
        return None
      field, rest = parts[0].replace("\0\0", '"'), parts[1].replace("\0\0", '""')
    else:
      stop = min(rest.find(c) % (len(rest) + 1) for c in delimiter + "\r\n")
      field, rest = rest[:stop], rest[stop:]
    fields.append(field)
    if not rest.strip("\r\n"):
      return fields
    if not rest.startswith(delimiter):
      return False
    rest = rest[1:]


def by_the_rules(data: bytes, delimiter: str, limit: int):
  """Outcome and line of each row by `CsvSource`'s docstring, a line at a time."""
  _, *lines = [line + b"\n" for line in data.split(b"\n")]  # without the header
  lines[-1] = lines[-1][:-1]
  found, at = [], 0
  while at < len(lines):
    if not lines[at].strip(b"\r\n"):
      at += 1
      continue
    taken, raw = 1, lines[at]
    while (fields := fields_of(raw.decode("latin-1"), delimiter)) is None:
      rest = lines[at + taken : at + taken + 1]
      if not rest or len(raw + rest[0]) > limit:
        break
      raw, taken = raw + rest[0], taken + 1
    if taken > 1 and not (fields and len(fields) == 2):
      taken, raw, fields = 1, lines[at], None
    found.append((outcome_of(raw, fields, len(found) + 1), at + 2))
    at += taken
  return found


def outcome_of(raw: bytes, fields: list[str] | bool | None, number: int):
  key = f"row {number}"
  try:
    raw.decode()
  except UnicodeDecodeError:
    return key, "undecodable caption"
  if not isinstance(fields, list) or len(fields) != 2:
    return key, "malformed row"
  name, caption = (field.encode("latin-1").decode() for field in fields)
  if not name.strip():
    return key, "malformed row"
  if not caption.strip():
    return key, "empty caption" if caption else "missing caption"
  return name, (caption,)


# Rows as they should be, of several lines too, and what makes them others. D delimits.
PIECES = st.sampled_from(
  [
    b"aDb\n",
    b'aD"b"\n',
    b'aD"b\nc"\n',
    b'"a\n"D"D\nb\r\n"\n',
    b'a""D"b""\n"""\r\n',
    b"\n",
  ]
) | st.sampled_from([b"a", b" ", b"D", b'"', b'""', b"\n", b"\r", b"\xff", "é".encode()])


@given(
  body=st.lists(PIECES, max_size=25).map(b"".join),
  delimiter=st.sampled_from(",\t"),
  block=st.integers(1, 80),
  limit=st.integers(14, 40),
)
@hypothesis.example(body=b'aD"b\n""D"""\nc"\n', delimiter=",", block=50, limit=40)
@hypothesis.example(body=b'a"D"Db\nc"\n', delimiter=",", block=50, limit=40)
@settings(
  max_examples=400,
  deadline=None,
  suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_rows_of_any_bytes_are_what_the_rules_say(
  tmp_path, body, delimiter, block, limit
):
  data = b"imageDcaption\n" + body
  data = data.replace(b"D", delimiter.encode())
  found = by_the_rules(data, delimiter, limit)
  assume(found)
  expected = [row for row, _ in found]
  bad = [line for (_, captions), line in found if isinstance(captions, str)]
  path = write(tmp_path / "pairs.csv", data)
  with (
    mock.patch.object(csv_source, "_BLOCK", block),
    mock.patch.object(csv_source, "_MAX_RECORD", limit),
    mock.patch.object(csv_source, "read_picture", return_value=b"picture"),
    mock.patch.object(csv_source, "picture_fault", return_value=""),
  ):
    assert outcomes(CsvSource(path)) == expected
    if bad:
      with pytest.raises(ValueError, match=f"pairs.csv, line {bad[0]}: "):
        CsvSource(path, strict=True)
    else:
      assert outcomes(CsvSource(path, strict=True)) == expected


@given(
  captions=st.lists(
    st.from_regex(r"[a-d]( ?[a-d,é])*", fullmatch=True), min_size=2, max_size=8
  ),
  quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
  data=st.data(),
)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_lost_quote_costs_its_own_row_alone(folder, captions, quoting, data):
  out = io.StringIO(newline="")
  writer = csv.writer(out, quoting=quoting, lineterminator="\n")
  writer.writerows(["images/0.png", caption] for caption in captions)
  text = out.getvalue()
  quotes = [i for i, c in enumerate(text) if c == '"']
  assume(quotes)
  lost = data.draw(st.sampled_from(quotes))
  row = text.count("\n", 0, lost)
  path = write(folder / "pairs.csv", f"image,caption\n{text[:lost]}{text[lost + 1 :]}")
  found = outcomes(CsvSource(path))
  assert len(found) == len(captions)
  for i, caption in enumerate(captions):
    if i != row:
      assert found[i] == ("images/0.png", (caption,))
  assert found[row] != ("images/0.png", (captions[row],))


@pytest.mark.parametrize(
  "text, message",
  [
    ("", "expected a first line with one column of filepath or image .* got ''"),
    ("path,text\na,b\n", r"got 'path,text'"),
    ("images/0.png,a dog\n", "expected a first line"),
    ("image,filepath,title\na,b,c\n", "expected a first line"),
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
    ("image,caption\na,b\n".encode("utf-16"), "expected a first line"),
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
  write(folder / "empty.png", "")
  path = write(folder / "pairs.csv", text)
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
  path = write(
    folder / "pairs.csv", b"image,caption\nimages/0.png,a\n%s\nimages/1.png,b\n" % damage
  )
  source = CsvSource(path)
  assert outcomes(source) == [GOOD[0], ("row 2", row), GOOD[1]]
  with pytest.raises(BadExample, match=message) as error:
    source[1]
  assert error.value.shard == str(path)
  with pytest.raises(ValueError, match="line 3: "):
    CsvSource(path, strict=True)


@pytest.mark.parametrize("more", [0, 1])
def test_a_row_may_have_128_kib_of_lines_and_no_more(folder, more):
  lines = ["c" * 63] * 2000
  row = 'images/2.png,"{}"\n'.format("\n".join(lines))
  row = row.replace("c", "d" * (2**17 + more - len(row) + 1), 1)
  caption = row.split('"')[1]
  text = f"image,caption\nimages/0.png,a\n{row}images/1.png,b\n"
  # Also where the text is looked through in pieces that end within the field.
  with mock.patch.object(csv_source, "_BLOCK", 1000):
    found = outcomes(CsvSource(write(folder / "pairs.csv", text)))
  assert (found[0], found[-1]) == GOOD
  if more:
    assert [reason for _, reason in found[1:-1]] == ["malformed row"] * len(lines)
  else:
    assert found[1:-1] == [("images/2.png", (caption,))]


def test_a_file_cut_in_the_middle_of_a_row(folder):
  path = write(folder / "pairs.csv", "image,caption\nimages/0.png,a\nimages/1.p")
  assert outcomes(CsvSource(path)) == [GOOD[0], ("row 2", "malformed row")]


@pytest.mark.parametrize("name", ["nothing.csv", "images"])
def test_a_missing_file_is_an_error(folder, remote, name):
  for place in (folder / name, f"{remote}/{name}"):
    with pytest.raises(ValueError, match=f"There is no file .*{name}"):
      CsvSource(place)


def truncated(folder: pathlib.Path, form: str) -> bytes:
  noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
  Image.fromarray(noise).save(folder / "whole", form)
  data = (folder / "whole").read_bytes()
  return data[: len(data) // 2]


@pytest.mark.parametrize(
  "data",
  [
    lambda folder: b"<html>404</html>",
    lambda folder: truncated(folder, "PNG"),
    lambda folder: truncated(folder, "JPEG"),
    lambda folder: truncated(folder, "WEBP"),
  ],
  ids=["html", "png", "jpeg", "webp"],
)
@pytest.mark.parametrize("strict", [True, False])
def test_pictures_are_not_decoded(folder, data, strict):
  write(folder / "bad.img", content := data(folder))
  path = write(folder / "pairs.csv", "image,caption\nimages/1.png,a\nbad.img,b\n")
  source = CsvSource(path, strict=strict)
  assert source[0].captions == ("a",)
  assert source[1].image == content


@pytest.mark.parametrize(
  "name, reason",
  [
    ("bad.img", "missing picture"),
    ("images", "missing picture"),
    ("images/0.png/1.png", "missing picture"),
    ("a\0b.png", "missing picture"),
    ("a" * 300, "missing picture"),
    ("nosuchscheme://images/0.png", "missing picture"),
    ("memory://no/such/picture.png", "missing picture"),
    ("empty.png", "empty picture"),
  ],
)
def test_a_missing_picture_is_an_error_that_names_path_and_row(folder, name, reason):
  write(folder / "empty.png", "")
  path = write(folder / "pairs.csv", f"image,caption\nimages/1.png,a\n{name},b\n")
  source = CsvSource(path)
  assert source[0].captions == ("a",)
  with pytest.raises(BadExample, match=r"pairs.csv, row 2: ") as error:
    source[1]
  assert repr(name) in str(error.value)
  assert (error.value.key, error.value.reason) == (name, reason)
  assert error.value.shard == str(path)


def test_what_may_pass_is_no_bad_example(folder, monkeypatch):
  path = write(folder / "pairs.csv", "image,caption\nimages/0.png,a\nabfs://b/c,b\n")
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


def test_paths_may_be_absolute_and_rows_past_the_end_are_no_rows(folder, tmp_path):
  picture = tmp_path / "images/2.png"
  source = CsvSource(write(folder / "pairs.tsv", f"filepath\ttitle\n{picture}\tblue\n"))
  assert source[0].key == str(picture)
  np.testing.assert_array_equal(pixels(source[0])[0, 0], COLOURS[2])
  for index in (-1, 1):
    with pytest.raises(IndexError, match=f"rows 0 to 0, got {index}"):
      source[index]


def test_remote_files_name_pictures_beside_them_and_anywhere(folder, remote):
  rows = [
    "images/0.png",
    "./images/1.png",
    "../{}/images/2.png".format(remote.rsplit("/", 1)[1]),
    str(folder / "images/0.png"),
    f"{remote}/images/1.png",
    "images/9.png",
  ]
  text = "image,caption\n" + "".join(f"{name},{i}\n" for i, name in enumerate(rows))
  path = f"{remote}/pairs.csv"
  fsspec.filesystem("memory").pipe(path.removeprefix("memory:/"), text.encode())
  source = pickle.loads(pickle.dumps(CsvSource(path)))
  assert len(source) == 6
  for i in range(5):
    assert (source[i].key, source[i].captions) == (rows[i], (str(i),))
    assert source[i].shard == path
    np.testing.assert_array_equal(pixels(source[i])[0, 0], COLOURS[i % 3])
  assert outcome(source, 5) == ("images/9.png", "missing picture")


def test_several_files_follow_each_other(folder, remote):
  system = fsspec.filesystem("memory")
  (folder / "sub").mkdir()
  for i, name in enumerate(["a1.csv", "a2.csv", "b.csv", "sub/c.tsv"]):
    comma = "\t" if name.endswith(".tsv") else ","
    picture = "../images/0.png" if "/" in name else "images/0.png"
    rows = [f"{picture}{comma}{name} {j}\n" for j in range(i)]
    write(folder / name, f"image{comma}caption\n" + "".join(rows))
  system.pipe(
    f"{remote}/d.csv".removeprefix("memory:/"), b"title;filepath\nd;images/1.png\n"
  )
  spec = f"{folder}/a{{2,1}}.csv::{folder}/b*.csv::{folder}/sub/c.tsv::{remote}/d.csv"
  source = CsvSource(spec)
  assert [example.captions[0] for example in source] == [
    *("a2.csv 0", "b.csv 0", "b.csv 1", "sub/c.tsv 0", "sub/c.tsv 1", "sub/c.tsv 2"),
    "d",
  ]
  assert source[0].shard == f"{folder}/a2.csv"
  assert source[6].shard == f"{remote}/d.csv"
  np.testing.assert_array_equal(pixels(source[5])[0, 0], COLOURS[0])
  np.testing.assert_array_equal(pixels(source[6])[0, 0], COLOURS[1])
  with pytest.raises(ValueError, match=r"a1.csv names columns but has no rows"):
    CsvSource(spec, strict=True)
  with pytest.raises(ValueError, match="names columns but has no rows"):
    CsvSource(f"{folder}/a1.csv::{folder}/a1.csv")
  write(folder / "b.csv", "image,text\na,b\n")
  with pytest.raises(ValueError, match=r"b.csv: expected a first line"):
    CsvSource(spec)


def test_the_caption_column_can_be_named(folder):
  text = "image,caption,alt text\nimages/0.png,a,b\nimages/1.png,c,\n"
  path = write(folder / "pairs.csv", text)
  assert outcomes(CsvSource(path, caption_key="alt text")) == [
    ("images/0.png", ("b",)),
    ("row 2", "missing caption"),
  ]
  with pytest.raises(ValueError, match=r"one of alt, .* got 'image,caption,alt text'"):
    CsvSource(path, caption_key="alt")


@pytest.mark.parametrize("place", ["local", "remote"])
def test_a_file_that_changes_is_noticed(folder, remote, place, monkeypatch):
  text = "image,caption\nimages/0.png,red\nimages/1.png,green\n"
  changed = text.replace("images/0", "images/2")
  if place == "local":
    source = CsvSource(path := write(folder / "pairs.csv", text))
    time = path.stat().st_mtime_ns
    write(path, changed)
    os.utime(path, ns=(time, time + 10**9))
  else:
    system, path = fsspec.filesystem("memory"), f"{remote}/pairs.csv"
    system.pipe(path.removeprefix("memory:/"), text.encode())
    source = CsvSource(path)
    monkeypatch.setattr(csv_source, "_SECONDS_BETWEEN_LOOKS", 0)
    assert source[0].key == "images/0.png"
    system.pipe(path.removeprefix("memory:/"), changed.encode() + b"\n")
  with pytest.raises(ValueError, match="has changed since it was read"):
    source[0]


def test_rows_are_read_from_several_threads_at_once(folder):
  rows = [(f"images/{i % 3}.png", f"line {i},\nand the next") for i in range(300)]
  with (folder / "pairs.csv").open("w", newline="") as file:
    csv.writer(file).writerows([("image", "caption"), *rows])
  source = CsvSource(folder / "pairs.csv")
  order = np.random.default_rng(0).permutation(300).tolist()
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    for i, example in zip(order, pool.map(source.__getitem__, order), strict=True):
      assert (example.key, example.captions) == (rows[i][0], (rows[i][1],))
      assert tuple(pixels(example)[0, 0]) == COLOURS[i % 3]


@pytest.fixture
def indexed(folder, monkeypatch):
  """A file of 100 rows, of which some are damaged, large enough to have an index."""
  monkeypatch.setattr(csv_source, "_CACHED_FROM", 0)
  rows = [f'images/{i % 3}.png,"{i}' + '"' * (i % 7 != 3) + "\n" for i in range(100)]
  return write(folder / "pairs.csv", "image,caption\n" + "".join(rows))


@pytest.fixture
def unindexable(monkeypatch):
  """Makes looking through a file an error."""

  def forbid():
    monkeypatch.setattr(csv_source, "_starts", mock.Mock(side_effect=AssertionError))

  return forbid


def test_a_file_is_looked_through_once(indexed, unindexable):
  names = {path.name for path in indexed.parent.iterdir()}
  expected = outcomes(CsvSource(indexed))
  assert len(expected) == 100
  assert expected[3] == ("row 4", "malformed row")
  assert {path.name for path in indexed.parent.iterdir()} - names == {".pairs.csv.index"}
  # Globs do not take it for data.
  assert files.expand(f"{indexed.parent}/p*") == [str(indexed)]
  unindexable()
  source = CsvSource(indexed)
  assert outcomes(source) == expected
  # To other processes travels where the index is, not what it says.
  assert len(data := pickle.dumps(source)) < 100 * 8
  assert outcomes(pickle.loads(data)) == expected


@pytest.mark.parametrize(
  "damage",
  [
    lambda data: b"",
    lambda data: b"no index",
    lambda data: data[:16],
    lambda data: data[:-8],
    lambda data: data[:-3],
    lambda data: data + data[-8:],
    lambda data: data[:100] + bytes([data[100] ^ 1]) + data[101:],
    lambda data: bytes(len(data)),
  ],
)
def test_a_damaged_index_is_made_anew(indexed, damage, unindexable):
  expected = outcomes(CsvSource(indexed))
  place = indexed.with_name(".pairs.csv.index")
  place.write_bytes(damage(whole := place.read_bytes()))
  assert outcomes(CsvSource(indexed)) == expected
  assert place.read_bytes() == whole
  unindexable()
  assert outcomes(CsvSource(indexed)) == expected


@pytest.mark.parametrize("changed", ["size", "time", "columns", "format"])
def test_a_stale_index_is_made_anew(indexed, changed, monkeypatch):
  CsvSource(indexed)
  place = indexed.with_name(".pairs.csv.index")
  before, time = place.read_bytes(), indexed.stat().st_mtime_ns
  text = indexed.read_text()
  if changed == "size":
    write(indexed, text + "images/0.png,new\n")
    os.utime(indexed, ns=(time, time))
  elif changed == "time":
    write(indexed, text.replace("images/0.png", "i.png,twelve"))
    assert indexed.stat().st_size == len(text)
    os.utime(indexed, ns=(time, time + 1))
  elif changed == "columns":
    write(indexed, text.replace(",", ";"))
    os.utime(indexed, ns=(time, time))
  else:
    monkeypatch.setattr(csv_source, "_FORMAT", -1)
  source = CsvSource(indexed)
  assert place.read_bytes() != before
  with mock.patch.object(csv_source, "_CACHED_FROM", 2**40):
    assert outcomes(source) == outcomes(CsvSource(indexed))


def test_an_index_goes_elsewhere_where_it_cannot_lie_beside(indexed, tmp_path, remote):
  expected = outcomes(CsvSource(indexed))
  place = indexed.with_name(".pairs.csv.index")
  place.unlink()
  place.mkdir()  # Nothing can be written there, by root neither.
  names = set(indexed.parent.iterdir())
  # Without another place it works all the same, in memory.
  assert outcomes(CsvSource(indexed)) == expected
  assert set(indexed.parent.iterdir()) == names
  assert outcomes(pickle.loads(pickle.dumps(CsvSource(indexed)))) == expected
  cache = tmp_path / "some" / "cache"
  twin = indexed.parent / "images" / "pairs.csv"
  write(twin, "image,caption\n0.png,a\n")
  twin.with_name(".pairs.csv.index").mkdir()
  path = f"{remote}/pairs.csv"
  fsspec.filesystem("memory").pipe(
    path.removeprefix("memory:/"), b"image,caption\nimages/0.png,b\n"
  )
  spec = f"{indexed}::{twin}::{path}"
  everything = outcomes(CsvSource(spec, cache=cache))
  assert everything == [*expected, ("0.png", ("a",)), ("images/0.png", ("b",))]
  assert len(list(cache.iterdir())) == 3
  with mock.patch.object(csv_source, "_starts", side_effect=AssertionError):
    source = CsvSource(spec, cache=cache)
    assert outcomes(pickle.loads(pickle.dumps(source))) == everything
  assert not any(place.iterdir())


def test_a_source_opened_elsewhere_does_without_its_index(indexed):
  expected = outcomes(CsvSource(indexed))
  data = pickle.dumps(CsvSource(indexed))
  indexed.with_name(".pairs.csv.index").unlink()
  assert outcomes(pickle.loads(data)) == expected
  write(indexed, "image,caption\nimages/0.png,a\n")
  with pytest.raises(ValueError, match="has changed since it was read"):
    pickle.loads(data)[0]


def test_small_files_have_no_index(folder):
  path = write(folder / "pairs.csv", "image,caption\nimages/0.png,a\n")
  CsvSource(path, cache=folder / "cache")
  assert {p.name for p in folder.iterdir()} == {"images", "pairs.csv"}


def test_a_bar_is_shown_on_terminals_alone(monkeypatch, capsys):
  for terminal in (False, True):
    monkeypatch.setenv("TTY_COMPATIBLE", str(int(terminal)))
    for wanted in (False, True):
      with csv_source.progress("indexing", 10, shown=wanted) as show:
        show(10)
      shown = capsys.readouterr()
      assert ("indexing" in shown.err) == (terminal and wanted)
      assert not shown.out


def test_it_trains(folder):
  text = "image,caption\n" + "".join(f"images/{i % 3}.png,{i % 3}\n" for i in range(10))
  words = tokenizer.Tokenizer(8)
  (batch,) = pipeline.train_batches(
    CsvSource(write(folder / "pairs.csv", text)),
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
    np.testing.assert_array_equal(tokens, words([str(index % 3)])[0])
