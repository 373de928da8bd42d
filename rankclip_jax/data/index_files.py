"""Indices kept for next time: beside the file they are about, or in a cache folder."""

import contextlib
import hashlib
import os
import pathlib
import uuid
import zlib
from collections.abc import Iterator

import numpy as np
from absl import logging

from rankclip_jax.data import files


def places(
  path: str, cache: pathlib.Path | None, *, hidden: bool = False
) -> Iterator[pathlib.Path]:
  """Files that may hold the index of the file `path`, the first choice first.

  Args:
    path: what it is an index of.
    cache: a folder for indices that cannot be written beside their files.
    hidden: from globs, so that it is not taken for data.
  """
  folder, name = os.path.split(path)
  dot = "." if hidden else ""
  if not files.is_remote(path):
    yield pathlib.Path(folder, f"{dot}{name}.index")
  if cache is not None:
    # Files of many folders are called 00000.tar.
    whole = os.fsencode(path if files.is_remote(path) else os.path.abspath(path))
    yield cache / f"{dot}{name}.{hashlib.sha256(whole).hexdigest()[:16]}.index"


def write(place: pathlib.Path, *parts: bytes | memoryview) -> None:
  """Writes a file at once or not at all, and its folder if need be.

  Raises:
    OSError: if that cannot be.
  """
  place.parent.mkdir(parents=True, exist_ok=True)
  written = place.with_name(f".{place.name}.{uuid.uuid4().hex}")
  try:
    with written.open("xb") as file:
      for part in parts:
        file.write(part)
    written.replace(place)
  except BaseException:
    with contextlib.suppress(OSError):
      written.unlink()
    raise


def load(
  path: str, facts: tuple[object, ...], cache: pathlib.Path | None
) -> np.ndarray | None:
  """Maps what `save` wrote, if it was of the same facts and is whole."""
  for place in places(path, cache, hidden=True):
    try:
      words = np.memmap(place, np.uint64, "r")
    except (OSError, ValueError):
      continue
    if np.array_equal(words[:4], _seal(facts, words[4:])):
      return words[4:]
  return None


def save(
  path: str, facts: tuple[object, ...], cache: pathlib.Path | None, index: np.ndarray
) -> None:
  """Writes uint64 numbers beside a file, or into `cache` if that cannot be.

  Args:
    path: the file that they are about.
    facts: what they depend on: the file's version, the format, settings.
    cache: a folder, made if need be.
    index: the numbers.
  """
  for place in places(path, cache, hidden=True):
    try:
      write(place, _seal(facts, index).data, index.data)
      return
    except OSError as error:
      logging.info("%s cannot be written: %s", place, error)


def _seal(facts: tuple[object, ...], index: np.ndarray) -> np.ndarray:
  """Four numbers that tell whether an index is of these facts and undamaged."""
  digest = hashlib.sha256(repr(facts).encode()).digest()[:24]
  return np.append(np.frombuffer(digest, np.uint64), np.uint64(zlib.crc32(index.data)))
