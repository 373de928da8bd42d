"""Held-out embeddings: which file of a workdir has them, and its arrays, checked."""

import dataclasses
import functools
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rankclip_jax.evals import results


@dataclasses.dataclass(frozen=True)
class Embeddings:
  """Held-out embeddings, L2-normalised, with what is needed to show the items."""

  image: np.ndarray  # float32 [images, dim]
  text: np.ndarray  # float32 [texts, dim]
  image_of_text: np.ndarray  # int [texts]
  captions: tuple[str, ...]  # [texts]
  keys: tuple[str, ...]  # [images]
  thumbnails: np.ndarray  # uint8 [images, height, width, 3]
  dataset: str = ""  # what they are of, as results call it

  @functools.cached_property
  def main_text(self) -> np.ndarray:
    """The text row of every image's main (first) caption [images]."""
    return np.unique(self.image_of_text, return_index=True)[1]

  @functools.cached_property
  def index_of_key(self) -> dict[str, int]:
    """The image row of every key."""
    return {key: row for row, key in enumerate(self.keys)}

  def main_caption(self, image: int) -> str:
    """The main caption of an image row."""
    return self.captions[self.main_text[image]]


def find(directory: Path, config: Mapping[str, Any]) -> Path | None:
  """The one file of embeddings, or of several the one that `config` holds out, if any."""
  found = sorted(directory.glob(results.embeddings_path("", "*").name))
  data = config.get("data")
  if len(found) != 1 and isinstance(data, Mapping):
    held_out = results.held_out_name(str(data.get("source")), str(data.get("test")))
    found = [p for p in found if p == results.embeddings_path(directory, held_out)]
  return found[0] if len(found) == 1 else None


def read(path: Path) -> Embeddings:
  """Reads and checks the arrays of held-out embeddings.

  Raises:
    ValueError: an array is missing or does not fit the others.
  """
  names = [f.name for f in dataclasses.fields(Embeddings) if f.name != "dataset"]
  try:
    # Opened here: np.load leaves a file open that turns out to be broken.
    with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
      absent = [name for name in names if name not in file]
      if absent:
        raise ValueError(f"expected the arrays {names}, got none named {absent}")
      arrays = {name: file[name] for name in names}
    _check_embeddings(**arrays)
  except (ValueError, OSError, zipfile.BadZipFile, EOFError) as error:
    raise ValueError(f"{path}: {error}; evaluate the run again") from error
  return Embeddings(
    image=arrays["image"],
    text=arrays["text"],
    image_of_text=arrays["image_of_text"],
    captions=tuple(map(str, arrays["captions"])),
    keys=tuple(map(str, arrays["keys"])),
    thumbnails=arrays["thumbnails"],
    dataset=results.embedded_dataset(path),
  )


def _check_embeddings(
  *,
  image: np.ndarray,
  text: np.ndarray,
  image_of_text: np.ndarray,
  captions: np.ndarray,
  keys: np.ndarray,
  thumbnails: np.ndarray,
) -> None:
  if image.ndim != 2 or text.ndim != 2 or image.shape[1] != text.shape[1]:
    raise ValueError(
      "expected image [images, dim] and text [texts, dim],"
      f" got {list(image.shape)} and {list(text.shape)}"
    )
  images, texts = len(image), len(text)
  if images == 0:
    raise ValueError("expected at least one image, got none")
  if image_of_text.shape != (texts,) or captions.shape != (texts,):
    raise ValueError(
      f"expected image_of_text and captions [{texts}], one for each text,"
      f" got {list(image_of_text.shape)} and {list(captions.shape)}"
    )
  if not np.array_equal(np.unique(image_of_text), np.arange(images)):
    raise ValueError(
      f"expected image_of_text to name each of the {images} images at least once,"
      f" got {len(np.unique(image_of_text))} different values"
    )
  if keys.shape != (images,) or len(np.unique(keys)) != images:
    raise ValueError(
      f"expected {images} different keys, one for each image,"
      f" got shape {list(keys.shape)} with {len(np.unique(keys))} different ones"
    )
  if (
    thumbnails.dtype != np.uint8
    or thumbnails.ndim != 4
    or (len(thumbnails), thumbnails.shape[3]) != (images, 3)
  ):
    raise ValueError(
      f"expected thumbnails uint8 [{images}, height, width, 3],"
      f" got {thumbnails.dtype} {list(thumbnails.shape)}"
    )
