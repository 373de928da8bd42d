"""Files put here or elsewhere, and what a source has of them."""

import os

import fsspec

from rankclip_jax.data import files
from rankclip_jax.data.source import BadExample


def put(path: str | os.PathLike[str], data: bytes | str) -> str:
  """Writes a file, to a path with a scheme too; returns the path."""
  path, data = str(path), data if isinstance(data, bytes) else data.encode()
  if files.is_remote(path):
    fsspec.filesystem("memory").pipe(path, data)
  else:
    with open(path, "wb") as file:
      file.write(data)
  return path


def outcome(source, index: int, *what: str) -> tuple:
  """Attributes of an example, or key and reason of what is none."""
  try:
    example = source[index]
    return tuple(getattr(example, name) for name in what)
  except BadExample as bad:
    return bad.key, bad.reason


def outcomes(source, *what: str) -> list[tuple]:
  """The same of all indices."""
  return [outcome(source, index, *what) for index in range(len(source))]
