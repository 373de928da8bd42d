"""Where the rows of a CSV or TSV file are.

A quoted field may hold line breaks, in a row that has all its fields, whose quotes close,
and of at most `csv_header.MAX_RECORD` bytes. Where lines make no such row, the first of
them is one by itself. Blank lines are none.
"""

import csv
import itertools
from collections.abc import Iterator

import numpy as np

from rankclip_jax.data import csv_header, files
from rankclip_jax.data.bars import Show
from rankclip_jax.data.csv_header import Header

_BLOCK = 2**23  # bytes looked through at a time


def find(path: str, header: Header, size: int, show: Show) -> np.ndarray:
  """Where the rows of a file start, and the last one ends: uint64 [rows + 1].

  Args:
    path: of the file, here or elsewhere.
    header: of the file.
    size: of the file, in bytes.
    show: told how many bytes more were looked through.
  """
  found, block, at = [], b"", header.end
  while at < size and (piece := files.read(path, at, min(_BLOCK, size - at))):
    at += len(piece)
    block += piece
    starts, used = _settled(block, header, last=at == size)
    found.append((starts + (at - len(block))).astype(np.uint64))
    block = block[used:]
    show(len(piece))
  return np.concatenate([*found, np.array([size], np.uint64)])


def read_all(path: str, starts: np.ndarray, show: Show) -> Iterator[tuple[int, bytes]]:
  """Offset and bytes of every row, read in large pieces."""
  done, rows = 0, len(starts) - 1
  while done < rows:
    begin = int(starts[done])
    end = int(np.searchsorted(starts, begin + _BLOCK, side="right")) - 1
    bounds = starts[done : max(end, done + 1) + 1].tolist()
    block = files.read(path, begin, bounds[-1] - begin)
    for start, stop in itertools.pairwise(bounds):
      yield start, block[start - begin : stop - begin]
    done += len(bounds) - 1
    show(len(block))


def line_number(path: str, offset: int) -> int:
  """The number, from 1, of the line that begins at `offset`."""
  pieces = (
    files.read(path, at, min(_BLOCK, offset - at)) for at in range(0, offset, _BLOCK)
  )
  return 1 + sum(piece.count(b"\n") for piece in pieces)


def _settled(block: bytes, header: Header, *, last: bool) -> tuple[np.ndarray, int]:
  """Where rows start in `block`, as far as it settles that, and how far this is."""
  data = np.frombuffer(block, np.uint8)
  ends = np.flatnonzero(data == ord("\n")) + 1
  if last and not block.endswith(b"\n"):
    ends = np.append(ends, len(block))
  begins = np.concatenate([[0], ends])[:-1]
  most = len(block) - csv_header.MAX_RECORD
  lines = len(ends) if last else int(np.searchsorted(begins, most))
  starts = data[begins] != ord("\n")
  for line in np.flatnonzero(data[begins] == ord("\r")):
    starts[line] = bool(block[begins[line] : ends[line]].strip(b"\r\n"))
  done = 0
  for line in _unclear(data, ends, header.delimiter).tolist():
    if line >= lines:
      break
    if line >= done:
      done = line + _length(block, begins, ends, line, header)
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
  block: bytes, begins: np.ndarray, ends: np.ndarray, line: int, header: Header
) -> int:
  """How many lines the row that starts with `line` has; 1 if it is none."""

  def lines() -> Iterator[str]:
    for start, stop in zip(begins[line:], ends[line:], strict=False):
      if start == begins[line] or stop <= begins[line] + csv_header.MAX_RECORD:
        yield block[start:stop].decode("latin-1")  # A character a byte, whatever it is.
      else:
        return

  reader = csv.reader(lines(), delimiter=header.delimiter, strict=True)
  try:
    fields = next(reader)
  except csv.Error:
    return 1
  return reader.line_num if len(fields) == header.width else 1
