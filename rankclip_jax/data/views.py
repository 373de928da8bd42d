"""What training sees of a picture: a crop of it, perhaps mirrored, of one size."""

import dataclasses
import math

import cv2
import numpy as np

from rankclip_jax.data import decoding, transforms
from rankclip_jax.data.source import Example

# The loader's threads are the parallelism; OpenCV's own would fight them.
cv2.setNumThreads(1)
# Colours that are this much finer than what is made of them need no interpolation.
_FINE = 4 / 3


@dataclasses.dataclass(frozen=True)
class View:
  """How examples become rows of pixels in training.

  Attributes:
    size: height and width in pixels.
    crop_scale: area fractions of `transforms.random_resized_crop`; None takes the centre.
    flip: mirror every other picture.
    fast: encoded pictures are decoded no larger than needed, cropped to whole pixels and
      scaled by OpenCV; otherwise all is Pillow's, as in evaluation. Pictures that come as
      pixels are always Pillow's.
  """

  size: int
  crop_scale: tuple[float, float] | None = None
  flip: bool = False
  fast: bool = True

  def __call__(self, example: Example, rng: np.random.Generator) -> np.ndarray:
    """One view, uint8 [size, size, 3]; `rng` alone decides which.

    Raises:
      BadExample: if the picture cannot be used.
    """
    out = np.empty((self.size, self.size, 3), np.uint8)
    self.fill(out, example, rng)
    return out

  def fill(self, out: np.ndarray, example: Example, rng: np.random.Generator) -> None:
    """Writes what a call returns to `out`, uint8 [size, size, 3] and contiguous.

    Raises:
      BadExample: if the picture cannot be used; `out` may have changed.
    """
    if self.fast and isinstance(example.image, bytes):
      self._resize(self.decoded(example, rng), out)
    else:
      image = decoding.exact(example)
      if self.crop_scale is None:
        out[:] = transforms.resize_center_crop(image, self.size)
      else:
        out[:] = transforms.random_resized_crop(image, self.size, rng, self.crop_scale)
    if self.flip and rng.random() < 0.5:
      out[:] = out[:, ::-1].copy()

  def decoded(self, example: Example, rng: np.random.Generator) -> np.ndarray:
    """The crop of a view, uint8 [height, width, 3], from a picture no larger than needed.

    Raises:
      BadExample: if the picture cannot be used.
    """
    height, width = decoding.size_of(example)
    if self.crop_scale is None:
      box = _centre(height, width, self.size)
    else:
      box = transforms.random_box(height, width, rng, self.crop_scale)
    _, _, crop_height, crop_width = box
    # What the whole picture must measure for the crop to have `size` pixels.
    image = decoding.at_least(
      example,
      math.ceil(height * min(1.0, self.size / crop_height)),
      math.ceil(width * min(1.0, self.size / crop_width)),
      interpolate=min(crop_height, crop_width) < _FINE * self.size,
    )
    return image[_scaled(box, image.shape[:2], (height, width))]

  def _resize(self, crop: np.ndarray, out: np.ndarray) -> None:
    """Means of two by two pixels while there are enough, then bilinear.

    OpenCV's mean of any area, a little nearer to Pillow, takes several times as long.
    """
    height, width, _ = crop.shape
    while min(height, width) >= 2 * self.size:
      height, width = height // 2, width // 2
      even = crop[: 2 * height, : 2 * width]
      crop = cv2.resize(even, (width, height), interpolation=cv2.INTER_AREA)
    cv2.resize(crop, (self.size, self.size), dst=out, interpolation=cv2.INTER_LINEAR)


def _centre(height: int, width: int, size: int) -> tuple[int, int, int, int]:
  """Top, left, height and width of what `transforms.resize_center_crop` shows."""
  short = min(height, width)
  starts = []
  for whole in (height, width):
    scaled = size * whole // short
    starts.append(round(round((scaled - size) / 2) * whole / scaled))
  return starts[0], starts[1], short, short


def _scaled(
  box: tuple[int, int, int, int], now: tuple[int, ...], whole: tuple[int, int]
) -> tuple[slice, slice]:
  """The box in a smaller rendering of the picture, in whole pixels, at least one."""
  starts, extents = box[:2], box[2:]
  slices = []
  for start, extent, size, full in zip(starts, extents, now, whole, strict=True):
    scale = decoding.reduction(size, full)
    first = min(round(start * scale), size - 1)
    last = max(round((start + extent) * scale), first + 1)
    slices.append(slice(first, last))
  return slices[0], slices[1]
