"""What users give a model: one or many pictures, texts or embeddings, of any library."""

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from PIL import Image


def is_floating(x: Any) -> bool:
  """Whether these are embeddings: of NumPy, JAX, PyTorch or whatever becomes an array."""
  return hasattr(x, "__array__") and jnp.issubdtype(array(x).dtype, jnp.floating)


def array(x: Any) -> np.ndarray:
  """`x` as NumPy has it.

  Raises:
    ValueError: if it cannot be read by this process's CPU, or wants a gradient.
  """
  try:
    return np.asarray(x)
  except (TypeError, RuntimeError) as error:  # as of a tensor on a GPU
    raise ValueError(
      f"{type(x).__name__} does not become an array of NumPy ({error}); convert it first."
    ) from error


def texts(given: Any) -> list[str]:
  """One or many texts as a list.

  Raises:
    ValueError: naming what is no string.
  """
  if isinstance(given, str):
    return [given]
  if not isinstance(given, Iterable):
    raise ValueError(
      "Texts are a string or a sequence of strings (similarity takes float embeddings as "
      f"well), got {type(given).__name__}."
    )
  listed = list(given)
  for i, text in enumerate(listed):
    if not isinstance(text, str):
      raise ValueError(f"texts must be strings, got {type(text).__name__} at {i}.")
  return listed


def pictures(given: Any) -> Sequence[Any]:
  """One or many pictures as a sequence of single ones, whatever these are.

  Raises:
    ValueError: if there is no sequence to be had.
  """
  if isinstance(given, str | os.PathLike | Image.Image):
    return [given]
  if not hasattr(given, "__array__"):
    if not isinstance(given, Iterable):
      raise ValueError(
        "Pictures are paths, Pillow images or uint8 arrays, one or a sequence of them, "
        f"got {type(given).__name__}."
      )
    return list(given)
  pixels = array(given)
  if pixels.dtype.kind in "UO":  # of paths
    return pixels.ravel().tolist()
  if pixels.ndim == 4:
    return list(pixels)
  return [] if pixels.shape == (0,) else [pixels]


def check_pixels(pixels: Any, name: str) -> None:
  """Raises a ValueError, beginning with `name`, unless this is one picture's pixels."""
  if not hasattr(pixels, "__array__"):
    raise ValueError(
      f"{name} must be a path, a Pillow image or a uint8 array, got "
      f"{type(pixels).__name__}."
    )
  pixels = array(pixels)
  if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[-1] != 3:
    raise ValueError(
      f"{name} must be uint8 [height, width, 3] from 0 to 255, got {pixels.dtype} "
      f"{list(pixels.shape)}; PIL.Image.fromarray takes greys and alpha."
    )
  if not pixels.size:
    raise ValueError(f"{name} has no pixels, its shape is {list(pixels.shape)}.")


def resized(image: Any, place: int, resize: Callable[[Any], np.ndarray]) -> np.ndarray:
  """A picture of any kind as `resize` gives it; `place` is for errors.

  Raises:
    ValueError: if it is no picture.
  """
  name = f"Picture {place}"
  if isinstance(image, str | os.PathLike):
    name = f"{name}, {os.fspath(image)}"
    if not os.path.isfile(image):
      raise ValueError(f"{name}: there is no such file.")
  if not isinstance(image, str | os.PathLike | Image.Image):
    check_pixels(image, name)
    return resize(np.asarray(image))
  try:
    if isinstance(image, Image.Image):
      return resize(image)
    with Image.open(image) as opened:
      return resize(opened)
  except Exception as error:  # Pillow's decoders raise a dozen kinds
    raise ValueError(f"{name} cannot be read: {error}") from error
