"""The pictures that other modes drew in a workdir: attention maps and search panels."""

import dataclasses
import io
from pathlib import Path

from PIL import Image

# Folders of the workdir, in the order of the page.
FOLDERS = ("attention", "search")
# Of one folder: a page is to be mailed.
MOST = 8
MOST_BYTES = 3_000_000


@dataclasses.dataclass(frozen=True)
class Picture:
  """A PNG of `folder`; `data` is None where the page has no room for it."""

  folder: str
  name: str
  data: bytes | None


def read(workdir: Path) -> tuple[Picture, ...]:
  """The pictures of a workdir by name, with the data of those that fit on a page.

  Raises:
    ValueError: a file is no PNG; names it.
  """
  found = []
  for folder in FOLDERS:
    room = MOST_BYTES
    for place, path in enumerate(sorted((workdir / folder).glob("*.png"))):
      fits = place < MOST and path.stat().st_size <= room
      data = _checked(path) if fits else None
      room -= len(data) if data else 0
      found.append(Picture(folder, path.stem, data))
  return tuple(found)


def _checked(path: Path) -> bytes:
  data = path.read_bytes()
  try:
    with Image.open(io.BytesIO(data), formats=["PNG"]) as picture:
      picture.verify()
  except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises of torn files
    raise ValueError(
      f"{path}: expected a PNG, got something else or a part of one; remove it or make"
      " it again"
    ) from error
  return data
