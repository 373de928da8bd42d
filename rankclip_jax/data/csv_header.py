"""The first line of a CSV or TSV file: its delimiter, and which columns are meant."""

import csv
import io
from typing import NamedTuple

from rankclip_jax.data import files

# No caption is longer, and Python's csv module takes no longer field: quotes that are
# open for more bytes than this were lost.
MAX_RECORD = 2**17

_DELIMITERS = ",\t;|"
_IMAGE_COLUMNS = ("filepath", "image")  # open_clip's name; CyCLIP's and RankCLIP's
_CAPTION_COLUMNS = ("title", "caption")


class Header(NamedTuple):
  """What the first line says.

  Attributes:
    delimiter: one character.
    width: fields of a row.
    image: which of them is the picture's path, from 0.
    caption: which is the caption.
    end: bytes up to the next line.
  """

  delimiter: str
  width: int
  image: int
  caption: int
  end: int


def read_header(path: str, *, image_key: str = "", caption_key: str = "") -> Header:
  """The header of a file, by the delimiter with which it has the columns.

  Args:
    path: of the file, here or elsewhere.
    image_key: the column with the paths; "" for `filepath` or `image`.
    caption_key: the column with the captions; "" for `title` or `caption`.

  Raises:
    ValueError: if no delimiter gives one column of each.
  """
  images = (image_key,) if image_key else _IMAGE_COLUMNS
  captions = (caption_key,) if caption_key else _CAPTION_COLUMNS
  head = io.BytesIO(files.read(path, 0, MAX_RECORD))
  for delimiter in _DELIMITERS:
    head.seek(0)
    lines = (x.decode("utf-8" if i else "utf-8-sig") for i, x in enumerate(head))
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
      names = next(filter(None, reader), [])
    except (csv.Error, UnicodeDecodeError):  # No quotes of this delimiter, perhaps.
      continue
    image = [i for i, name in enumerate(names) if name in images]
    caption = [i for i, name in enumerate(names) if name in captions]
    if len(image) == len(caption) == 1:
      return Header(delimiter, len(names), image[0], caption[0], head.tell())
  first = head.getvalue().split(b"\n")[0][:200].decode(errors="replace")
  raise ValueError(
    f"{path}: expected a first line with one column of {' or '.join(images)} and one of "
    f"{' or '.join(captions)}, between commas, TABs, semicolons or pipes, in UTF-8, got "
    f"{first!r}; rename the columns, say which they are (image_key, caption_key), or "
    "write that line."
  )
