"""Pictures that the rows of another file name by their paths."""

import errno
import os
import posixpath

import fsspec

from rankclip_jax.data import files
from rankclip_jax.data.source import BadExample


def path_of(name: str, beside: str) -> str:
  """Where the picture is that a row of the file `beside` calls `name`."""
  if files.is_remote(name) or os.path.isabs(name):
    return name
  if not files.is_remote(beside):
    return os.path.join(os.path.dirname(beside), name)
  scheme, rest = beside.split("://", 1)
  path = posixpath.normpath(posixpath.join(posixpath.dirname(rest), name))
  return f"{scheme}://{path}"


def fault(name: str, beside: str) -> str:
  """What is wrong with a picture that can be seen without opening it; "" if nothing."""
  path = path_of(name, beside)
  if not files.is_remote(path) and not os.path.isfile(path):
    return f"there is no picture {name!r} ({path}); put it there, or take the row out."
  if not files.is_remote(path) and not os.path.getsize(path):
    return f"the picture {name!r} is empty; replace it, or take the row out."
  return ""


def read(name: str, beside: str, where: str) -> bytes:
  """The bytes of the picture that a row of the file `beside` calls `name`.

  Raises:
    BadExample: if there is no such picture, or nothing in it. `where` is its row.
    OSError: if it is there and cannot be read now.
  """
  path = path_of(name, beside)
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
