"""Pictures and captions that CSV or TSV files list, one pair a row."""

import concurrent.futures
import csv
import functools
import math
import os
import pathlib
import time
import zlib
from collections.abc import Callable

import numpy as np
from absl import logging

from rankclip_jax.data import bars, csv_rows, files, index_files, picture_files
from rankclip_jax.data.csv_header import read_header
from rankclip_jax.data.offsets import Offsets
from rankclip_jax.data.source import BadExample, Example, Reason, Shard

_CACHED_FROM = 2**20  # bytes; smaller files are indexed faster than an index is read
_SHOWN_FROM = 2**26  # bytes from which one looks at a bar
_FORMAT = 1  # of the index
_SECONDS_BETWEEN_LOOKS = 60.0  # at whether a remote file has changed
_SEEN = 2**16  # bytes of a file by which one knows it again
_THREADS = 4  # that open files: to wait for remote ones at once


class CsvSource:
  """Files of picture paths and captions as a `Source`.

  The first line of a file names its columns: `filepath` or `image` holds paths, relative
  to the file's folder, absolute, or with a scheme; `title` or `caption` the captions;
  others are left alone. It also shows the delimiter: comma, TAB, semicolon or pipe.
  Fields are quoted as in Excel and pandas (RFC 4180), the text is UTF-8, lines end in \\n
  or \\r\\n, and blank lines mean nothing.

  Every row is an example with one caption, also where rows share a picture; its key is
  the path as in the file.

  A quoted field may hold line breaks, in a row that has all its fields, whose quotes
  close, and of at most 128 KiB. Where lines make no such row, quotes were lost: the first
  of the lines is one bad row, and reading goes on at the next line, so that a lost quote
  costs its own line and not the rest of the file.

  Only where rows begin is kept, 8 bytes each. For a file of 1 MiB or more this index is
  kept beside it as well (`.pairs.csv.index`), or in `cache`, and mapped from there: the
  second time 10 million rows are open at once. The files must stay as they are.
  """

  def __init__(
    self,
    spec: str | os.PathLike[str],
    *,
    strict: bool = False,
    caption_key: str = "",
    image_key: str = "",
    cache: pathlib.Path | None = None,
  ):
    """Reads the files once, unless their index is there, and opens no picture.

    Args:
      spec: files as in `files.expand`: one, several with `::`, braces, globs.
      strict: checks every row now; else bad rows are `BadExample`s when they are drawn.
      caption_key: the column with the captions; "" for `title` or `caption`.
      image_key: the column with the pictures' paths; "" for `filepath` or `image`.
      cache: a folder for the index of files beside which nothing can be written.

    Raises:
      ValueError: if a file is missing, its columns are unknown, or there are no rows; if
        `strict`, also, with the line's number, if a row has a field too many or too few,
        no path or no caption, quotes or bytes that make no text, or names a local
        picture that is missing or empty.
    """
    spec = os.fspath(spec)
    paths = files.expand(spec)
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
      total = sum(pool.map(_size, paths))
      with bars.bar("indexing", total, shown=total >= _SHOWN_FROM) as show:
        table = lambda path: _Table(path, image_key, caption_key, cache, show)
        self._tables = list(pool.map(table, paths))
    self._rows = Offsets(map(len, self._tables), f"{spec} has rows")
    for table in self._tables if strict else ():
      table.check()
    if not len(self):
      raise ValueError(f"{spec} names columns but has no rows; give it some.")
    logging.info("Found %d pairs in %s", len(self), spec)

  def __len__(self) -> int:
    return len(self._rows)

  @property
  def shards(self) -> list[Shard]:
    """The files, see `source.identity_of`."""
    return [table.shard for table in self._tables]

  def __getitem__(self, index: int, /) -> Example:
    """Reads the picture's bytes.

    Raises:
      BadExample: if the row is damaged, or its picture missing or empty.
      ValueError: if the file has changed.
    """
    table, row = self._rows.locate(index)
    return self._tables[table].example(row)


class _Table:
  """One file: what its first line says, and where its rows begin."""

  def __init__(
    self,
    path: str,
    image_key: str,
    caption_key: str,
    cache: pathlib.Path | None,
    show: bars.Show,
  ):
    self._path, self._cache, self._looked = path, cache, -math.inf
    self._version = files.version(path)
    self._header = read_header(path, image_key=image_key, caption_key=caption_key)
    self._starts = self._index(show)

  def __len__(self) -> int:
    return len(self._starts) - 1

  @property
  def shard(self) -> Shard:
    # Where rows begin, and what the first of them say: sorted anew they differ.
    head = files.read(self._path, 0, _SEEN)
    contents = zlib.crc32(head, zlib.crc32(np.ascontiguousarray(self._starts).data))
    return Shard(self._path, len(self), self._version[0], contents)

  def __getstate__(self):
    state = self.__dict__ | {"_looked": -math.inf}
    if isinstance(self._starts, np.memmap):  # Mapped again elsewhere, not copied.
      state["_starts"] = None
    return state

  def __setstate__(self, state):
    self.__dict__.update(state)
    if self._starts is None:
      self._starts = self._index(lambda step: None)

  def example(self, row: int) -> Example:
    """The picture's bytes and the caption of a row."""
    start, stop = self._starts[row : row + 2].tolist()
    self._look()
    raw = files.read(self._path, start, stop - start)
    where = f"{self._path}, row {row + 1}"
    name, caption = self._pair(raw, lambda: where, f"row {row + 1}")
    image = picture_files.read(name, self._path, where)
    return Example(name, image, (caption,), self._path)

  def check(self) -> None:
    """Raises ValueError with the line's number for the first bad row, if any."""
    if not len(self):
      raise ValueError(f"{self._path} names columns but has no rows; give it some.")
    missing = None
    size = self._version[0]
    with bars.bar("checking", size, shown=size >= _SHOWN_FROM) as show:
      for start, raw in csv_rows.read_all(self._path, self._starts, show):
        where = functools.partial(self._line, start)
        name, _ = self._pair(raw, where, "")
        if missing is None and (fault := picture_files.fault(name, self._path)):
          missing = f"{where()}: {fault}"
    if missing:
      raise ValueError(missing)

  def _line(self, start: int) -> str:
    return f"{self._path}, line {csv_rows.line_number(self._path, start)}"

  def _pair(self, raw: bytes, where: Callable[[], str], key: str) -> tuple[str, str]:
    """Path and caption of a row; raises BadExample if it has none."""

    def bad(reason: Reason, message: str) -> BadExample:
      message = f"{where()}: {message}"
      return BadExample(message, key=key, reason=reason, shard=self._path)

    header = self._header
    try:
      fields = next(csv.reader([raw.decode()], delimiter=header.delimiter, strict=True))
    except UnicodeDecodeError as error:
      raise bad("undecodable caption", f"{error}; convert the file to UTF-8.") from error
    except csv.Error as error:
      remedy = (
        "close quotes that were opened, double quotes within quotes, and quote fields "
        "that hold line breaks or the delimiter."
      )
      raise bad("malformed row", f"{error}; {remedy}") from error
    if len(fields) != header.width:
      raise bad(
        "malformed row",
        f"expected the {header.width} fields of the first line, got {len(fields)}; put "
        "fields that hold the delimiter into quotes.",
      )
    name, caption = fields[header.image], fields[header.caption]
    if name.strip() and caption.strip():
      return name, caption
    if not name.strip():
      reason = "malformed row"
    else:
      reason = "empty caption" if caption else "missing caption"
    raise bad(
      reason,
      f"expected a path and a caption, got {name!r} and {caption!r}; take the row out.",
    )

  def _look(self) -> None:
    # Asking costs nothing here, and as much as reading a row elsewhere.
    now = time.monotonic()
    if not files.is_remote(self._path) or now > self._looked + _SECONDS_BETWEEN_LOOKS:
      self._unchanged()
      self._looked = now

  def _unchanged(self) -> None:
    if files.version(self._path) != self._version:
      raise ValueError(f"{self._path} has changed since it was read; start again.")

  def _index(self, show: bars.Show) -> np.ndarray:
    """Where rows begin and the last one ends, uint64 [rows + 1], from the cache."""
    size, header = self._version[0], self._header
    facts = (_FORMAT, *self._version, header.delimiter, header.width)
    cached = size >= _CACHED_FROM
    if cached and (found := index_files.load(self._path, facts, self._cache)) is not None:
      return found
    began = time.monotonic()
    starts = csv_rows.find(self._path, header, size, show)
    self._unchanged()
    if not cached:
      return starts
    logging.info(
      "Indexed the %d rows of %s in %.1f s",
      len(starts) - 1,
      self._path,
      time.monotonic() - began,
    )
    index_files.save(self._path, facts, self._cache, starts)
    found = index_files.load(self._path, facts, self._cache)
    return starts if found is None else found


def _size(path: str) -> int:
  """Bytes of a file; raises ValueError if there is none."""
  if files.is_remote(path):
    system, name = files.filesystem(path)
    there = system.isfile(name)
  else:
    there = os.path.isfile(path)
  if not there:
    raise ValueError(f"There is no file {path}; give a CSV or TSV file of pictures.")
  return files.version(path)[0]
