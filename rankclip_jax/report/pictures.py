"""The pictures that other modes drew in a workdir: attention maps and search panels."""

import dataclasses
import io
import warnings
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

# Folders of the workdir, in the order of the page.
FOLDERS = ("attention", "search")
# Of one folder.
MOST = 8
# Of a page, which is to be mailed; all runs share it.
MOST_BYTES = 6_000_000


@dataclasses.dataclass(frozen=True)
class Picture:
  """A PNG of `folder`; `data` is None where the page has no room for it.

  `unreadable` says why it cannot be shown at all, and is "" otherwise.
  """

  folder: str
  name: str
  data: bytes | None
  unreadable: str = ""


def read(workdirs: Sequence[Path]) -> list[tuple[Picture, ...]]:
  """The pictures of every workdir by name, with the data of those that fit on a page.

  The first of each folder are read first, so that no run takes the room of another.
  They are decoration: one that cannot be read says so, and refuses no page.
  """
  turns = sorted(
    (place, folder, run, path)
    for run, workdir in enumerate(workdirs)
    for folder in FOLDERS
    for place, path in enumerate(sorted((workdir / folder).glob("*.png")))
  )
  found: list[list[Picture]] = [[] for _ in workdirs]
  room = MOST_BYTES
  for place, folder, run, path in turns:
    picture = _read(folder, path, room if place < MOST else 0)
    room -= len(picture.data or b"")
    found[run].append(picture)
  return [tuple(pictures) for pictures in found]


def _read(folder: str, path: Path, room: int) -> Picture:
  try:
    if path.stat().st_size > room and path.is_file():
      return Picture(folder, path.stem, None)
    data = path.read_bytes()
    with warnings.catch_warnings():
      # What Pillow only warns of is more than a page can show.
      warnings.simplefilter("error", Image.DecompressionBombWarning)
      with Image.open(io.BytesIO(data), formats=["PNG"]) as picture:
        picture.verify()
  except Exception as error:  # Pillow's decoders raise a dozen kinds
    why = "expected a PNG, got something else or a part of one"
    if isinstance(error, OSError) and error.strerror:
      why = error.strerror
    elif isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
      why = "it has too many pixels"
    return Picture(folder, path.stem, None, why)
  return Picture(folder, path.stem, data)
