"""Image preprocessing on the host: uint8 in, uint8 out, by Pillow.

Pillow's antialiased bicubic is what CLIP's published numbers were measured with.
Normalisation by mean and standard deviation is left to the device, so that a batch
travels there as bytes.
"""

import dataclasses
import math

import numpy as np
from PIL import Image

# What `resize_center_crop` can do, in open_clip's words, the default first.
RESIZING = {
  "interpolation": ("bicubic", "bilinear"),
  "resize_mode": ("shortest", "squash"),
}
# Aspect ratios of `random_resized_crop`, torchvision's defaults, and its patience.
_MIN_RATIO, _MAX_RATIO = 3 / 4, 4 / 3
_LOG_RATIO = math.log(_MIN_RATIO)
_LOG_RATIOS = math.log(_MAX_RATIO) - _LOG_RATIO
_CROP_ATTEMPTS = 10
# So many times longer than wide, a picture is still enlarged whole and cut afterwards.
_WHOLE = 32
_REACH = 3  # pixels around a centre that may count in a bicubic
_WEIGHT_ONE = 2**22  # Pillow's weights are integers


@dataclasses.dataclass(frozen=True)
class Preprocess:
  """How pictures reach the model.

  Attributes:
    image_size: height and width in pixels.
    mean: per-channel mean on the scale [0, 1].
    std: per-channel standard deviation on the scale [0, 1].
    augment_scale: the area fractions of `random_resized_crop` in training; None trains
      on what evaluation sees.
  """

  image_size: int
  mean: tuple[float, float, float]
  std: tuple[float, float, float]
  augment_scale: tuple[float, float] | None = None

  def facts(self) -> dict[str, object]:
    """Returns what a checkpoint must record, in JSON types and open_clip's words."""
    return {
      "image_size": self.image_size,
      "mean": list(self.mean),
      "std": list(self.std),
      "interpolation": "bicubic",
      "resize_mode": "shortest",
      "augment_scale": self.augment_scale and list(self.augment_scale),
    }


def to_rgb(image: Image.Image) -> np.ndarray:
  """Returns a Pillow image of any mode as uint8 [height, width, 3].

  Follows open_clip, which calls `convert("RGB")`: alpha is dropped, not blended, so the
  colours stored under transparent pixels show; CMYK is converted without a profile.
  One exception: 16-bit greys, which Pillow clips to white above 255, keep their high
  byte.

  Raises:
    ValueError: if the pixels have no agreed range (floats, or integers over 16 bits).
  """
  if image.mode.startswith("I"):
    grey = np.asarray(image)
    if grey.size and (grey.min() < 0 or grey.max() > 0xFFFF):
      raise ValueError(
        f"greys of mode {image.mode} must lie in [0, 65535], got"
        f" [{grey.min()}, {grey.max()}]: scale them before training"
      )
    image = Image.fromarray((grey >> 8).astype(np.uint8))
  elif image.mode == "F":
    raise ValueError('images of mode "F" have no agreed range: scale them to uint8')
  elif "transparency" in image.info:
    # The same colours as convert("RGB"), without Pillow's warning about palettes.
    image = image.convert("RGBA")
  return np.asarray(image.convert("RGB"))


def resize_center_crop(
  image: np.ndarray | Image.Image,
  size: int,
  interpolation: str = "bicubic",
  resize_mode: str = "shortest",
) -> np.ndarray:
  """Scales the short side to `size` and cuts the centre square out.

  The reference preprocessing of CLIP: torchvision's `Resize` (antialiased bicubic; the
  long side is rounded down) and `CenterCrop` (the offset is rounded half to even).

  Args:
    image: uint8 [height, width, 3], or a Pillow image of any mode. The latter becomes
      RGB when it has its size, as in open_clip's transform: where a picture is
      transparent, or has a palette, this is not what becomes of its RGB.
    size: height and width of the result in pixels.
    interpolation: one of `RESIZING`; antialiased.
    resize_mode: one of `RESIZING`; "squash" scales both sides to `size`.

  Returns:
    uint8 [size, size, 3].

  Raises:
    ValueError: as `to_rgb`.
  """
  picture = Image.fromarray(image) if isinstance(image, np.ndarray) else image
  if picture.mode.startswith(("I", "F")):  # Pillow's conversion is not to be had
    picture = Image.fromarray(to_rgb(picture))
  resample = Image.Resampling[interpolation.upper()]
  if resize_mode == "squash":
    return to_rgb(picture.resize((size, size), resample))
  width, height = picture.size
  short = min(height, width)
  height, width = size * height // short, size * width // short
  if short < size and max(height, width) > _WHOLE * size:
    return to_rgb(_middle_of_long(picture, max(height, width), size, resample))
  top, left = round((height - size) / 2), round((width - size) / 2)
  resized = picture.resize((width, height), resample)
  return to_rgb(resized.crop((left, top, left + size, top + size)))


def random_resized_crop(
  image: np.ndarray,
  size: int,
  rng: np.random.Generator,
  scale: tuple[float, float],
) -> np.ndarray:
  """Cuts a random rectangle out and scales it to a square.

  Torchvision's `RandomResizedCrop`: the area is uniform in `scale`, the logarithm of
  the aspect ratio uniform between 3/4 and 4/3.

  Args:
    image: uint8 [height, width, 3].
    size: height and width of the result in pixels.
    rng: decides the rectangle.
    scale: smallest and largest area as fractions of the image's.

  Returns:
    uint8 [size, size, 3].

  Raises:
    ValueError: unless 0 < scale[0] <= scale[1] <= 1.
  """
  if not 0 < scale[0] <= scale[1] <= 1:
    raise ValueError(
      f"scale must be two increasing area fractions in (0, 1], got {scale}"
    )
  top, left, height, width = random_box(image.shape[0], image.shape[1], rng, scale)
  return _resize(image[top : top + height, left : left + width], size, size)


def random_box(
  height: int, width: int, rng: np.random.Generator, scale: tuple[float, float]
) -> tuple[int, int, int, int]:
  """Top, left, height and width of a random crop; see `random_resized_crop`."""
  low, high = scale
  for _ in range(_CROP_ATTEMPTS):
    # What `rng.uniform` gives, bit by bit, in a third of its time.
    area = height * width * (low + (high - low) * rng.random())
    ratio = math.exp(_LOG_RATIO + _LOG_RATIOS * rng.random())
    crop_width = round(math.sqrt(area * ratio))
    crop_height = round(math.sqrt(area / ratio))
    if 0 < crop_width <= width and 0 < crop_height <= height:
      top = int(rng.integers(height - crop_height + 1))
      left = int(rng.integers(width - crop_width + 1))
      return top, left, crop_height, crop_width
  # No luck, as with very long images: the largest central crop of an allowed ratio.
  crop_width = min(width, round(height * _MAX_RATIO))
  crop_height = min(height, round(width / _MIN_RATIO))
  top, left = (height - crop_height) // 2, (width - crop_width) // 2
  return top, left, crop_height, crop_width


def _resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
  picture = Image.fromarray(image)
  return np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC))


def _middle_of_long(
  picture: Image.Image, extent: int, size: int, resample: Image.Resampling
) -> Image.Image:
  """The square of `resize_center_crop` without the long strip it is the middle of.

  Scaled whole, 1 x 65,535 pixels would become 10 GiB. Pillow enlarges columns first and
  then rows, with bytes in between; here the long axis has its own arithmetic, of the same
  weights, for the pixels in the middle alone. They are the same bit by bit (but for
  palettes, of which Pillow takes the nearest pixel, where two are as near).

  Args:
    picture: of 8 bits a channel, its short side less than `size`.
    extent: what its long side would have in pixels.
    size: as in `resize_center_crop`.
    resample: bicubic or bilinear.
  """
  wide = picture.width > picture.height
  length = max(picture.size)
  step, start = length / extent, round((extent - size) / 2)
  low = max(0, math.floor(start * step) - _REACH)
  high = min(length, math.ceil((start + size) * step) + _REACH)
  span = lambda a, b: (a, 0, b, picture.height) if wide else (0, a, picture.width, b)
  picture = picture.crop(span(low, high))
  if picture.mode in ("1", "P"):
    box = span(start * step - low, (start + size) * step - low)
    return picture.resize((size, size), Image.Resampling.NEAREST, box)
  centres = (np.arange(start, start + size) + 0.5) * step
  distances = np.abs(np.arange(low, high) - centres[:, None] + 0.5)
  weights = _weights(distances, resample)
  mode = picture.mode
  premultiplied = {"LA": "La", "RGBA": "RGBa"}.get(mode, mode)
  picture = picture if mode == premultiplied else picture.convert(premultiplied)
  if wide:
    picture = _weighted(picture, weights, 1)
    picture = picture.resize((size, size), resample)
  else:
    picture = picture.resize((size, high - low), resample)
    picture = _weighted(picture, weights, 0)
  return picture if mode == premultiplied else picture.convert(mode)


def _weights(distances: np.ndarray, resample: Image.Resampling) -> np.ndarray:
  """Weights of pixels for each centre, as Pillow's integers; bicubic has a = -1/2."""
  x = distances
  if resample is Image.Resampling.BILINEAR:
    near, far = 1 - x, 0.0
  else:
    near = (1.5 * x - 2.5) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * -0.5
  weights = np.where(x < 1, near, np.where(x < 2, far, 0.0))
  weights = weights / weights.sum(1, keepdims=True) * _WEIGHT_ONE
  return np.trunc(weights + np.copysign(0.5, weights))


def _weighted(picture: Image.Image, weights: np.ndarray, axis: int) -> Image.Image:
  """Sums of pixels along an axis; float64 holds the integers exactly."""

  def weighted(channel: Image.Image) -> Image.Image:
    pixels = np.asarray(channel, np.float64)
    sums = pixels @ weights.T if axis else weights @ pixels
    out = np.floor(sums / _WEIGHT_ONE + 0.5).clip(0, 255).astype(np.uint8)
    return Image.fromarray(out)

  return Image.merge(picture.mode, [weighted(c) for c in picture.split()])
