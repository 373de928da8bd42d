"""Pictures and captions that a CSV or TSV file lists, one pair a row."""

import array
import csv
import pathlib
from collections.abc import Iterator
from typing import BinaryIO

from absl import logging
from PIL import Image

from rankclip_jax.data import transforms
from rankclip_jax.data.source import Example

_DELIMITERS = ",\t;|"
_IMAGE_COLUMNS = ("filepath", "image")  # open_clip's name; CyCLIP's and RankCLIP's
_CAPTION_COLUMNS = ("title", "caption")


class CsvSource:
  """A file of picture paths and captions as a `Source`.

  The first line names the columns: `filepath` or `image` holds paths, relative to the
  file's folder, `title` or `caption` the captions; others are left alone. It also shows
  the delimiter: comma, TAB, semicolon or pipe. Fields are quoted as in Excel and pandas
  (RFC 4180), the text is UTF-8, and blank lines mean nothing.

  Every row is an example with one caption, also where rows share a picture. Only where
  rows begin is kept in memory, 8 bytes each; the file must stay as it is.
  """

  def __init__(self, path: pathlib.Path):
    """Reads the file once and checks every row, but opens no picture.

    Raises:
      ValueError: if the file is missing, its columns are unknown, or there are no rows;
        with the line's number, if a row has a field too many or too few, no path or no
        caption, or quotes or bytes that make no text.
    """
    if not path.is_file():
      raise ValueError(f"There is no file {path}; give a CSV or TSV file of pictures.")
    self._path = path
    self._version = _version(path)
    self._delimiter, header = _header(path)
    (self._image,), (self._caption,) = _columns(header)
    self._starts = array.array("Q")
    for line, start, fields in _rows(path, self._delimiter):
      if len(fields) != len(header):
        raise ValueError(
          f"{path}, line {line}: expected the {len(header)} fields of the first line, "
          f"got {len(fields)}; put fields that hold the delimiter into quotes."
        )
      if not (fields[self._image].strip() and fields[self._caption].strip()):
        raise ValueError(
          f"{path}, line {line}: expected a path and a caption, got "
          f"{fields[self._image]!r} and {fields[self._caption]!r}; take the row out."
        )
      self._starts.append(start)
    # The first record is the header; after the last one there is the end of the file.
    del self._starts[0]
    if not self._starts:
      raise ValueError(f"{path} names columns but has no rows; give it some.")
    self._starts.append(self._version[0])
    logging.info("Found %d pairs in %s", len(self), path)

  def __len__(self) -> int:
    return len(self._starts) - 1

  def __getitem__(self, index: int, /) -> Example:
    """Opens the picture; the example's key is its path as in the file.

    Raises:
      ValueError: if the file has changed, or the picture is missing or damaged.
    """
    if not 0 <= index < len(self):
      raise IndexError(f"{self._path} has rows 0 to {len(self) - 1}, got {index}")
    start, stop = self._starts[index : index + 2]
    with self._path.open("rb") as file:
      if _version(self._path) != self._version:
        raise ValueError(f"{self._path} has changed since it was read; start again.")
      file.seek(start)
      text = file.read(stop - start).decode()
    fields = next(csv.reader([text], delimiter=self._delimiter))
    name = fields[self._image]
    try:
      with Image.open(self._path.parent / name) as picture:
        image = transforms.to_rgb(picture)
    except Exception as error:  # Pillow's decoders raise a dozen kinds.
      raise ValueError(
        f"{self._path}, row {index + 1}: cannot read the picture {name!r} "
        f"({type(error).__name__}: {error}); replace it, or take the row out."
      ) from error
    return Example(name, image, (fields[self._caption],))


def _version(path: pathlib.Path) -> tuple[int, int]:
  """Size and time of change."""
  stat = path.stat()
  return stat.st_size, stat.st_mtime_ns


def _header(path: pathlib.Path) -> tuple[str, list[str]]:
  """The delimiter by which the first record has the columns, and that record."""
  for delimiter in _DELIMITERS:
    try:
      _, _, header = next(_rows(path, delimiter), (0, 0, []))
    except ValueError:  # No quotes of this delimiter, perhaps of another.
      continue
    if all(len(found) == 1 for found in _columns(header)):
      return delimiter, header
  with path.open("rb") as file:
    first = file.readline(200).decode(errors="replace")
  raise ValueError(
    f"{path}: expected a first line with one column of {' or '.join(_IMAGE_COLUMNS)} and "
    f"one of {' or '.join(_CAPTION_COLUMNS)}, between commas, TABs, semicolons or pipes, "
    f"got {first!r}; rename the columns, or write that line."
  )


def _columns(header: list[str]) -> list[list[int]]:
  """Which columns may hold the pictures' paths, and which the captions."""
  return [
    [i for i, name in enumerate(header) if name in names]
    for names in (_IMAGE_COLUMNS, _CAPTION_COLUMNS)
  ]


def _rows(path: pathlib.Path, delimiter: str) -> Iterator[tuple[int, int, list[str]]]:
  """Number of the first line, byte offset and fields of every record, header included.

  Raises:
    ValueError: with the line's number, for bytes that are not UTF-8 and wrong quotes. A
      lost quote would otherwise swallow rows up to the next one.
  """
  line = offset = 0

  def lines(file: BinaryIO) -> Iterator[str]:
    nonlocal line, offset
    for raw in file:
      line += 1
      offset += len(raw)
      yield raw.decode("utf-8-sig" if line == 1 else "utf-8")

  with path.open("rb") as file:
    reader = csv.reader(lines(file), delimiter=delimiter, strict=True)
    while True:
      first, start = line + 1, offset
      try:
        fields = next(reader, None)
      except UnicodeDecodeError as error:
        raise ValueError(
          f"{path}, line {line}: {error}; convert the file to UTF-8."
        ) from error
      except csv.Error as error:
        raise ValueError(
          f"{path}, line {first}: {error}; close quotes that were opened, double "
          "quotes within quotes, and quote fields that hold line breaks."
        ) from error
      if fields is None:
        return
      if fields:
        yield first, start, fields
