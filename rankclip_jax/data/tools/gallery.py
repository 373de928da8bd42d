"""Some pictures with their captions, as a picture."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from rankclip_jax.data.tools.lettering import BOX, Lettering

_COLUMNS = 4
_TILE = 320  # pixels
_GAP = 36
_MARGIN = 48
_MOST_LINES = 12  # of a caption
_WIDTH = 2 * _MARGIN + _COLUMNS * _TILE + (_COLUMNS - 1) * _GAP
_INK, _SOFT, _PAPER, _EMPTY = "#1d2129", "#667080", "#ffffff", "#eef0f3"


@dataclasses.dataclass(frozen=True)
class Pair:
  """A picture, uint8 [height, width, 3], its captions, and words for beneath them."""

  image: np.ndarray
  captions: tuple[str, ...]
  note: str


def draw(title: str, note: str, pairs: Sequence[Pair]) -> Image.Image:
  """All of the captions beneath their pictures, rows as high as the longest needs."""
  large, medium, small = Lettering(30, bold=True), Lettering(19), Lettering(14)
  texts = [_lines(pair, medium) for pair in pairs]
  rows = range(0, len(pairs), _COLUMNS)
  heights = [
    _TILE + 12 + medium.pitch * max(map(len, texts[i : i + _COLUMNS])) + small.pitch
    for i in rows
  ]
  top = _MARGIN + large.pitch + medium.pitch + 24
  foot = _footnote(large, medium, small)
  bottom = top + sum(heights) + _GAP * max(len(heights) - 1, 0)
  height = bottom + (_GAP + small.pitch if foot else 0) + _MARGIN
  panel = Image.new("RGB", (_WIDTH, height), _PAPER)
  pen = ImageDraw.Draw(panel)
  inner = _WIDTH - 2 * _MARGIN
  large.draw(pen, _MARGIN, _MARGIN, large.shortened(title, inner), _INK)
  medium.draw(pen, _MARGIN, _MARGIN + large.pitch, medium.shortened(note, inner), _SOFT)
  for start, tall in zip(rows, heights, strict=True):
    for column, pair in enumerate(pairs[start : start + _COLUMNS]):
      left = _MARGIN + column * (_TILE + _GAP)
      panel.paste(_tile(pair.image), (left, top))
      below = top + _TILE + 12
      for line in texts[start + column]:
        medium.draw(pen, left, below, line, _INK)
        below += medium.pitch
      small.draw(pen, left, below, small.shortened(pair.note, _TILE), _SOFT)
    top += tall + _GAP
  if foot:
    small.draw(pen, _MARGIN, bottom + _GAP, small.shortened(foot, inner), _SOFT)
  return panel


def _lines(pair: Pair, lettering: Lettering) -> list[str]:
  lines = lettering.wrapped(pair.captions[0], _TILE, _MOST_LINES)
  if more := len(pair.captions) - 1:
    lines.append(f"(+{more} more caption{'s'[: more > 1]})")
  return lines


def _footnote(*letterings: Lettering) -> str:
  missing = sorted(set[str]().union(*(lettering.missing for lettering in letterings)))
  if not missing:
    return ""
  codes = ", ".join(f"U+{ord(character):04X}" for character in missing[:5])
  more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
  return (
    f"{BOX}: no font of this machine has {codes}{more}; install one that does, such as "
    "Noto Sans."
  )


def _tile(image: np.ndarray) -> Image.Image:
  """A whole picture, as large as a square allows."""
  tile = Image.new("RGB", (_TILE, _TILE), _EMPTY)
  picture = Image.fromarray(image)
  scale = _TILE / max(picture.size)
  width, height = (max(1, round(side * scale)) for side in picture.size)
  picture = picture.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3)
  tile.paste(picture, ((_TILE - width) // 2, (_TILE - height) // 2))
  return tile
