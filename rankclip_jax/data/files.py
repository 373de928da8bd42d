"""Files here and elsewhere: patterns, parts of files, and what tells that one changed.

Local paths are read by the operating system; anything with a scheme (`gs://`, `s3://`,
`memory://`) by fsspec, whose driver for it must be installed (gcsfs, s3fs).
"""

import functools
import glob
import os
from typing import Any

import braceexpand
import fsspec

# So many shards stay open; what is read from others opens them again.
_OPEN_FILES = 256


def is_remote(path: str) -> bool:
  """Whether fsspec reads it."""
  return "://" in path


def parts(spec: str) -> list[str]:
  """The parts of `a::b`, each a path or a pattern."""
  return [part.strip() for part in spec.split("::") if part.strip()]


def expand(spec: str) -> list[str]:
  """Paths of `a/{000..331}.tar::b/*.tar`: lists, braces (first) and globs.

  Braces keep their order, the matches of a glob are sorted. A path without a glob is not
  looked for.

  Raises:
    ValueError: if braces do not close, or a glob matches nothing.
  """
  found = []
  for part in parts(spec):
    try:
      names = list(braceexpand.braceexpand(part))
    except ValueError as error:
      raise ValueError(f"{part!r}: the braces do not close.") from error
    for name in map(os.path.expanduser, names):
      found += _matches(name) if glob.has_magic(name) else [name]
  if not found:
    raise ValueError(f"{spec!r} names no file.")
  return found


def _matches(pattern: str) -> list[str]:
  if is_remote(pattern):
    system, path = filesystem(pattern)
    found = sorted(system.unstrip_protocol(match) for match in system.glob(path))
  else:
    found = sorted(glob.glob(pattern, recursive=True))
  if not found:
    raise ValueError(f"{pattern!r} matches no file.")
  return found


def filesystem(path: str) -> tuple[Any, str]:
  """fsspec's file system of a path with a scheme, and the path on it.

  Raises:
    ValueError: if the driver for the scheme is not installed.
  """
  try:
    return fsspec.core.url_to_fs(path)
  except ImportError as error:
    raise ValueError(f"{path}: {error}") from error


def version(path: str) -> tuple[int, str]:
  """Size in bytes, and a stamp that changes when the file does.

  Raises:
    FileNotFoundError: if there is no such file.
  """
  if not is_remote(path):
    stat = os.stat(path)
    return stat.st_size, str(stat.st_mtime_ns)
  system, name = filesystem(path)
  info = system.info(name)
  stamps = ("mtime", "updated", "LastModified", "last_modified", "ETag", "created")
  return info["size"], str(next((info[s] for s in stamps if info.get(s)), ""))


def read(path: str, start: int = 0, size: int | None = None) -> bytes:
  """`size` bytes from `start`, fewer where the file ends. For many threads at once.

  Raises:
    OSError: if it cannot be read.
  """
  if is_remote(path):
    system, name = filesystem(path)
    end = None if size is None else start + size
    return system.cat_file(name, start=start, end=end)
  stat = os.stat(path)
  file = _opened(path, stat.st_ino, stat.st_mtime_ns)
  if size is None:
    size = stat.st_size - start
  pieces, left = [], size
  while left > 0 and (piece := os.pread(file.number, left, start + size - left)):
    pieces.append(piece)
    left -= len(piece)
  return pieces[0] if len(pieces) == 1 else b"".join(pieces)


class _Opened:
  """A file descriptor that closes when neither the cache nor a reader holds it."""

  def __init__(self, path: str, inode: int, changed: int):
    del inode, changed  # Not a file that has since been put in its place.
    self.number = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))

  def __del__(self):
    if hasattr(self, "number"):
      os.close(self.number)


_opened = functools.lru_cache(maxsize=_OPEN_FILES)(_Opened)
