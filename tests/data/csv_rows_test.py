"""Where rows begin, by what a source has of them."""

import csv
import io
from unittest import mock

import hypothesis
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from rankclip_jax.data import csv_header, csv_rows, picture_files
from rankclip_jax.data.csv_source import CsvSource
from tests.data import examples


@pytest.fixture(autouse=True)
def _pictures(monkeypatch):
  """Every picture is there."""
  monkeypatch.setattr(picture_files, "read", lambda *_: b"picture")
  monkeypatch.setattr(picture_files, "fault", lambda *_: "")


def outcomes(source):
  return examples.outcomes(source, "key", "captions")


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
  tmp_path, captions, delimiter, quoting, end, bom, strict, block
):
  # Python's writer leaves a lone \r without quotes where it does not end lines.
  assume(quoting == csv.QUOTE_ALL or end == "\r\n" or "\r" not in "".join(captions))
  out = io.StringIO(newline="")
  writer = csv.writer(out, delimiter=delimiter, quoting=quoting, lineterminator=end)
  writer.writerow(["title", "filepath"])
  writer.writerows([caption, "images/0.png"] for caption in captions)
  data = out.getvalue().encode("utf-8-sig" if bom else "utf-8")
  with mock.patch.object(csv_rows, "_BLOCK", block):
    source = CsvSource(examples.put(tmp_path / "pairs.csv", data), strict=strict)
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
  path = examples.put(tmp_path / "pairs.csv", data)
  with (
    mock.patch.object(csv_rows, "_BLOCK", block),
    mock.patch.object(csv_header, "MAX_RECORD", limit),
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
def test_a_lost_quote_costs_its_own_row_alone(tmp_path, captions, quoting, data):
  out = io.StringIO(newline="")
  writer = csv.writer(out, quoting=quoting, lineterminator="\n")
  writer.writerows(["images/0.png", caption] for caption in captions)
  text = out.getvalue()
  quotes = [i for i, c in enumerate(text) if c == '"']
  assume(quotes)
  lost = data.draw(st.sampled_from(quotes))
  row = text.count("\n", 0, lost)
  path = examples.put(
    tmp_path / "pairs.csv", f"image,caption\n{text[:lost]}{text[lost + 1 :]}"
  )
  found = outcomes(CsvSource(path))
  assert len(found) == len(captions)
  for i, caption in enumerate(captions):
    if i != row:
      assert found[i] == ("images/0.png", (caption,))
  assert found[row] != ("images/0.png", (captions[row],))


@pytest.mark.parametrize("more", [0, 1])
def test_a_row_may_have_128_kib_of_lines_and_no_more(tmp_path, more):
  lines = ["c" * 63] * 2000
  row = 'images/2.png,"{}"\n'.format("\n".join(lines))
  row = row.replace("c", "d" * (2**17 + more - len(row) + 1), 1)
  caption = row.split('"')[1]
  text = f"image,caption\nimages/0.png,a\n{row}images/1.png,b\n"
  # Also where the text is looked through in pieces that end within the field.
  with mock.patch.object(csv_rows, "_BLOCK", 1000):
    found = outcomes(CsvSource(examples.put(tmp_path / "pairs.csv", text)))
  assert found[0] == ("images/0.png", ("a",))
  assert found[-1] == ("images/1.png", ("b",))
  if more:
    assert [reason for _, reason in found[1:-1]] == ["malformed row"] * len(lines)
  else:
    assert found[1:-1] == [("images/2.png", (caption,))]


def test_a_file_cut_in_the_middle_of_a_row(tmp_path):
  path = examples.put(tmp_path / "pairs.csv", "image,caption\nimages/0.png,a\nimages/1.p")
  assert outcomes(CsvSource(path)) == [
    ("images/0.png", ("a",)),
    ("row 2", "malformed row"),
  ]
