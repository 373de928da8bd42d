"""Pictures and captions that CSV or TSV files list, one pair a row."""

import bisect
import concurrent.futures
import contextlib
import csv
import errno
import hashlib
import io
import itertools
import math
import os
import pathlib
import posixpath
import time
import uuid
import zlib
from collections.abc import Callable, Iterator

import fsspec
import numpy as np
import rich.console
import rich.progress
from absl import logging

from rankclip_jax.data import files
from rankclip_jax.data.source import BadExample, Example, Reason

_DELIMITERS = ",\t;|"
_IMAGE_COLUMNS = ("filepath", "image")  # open_clip's name; CyCLIP's and RankCLIP's
_CAPTION_COLUMNS = ("title", "caption")
# No caption is longer, and Python's csv module takes no longer field: quotes that are
# open for more bytes than this were lost.
_MAX_RECORD = 2**17
_BLOCK = 2**23  # bytes looked through at a time
_CACHED_FROM = 2**20  # bytes; smaller files are indexed faster than an index is read
_SHOWN_FROM = 2**26  # bytes from which one looks at a bar
_FORMAT = 1  # of the index
_SECONDS_BETWEEN_LOOKS = 60.0  # at whether a remote file has changed
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
    cache: pathlib.Path | None = None,
  ):
    """Reads the files once, unless their index is there, and opens no picture.

    Args:
      spec: files as in `files.expand`: one, several with `::`, braces, globs.
      strict: checks every row now; else bad rows are `BadExample`s when they are drawn.
      caption_key: the column with the captions; "" for `title` or `caption`.
      cache: a folder for the index of files beside which nothing can be written.

    Raises:
      ValueError: if a file is missing, its columns are unknown, or there are no rows; if
        `strict`, also, with the line's number, if a row has a field too many or too few,
        no path or no caption, quotes or bytes that make no text, or names a local
        picture that is missing or empty.
    """
    self._spec = os.fspath(spec)
    paths = files.expand(self._spec)
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
      total = sum(pool.map(_size, paths))
      with progress("indexing", total, shown=total >= _SHOWN_FROM) as show:
        tables = pool.map(lambda path: _Table(path, caption_key, cache, show), paths)
        self._tables = list(tables)
    self._ends = list(itertools.accumulate(len(table) for table in self._tables))
    for table in self._tables if strict else ():
      table.check()
    if not len(self):
      raise ValueError(f"{self._spec} names columns but has no rows; give it some.")
    logging.info("Found %d pairs in %s", len(self), self._spec)

  def __len__(self) -> int:
    return self._ends[-1]

  def __getitem__(self, index: int, /) -> Example:
    """Reads the picture's bytes.

    Raises:
      BadExample: if the row is damaged, or its picture missing or empty.
      ValueError: if the file has changed.
    """
    if not 0 <= index < len(self):
      raise IndexError(f"{self._spec} has rows 0 to {len(self) - 1}, got {index}")
    which = bisect.bisect_right(self._ends, index)
    table = self._tables[which]
    return table.example(int(index) - self._ends[which] + len(table))


class _Table:
  """One file: what its first line says, and where its rows begin."""

  def __init__(
    self,
    path: str,
    caption_key: str,
    cache: pathlib.Path | None,
    show: Callable[[int], object] = lambda step: None,
  ):
    self._path, self._cache, self._looked = path, cache, -math.inf
    self._version = files.version(path)
    captions = (caption_key,) if caption_key else _CAPTION_COLUMNS
    self._delimiter, header, self._begin = _header(path, captions)
    (self._image,), (self._caption,) = _columns(header, captions)
    self._width = len(header)
    self._starts = self._index(show)

  def __len__(self) -> int:
    return len(self._starts) - 1

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
    image = read_picture(name, self._path, where)
    return Example(name, image, (caption,), self._path)

  def check(self) -> None:
    """Raises ValueError with the line's number for the first bad row, if any."""
    if not len(self):
      raise ValueError(f"{self._path} names columns but has no rows; give it some.")
    missing = None
    size = self._version[0]
    with progress("checking", size, shown=size >= _SHOWN_FROM) as show:
      for start, raw in self._records(show):
        where = lambda start=start: f"{self._path}, line {self._line(start)}"
        name, _ = self._pair(raw, where, "")
        if missing is None and (fault := picture_fault(name, self._path)):
          missing = f"{where()}: {fault}"
    if missing:
      raise ValueError(missing)

  def _pair(self, raw: bytes, where: Callable[[], str], key: str) -> tuple[str, str]:
    """Path and caption of a record; raises BadExample if it has none."""

    def bad(reason: Reason, message: str) -> BadExample:
      message = f"{where()}: {message}"
      return BadExample(message, key=key, reason=reason, shard=self._path)

    try:
      fields = next(csv.reader([raw.decode()], delimiter=self._delimiter, strict=True))
    except UnicodeDecodeError as error:
      raise bad("undecodable caption", f"{error}; convert the file to UTF-8.") from error
    except csv.Error as error:
      remedy = (
        "close quotes that were opened, double quotes within quotes, and quote fields "
        "that hold line breaks or the delimiter."
      )
      raise bad("malformed row", f"{error}; {remedy}") from error
    if len(fields) != self._width:
      raise bad(
        "malformed row",
        f"expected the {self._width} fields of the first line, got {len(fields)}; put "
        "fields that hold the delimiter into quotes.",
      )
    name, caption = fields[self._image], fields[self._caption]
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

  def _records(self, show: Callable[[int], object]) -> Iterator[tuple[int, bytes]]:
    """Offset and bytes of every record, read in large pieces."""
    done = 0
    while done < len(self):
      begin = int(self._starts[done])
      end = int(np.searchsorted(self._starts, begin + _BLOCK, side="right")) - 1
      bounds = self._starts[done : max(end, done + 1) + 1].tolist()
      block = files.read(self._path, begin, bounds[-1] - begin)
      for start, stop in itertools.pairwise(bounds):
        yield start, block[start - begin : stop - begin]
      done += len(bounds) - 1
      show(len(block))

  def _line(self, offset: int) -> int:
    """The number, from 1, of the line that begins at `offset`."""
    pieces = (
      files.read(self._path, at, min(_BLOCK, offset - at))
      for at in range(0, offset, _BLOCK)
    )
    return 1 + sum(piece.count(b"\n") for piece in pieces)

  def _look(self) -> None:
    # Asking costs nothing here, and as much as reading a row elsewhere.
    now = time.monotonic()
    if not files.is_remote(self._path) or now > self._looked + _SECONDS_BETWEEN_LOOKS:
      self._unchanged()
      self._looked = now

  def _unchanged(self) -> None:
    if files.version(self._path) != self._version:
      raise ValueError(f"{self._path} has changed since it was read; start again.")

  def _index(self, show: Callable[[int], object]) -> np.ndarray:
    """Where records begin and the last one ends, uint64 [rows + 1], from the cache."""
    facts = (_FORMAT, *self._version, self._delimiter, self._width)
    cached = self._version[0] >= _CACHED_FROM
    if cached and (found := load_index(self._path, facts, self._cache)) is not None:
      return found
    began = time.monotonic()
    starts = _starts(
      self._path, self._begin, self._version[0], self._delimiter, self._width, show
    )
    self._unchanged()
    if not cached:
      return starts
    logging.info(
      "Indexed the %d rows of %s in %.1f s",
      len(starts) - 1,
      self._path,
      time.monotonic() - began,
    )
    save_index(self._path, facts, self._cache, starts)
    found = load_index(self._path, facts, self._cache)
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


def _header(path: str, captions: tuple[str, ...]) -> tuple[str, list[str], int]:
  """The delimiter by which the first record has the columns, it, and where it ends."""
  head = io.BytesIO(files.read(path, 0, _MAX_RECORD))
  for delimiter in _DELIMITERS:
    head.seek(0)
    lines = (x.decode("utf-8" if i else "utf-8-sig") for i, x in enumerate(head))
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
      header = next(filter(None, reader), [])
    except (csv.Error, UnicodeDecodeError):  # No quotes of this delimiter, perhaps.
      continue
    if all(len(found) == 1 for found in _columns(header, captions)):
      return delimiter, header, head.tell()
  first = head.getvalue().split(b"\n")[0][:200].decode(errors="replace")
  raise ValueError(
    f"{path}: expected a first line with one column of {' or '.join(_IMAGE_COLUMNS)} and "
    f"one of {' or '.join(captions)}, between commas, TABs, semicolons or pipes, in "
    f"UTF-8, got {first!r}; rename the columns, or write that line."
  )


def _columns(header: list[str], captions: tuple[str, ...]) -> list[list[int]]:
  """Which columns may hold the pictures' paths, and which the captions."""
  return [
    [i for i, name in enumerate(header) if name in names]
    for names in (_IMAGE_COLUMNS, captions)
  ]


def _starts(
  path: str,
  begin: int,
  size: int,
  delimiter: str,
  width: int,
  show: Callable[[int], object],
) -> np.ndarray:
  """Where the records from `begin` on start, and the last one ends: uint64 [rows + 1]."""
  found, block, at = [], b"", begin
  while at < size and (piece := files.read(path, at, min(_BLOCK, size - at))):
    at += len(piece)
    block += piece
    starts, used = _settled(block, delimiter, width, last=at == size)
    found.append((starts + (at - len(block))).astype(np.uint64))
    block = block[used:]
    show(len(piece))
  return np.concatenate([*found, np.array([size], np.uint64)])


def _settled(
  block: bytes, delimiter: str, width: int, *, last: bool
) -> tuple[np.ndarray, int]:
  """Where records start in `block`, as far as it settles that, and how far this is."""
  data = np.frombuffer(block, np.uint8)
  ends = np.flatnonzero(data == ord("\n")) + 1
  if last and not block.endswith(b"\n"):
    ends = np.append(ends, len(block))
  begins = np.concatenate([[0], ends])[:-1]
  lines = len(ends) if last else int(np.searchsorted(begins, len(block) - _MAX_RECORD))
  starts = data[begins] != ord("\n")
  for line in np.flatnonzero(data[begins] == ord("\r")):
    starts[line] = bool(block[begins[line] : ends[line]].strip(b"\r\n"))
  done = 0
  for line in _unclear(data, ends, delimiter).tolist():
    if line >= lines:
      break
    if line >= done:
      done = line + _length(block, begins, ends, line, delimiter, width)
      starts[line + 1 : done] = False
  lines = max(lines, done)
  return begins[:lines][starts[:lines]], int(ends[lines - 1]) if lines else 0


def _unclear(data: np.ndarray, ends: np.ndarray, delimiter: str) -> np.ndarray:
  """The lines with quotes other than pairs around a whole field and none within it."""
  quotes = np.flatnonzero(data == ord('"'))
  line = np.searchsorted(ends, quotes, side="right")
  closing = (np.arange(len(line)) - np.searchsorted(line, line)) % 2 == 1
  beside = np.where(closing, quotes + 1, quotes - 1)
  outside = np.isin(np.arange(256), [ord(c) for c in delimiter + "\r\n"])
  plain = outside[data.take(beside, mode="clip")] | (beside < 0) | (beside == len(data))
  last_in_line = np.append(line[1:] != line[:-1], True)[: len(line)]
  return np.unique(line[~plain | (last_in_line & ~closing)])


def _length(
  block: bytes,
  begins: np.ndarray,
  ends: np.ndarray,
  line: int,
  delimiter: str,
  width: int,
) -> int:
  """How many lines the record that starts with `line` has; 1 if it is none."""

  def lines() -> Iterator[str]:
    for start, stop in zip(begins[line:], ends[line:], strict=False):
      if start == begins[line] or stop <= begins[line] + _MAX_RECORD:
        yield block[start:stop].decode("latin-1")  # A character a byte, whatever it is.
      else:
        return

  reader = csv.reader(lines(), delimiter=delimiter, strict=True)
  try:
    fields = next(reader)
  except csv.Error:
    return 1
  return reader.line_num if len(fields) == width else 1


def picture_path(name: str, beside: str) -> str:
  """Where the picture is that a row of the file `beside` calls `name`."""
  if files.is_remote(name) or os.path.isabs(name):
    return name
  if not files.is_remote(beside):
    return os.path.join(os.path.dirname(beside), name)
  scheme, rest = beside.split("://", 1)
  path = posixpath.normpath(posixpath.join(posixpath.dirname(rest), name))
  return f"{scheme}://{path}"


def picture_fault(name: str, beside: str) -> str:
  """What is wrong with a picture that can be seen without opening it; "" if nothing."""
  path = picture_path(name, beside)
  if not files.is_remote(path) and not os.path.isfile(path):
    return f"there is no picture {name!r} ({path}); put it there, or take the row out."
  if not files.is_remote(path) and not os.path.getsize(path):
    return f"the picture {name!r} is empty; replace it, or take the row out."
  return ""


def read_picture(name: str, beside: str, where: str) -> bytes:
  """The bytes of the picture that a row of the file `beside` calls `name`.

  Raises:
    BadExample: if there is no such picture, or nothing in it. `where` is its row.
    OSError: if it is there and cannot be read now.
  """
  path = picture_path(name, beside)
  try:
    data = files.read(path)
  except (OSError, ValueError) as error:
    if not _names_nothing(path, error):
      raise
    raise BadExample(
      f"{where}: there is no picture {name!r} ({error}); put it there, or take the row "
      "out.",
      key=name,
      reason="missing picture",
      shard=beside,
    ) from error
  if not data:
    raise BadExample(
      f"{where}: the picture {name!r} is empty; replace it, or take the row out.",
      key=name,
      reason="empty picture",
      shard=beside,
    )
  return data


def _names_nothing(path: str, error: OSError | ValueError) -> bool:
  """Whether it is the path that is wrong, and not the disk, the network or a driver."""
  if isinstance(error, OSError):
    missing = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
    return isinstance(error, missing) or error.errno in (errno.ENAMETOOLONG, errno.ELOOP)
  return path.split("://")[0] not in fsspec.available_protocols()


@contextlib.contextmanager
def progress(what: str, total: int, *, shown: bool) -> Iterator[Callable[[int], object]]:
  """A function that moves a bar on; if it is to be `shown`, it is, on terminals."""
  console = rich.console.Console(stderr=True)
  hidden = not (shown and console.is_terminal)
  with rich.progress.Progress(console=console, disable=hidden, transient=True) as bar:
    task = bar.add_task(what, total=total)
    yield lambda step: bar.advance(task, step)


def load_index(
  path: str, facts: tuple[object, ...], cache: pathlib.Path | None
) -> np.ndarray | None:
  """Maps what `save_index` wrote, if it was of the same facts and is whole."""
  for place in _places(path, cache):
    try:
      words = np.memmap(place, np.uint64, "r")
    except (OSError, ValueError):
      continue
    if np.array_equal(words[:4], _seal(facts, words[4:])):
      return words[4:]
  return None


def save_index(
  path: str, facts: tuple[object, ...], cache: pathlib.Path | None, index: np.ndarray
) -> None:
  """Writes uint64 numbers beside a file, or into `cache` if that cannot be.

  Args:
    path: the file that they are about.
    facts: what they depend on: the file's version, the format, settings.
    cache: a folder, made if need be.
    index: the numbers.
  """
  for place in _places(path, cache):
    written = place.with_name(f"{place.name}.{uuid.uuid4().hex}")
    try:
      place.parent.mkdir(parents=True, exist_ok=True)
      with written.open("xb") as file:
        file.write(_seal(facts, index).data)
        file.write(index.data)
      written.replace(place)
      return
    except OSError as error:
      logging.info("%s cannot be written: %s", place, error)
      with contextlib.suppress(OSError):
        written.unlink()


def _places(path: str, cache: pathlib.Path | None) -> Iterator[pathlib.Path]:
  """Where an index may lie: hidden from globs, so that it is not taken for data."""
  if not files.is_remote(path):
    yield pathlib.Path(path).with_name(f".{os.path.basename(path)}.index")
  if cache is not None:
    full = path if files.is_remote(path) else os.path.abspath(path)
    digest = hashlib.sha256(full.encode()).hexdigest()[:16]
    yield cache / f".{os.path.basename(path)}.{digest}.index"


def _seal(facts: tuple[object, ...], index: np.ndarray) -> np.ndarray:
  """Four numbers that tell whether an index is of these facts and undamaged."""
  digest = hashlib.sha256(repr(facts).encode()).digest()[:24]
  return np.append(np.frombuffer(digest, np.uint64), np.uint64(zlib.crc32(index.data)))
