"""Pictures as JPEGs no larger than training needs."""

import numpy as np
import simplejpeg
from PIL import Image

from rankclip_jax.data import decoding
from rankclip_jax.data.source import BadExample, Example

_JPEG = b"\xff\xd8\xff"
# JPEGs are decoded at a half, a quarter or an eighth if that leaves so many times the
# pixels wanted: what is averaged then is twice as fine as what is kept.
_MARGIN = 2
_LONGEST = 65_500  # pixels; libjpeg writes no longer side


def shrunk(example: Example, size: int, quality: int) -> tuple[bytes, int, int]:
  """The example's picture as a JPEG, its height and its width.

  The short side becomes `size` pixels, by antialiased bicubic, unless it has fewer.
  A JPEG that need not shrink keeps its bytes.

  Args:
    example: of which the picture is decoded in any case, to see that it can be.
    size: of the short side.
    quality: of JPEGs that are written, 1 to 100.

  Raises:
    BadExample: if the picture cannot be used, or its long side is beyond JPEG's.
  """
  height, width = decoding.size_of(example)
  new_height, new_width = _smaller(height, width, size)
  pixels = decoding.at_least(example, _MARGIN * new_height, _MARGIN * new_width)
  data = example.image
  if isinstance(data, bytes) and data.startswith(_JPEG) and height == new_height:
    return data, height, width
  if max(new_height, new_width) > _LONGEST:
    raise BadExample(
      f"The picture of {example.key!r} would have {new_width} x {new_height} pixels, and "
      f"a JPEG's sides end at {_LONGEST}; crop it, or take it out.",
      key=example.key,
      reason="too large picture",
      shard=example.shard,
    )
  if pixels.shape[:2] != (new_height, new_width):
    resized = Image.fromarray(pixels).resize(
      (new_width, new_height), Image.Resampling.BICUBIC
    )
    pixels = np.asarray(resized)
  pixels = np.ascontiguousarray(pixels)
  data = simplejpeg.encode_jpeg(pixels, quality=quality, colorsubsampling="420")
  return data, new_height, new_width


def _smaller(height: int, width: int, size: int) -> tuple[int, int]:
  short = min(height, width)
  if short <= size:
    return height, width
  if height < width:
    return size, round(size * width / short)
  return round(size * height / short), size
