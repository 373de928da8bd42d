"""Encoded pictures become pixels: exactly, by Pillow, or fast, by what JPEG allows.

What counts as damaged is what Pillow says, whichever way is taken: the fast one hands
everything it does not like to Pillow.
"""

import io
import re

import numpy as np
import simplejpeg
from PIL import Image

from rankclip_jax.data import transforms
from rankclip_jax.data.source import BadExample, Example, Reason

# Pillow's own default: a quarter of a gigabyte of RGB. Larger ones are decompression
# bombs, or would take seconds each.
MAX_PIXELS = 89_478_485
_JPEG = b"\xff\xd8\xff"
# What the web has; Pillow would also run PostScript, if it found an interpreter.
_WANTED = ("JPEG", "PNG", "GIF", "WEBP", "AVIF", "BMP", "TIFF", "PPM", "JPEG2000", "ICO")
Image.init()
_FORMATS = tuple(name for name in _WANTED if name in Image.OPEN)
# Halves, quarters and eighths have vectorised inverse transforms; what is between them
# takes longer than decoding all of it.
_LEAST_REDUCTION = 2


def exact(example: Example) -> np.ndarray:
  """The example's picture as uint8 [height, width, 3], decoded by Pillow.

  The first frame of an animation; the orientation that EXIF notes is ignored, as in
  open_clip.

  Raises:
    BadExample: if it is empty, damaged or too large.
  """
  data = example.image
  if isinstance(data, np.ndarray):
    return data
  if not data:
    raise _bad(example, "empty picture", "the picture has no bytes")
  try:
    with Image.open(io.BytesIO(data), formats=_FORMATS) as picture:
      _check_size(example, *picture.size)
      return transforms.to_rgb(picture)
  except BadExample:
    raise
  except Exception as error:  # Pillow's decoders raise a dozen kinds.
    raise _undecodable(example, error) from error


def size_of(example: Example) -> tuple[int, int]:
  """Height and width of the example's picture, from its header.

  Raises:
    BadExample: as `exact`, where the header shows it.
  """
  data = example.image
  if isinstance(data, np.ndarray):
    return data.shape[0], data.shape[1]
  if size := _jpeg_size(data):
    _check_size(example, size[1], size[0])
    return size
  if not data:
    raise _bad(example, "empty picture", "the picture has no bytes")
  try:
    with Image.open(io.BytesIO(data), formats=_FORMATS) as picture:
      width, height = picture.size
  except Exception as error:
    raise _undecodable(example, error) from error
  _check_size(example, width, height)
  return height, width


def at_least(
  example: Example, height: int, width: int, *, interpolate: bool = True
) -> np.ndarray:
  """The whole picture in at least `height` by `width` pixels, where it has as many.

  A JPEG is decoded at a half, three eighths, a quarter or an eighth, if that is still
  enough (see `reduction`);
  anything else, and what libjpeg complains of, is `exact`.

  Args:
    example: with the picture.
    height, width: in pixels.
    interpolate: colours that the JPEG has at half of the resolution.

  Raises:
    BadExample: as `exact`.
  """
  data = example.image
  if isinstance(data, np.ndarray) or not data.startswith(_JPEG):
    return exact(example)
  try:
    return simplejpeg.decode_jpeg(
      data,
      fastupsample=not interpolate,
      min_height=height,
      min_width=width,
      min_factor=_LEAST_REDUCTION,
    )
  except ValueError:
    return exact(example)


def reduction(decoded: int, whole: int) -> float:
  """By what `at_least` scaled a side of `whole` pixels that now has `decoded`.

  libjpeg scales by eighths exactly, and rounds the number of pixels up.
  """
  eighths = round(8 * decoded / whole)
  return eighths / 8 if -(-whole * eighths // 8) == decoded else decoded / whole


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
  if not data.startswith(_JPEG):
    return None
  try:
    height, width, *_ = simplejpeg.decode_jpeg_header(data)
  except ValueError:
    return None
  return int(height), int(width)


def _check_size(example: Example, width: int, height: int) -> None:
  if width * height > MAX_PIXELS:
    why = f"{width} x {height} pixels, the limit is {MAX_PIXELS:,} together"
    raise _bad(example, "too large picture", why)


def _undecodable(example: Example, error: Exception) -> BadExample:
  # Pillow refuses bombs itself when it sees twice as many pixels.
  if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
    return _bad(example, "too large picture", str(error))
  # The address of what was read differs in every run.
  why = re.sub(r" at 0x[0-9a-f]+", "", f"{type(error).__name__}: {error}")
  return _bad(example, "undecodable picture", why)


def _bad(example: Example, reason: Reason, why: str) -> BadExample:
  where = f" of {example.shard}" if example.shard else ""
  return BadExample(
    f"The picture of {example.key!r}{where} cannot be used: {why}; replace it, or take "
    "the example out.",
    key=example.key,
    reason=reason,
    shard=example.shard,
  )
