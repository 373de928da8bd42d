"""Encoded pictures for tests, whole and damaged."""

import functools
import io

import numpy as np
from PIL import Image
from skimage import data


@functools.cache
def photograph(height: int = 300, width: int = 400) -> Image.Image:
  """A cat, from scikit-image."""
  return Image.fromarray(data.chelsea()).resize((width, height), Image.Resampling.BICUBIC)


def encoded(picture: Image.Image | np.ndarray, form: str = "JPEG", **options) -> bytes:
  """The file's bytes."""
  picture = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
  out = io.BytesIO()
  picture.save(out, form, **({"quality": 95} if form == "JPEG" else {}) | options)
  return out.getvalue()
