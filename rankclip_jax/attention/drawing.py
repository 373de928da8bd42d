"""Maps over the picture they are of: for every caption a row for each model."""

import dataclasses
from collections.abc import Sequence

import matplotlib
import numpy as np
from PIL import Image, ImageDraw

from rankclip_jax.search import lettering, panel
from rankclip_jax.search.lettering import Style

TILE = 168  # pixels
_COLUMNS = 7  # the picture, the caption, and words; further words go to another line
_GAP = 18
_NAMES = 210  # width of the column of names
_CAPTION = 58  # height of the two lines beneath a tile
_TEXT_LINES = 2
_LINE = 38  # of a caption above its rows
_BETWEEN = 26  # captions
_WIDTH = 2 * panel.MARGIN + _NAMES + _COLUMNS * TILE + (_COLUMNS - 1) * _GAP
# Perceptually uniform, and dark where there is nothing.
_COLOURS = matplotlib.colormaps["inferno"]
_OPACITY = 0.7
_BAR = (200, 20)
_TITLE, _TEXT, _NOTE = Style(30, bold=True), Style(24, bold=True), Style(17)
_MODEL, _METHOD = Style(19, bold=True), Style(14)
_LABEL, _VALUES = Style(18, bold=True), Style(15)
_HOW = "Brighter: the likeness of picture and text rests more on this part."
_NUMBERS = (
  "Numbers: the cosine of picture and text; then the word's share in the likeness of the "
  "caption."
)
_SCALE = "Each map has its own scale, over white and black:"


@dataclasses.dataclass(frozen=True)
class Map:
  """A text and its map [grid, grid] of values from 0; `values` is a line beneath it."""

  label: str
  values: str
  relevance: np.ndarray


@dataclasses.dataclass(frozen=True)
class Row:
  """What a model makes of one picture and one caption.

  Attributes:
    model: its name.
    method: how the maps were made, in lines.
    picture: as the model sees it but larger, uint8 [TILE, TILE, 3].
    maps: of the whole caption, then of its words.
    left_out: words of the caption that the model does not read.
    cut: the word of which it reads only the beginning, or "".
  """

  model: str
  method: Sequence[str]
  picture: np.ndarray
  maps: Sequence[Map]
  left_out: Sequence[str] = ()
  cut: str = ""


def draw(name: str, captions: Sequence[tuple[str, Sequence[Row]]]) -> Image.Image:
  """All maps of a picture.

  Args:
    name: of the picture.
    captions: each with a row for every model.
  """
  blocks = [_header(name), *(_caption(text, rows) for text, rows in captions)]
  height = sum(block.height for block in blocks) + panel.MARGIN - _BETWEEN
  out = Image.new("RGB", (_WIDTH, height), panel.PAPER)
  top = 0
  for block in blocks:
    out.paste(block, (0, top))
    top += block.height
  return out


def overlay(picture: np.ndarray, relevance: np.ndarray) -> np.ndarray:
  """A map in colours over its picture in grey, uint8 [TILE, TILE, 3].

  The map is scaled by its largest value (a map of zeros stays dark) and enlarged
  bilinearly, as Chefer et al. and Selvaraju et al. draw theirs.
  """
  largest = relevance.max()
  scaled = Image.fromarray(np.float32(relevance / largest if largest > 0 else relevance))
  side = len(picture)
  strength = np.asarray(scaled.resize((side, side), Image.Resampling.BILINEAR))
  return _coloured(np.asarray(Image.fromarray(picture).convert("L")), strength)


def _coloured(grey: np.ndarray, strength: np.ndarray) -> np.ndarray:
  """Strengths from 0 to 1 over greys from 0 to 255, both [height, width]."""
  colours = _COLOURS(np.clip(strength, 0, 1))[..., :3]
  mixed = (1 - _OPACITY) * grey[..., None] / 255 + _OPACITY * colours
  return (255 * mixed + 0.5).astype(np.uint8)


def _header(name: str) -> Image.Image:
  out = Image.new("RGB", (_WIDTH, panel.MARGIN + 136), panel.PAPER)
  title = lettering.fitting(name, _TITLE, _WIDTH - 2 * panel.MARGIN, lettering.middle)
  lettering.write(out, (panel.MARGIN, panel.MARGIN), title, _TITLE, panel.INK)
  first, second = panel.MARGIN + 48, panel.MARGIN + 75
  lettering.write(out, (panel.MARGIN, second), _NUMBERS, _NOTE, panel.SOFT)
  width, height = _BAR
  bar = np.broadcast_to(np.linspace(0, 1, width), (height, width))
  grey = np.where(np.arange(height) < height // 2, 255, 0)[:, None]
  drawn = Image.fromarray(_coloured(np.broadcast_to(grey, bar.shape), bar))
  left = panel.MARGIN
  for piece in (_HOW, _SCALE, "0", drawn, "its largest value"):
    if isinstance(piece, str):
      lettering.write(out, (left, first), piece, _NOTE, panel.SOFT)
      left += round(lettering.width(piece, _NOTE)) + 12
    else:
      out.paste(piece, (left, first + 1))
      left += width + 12
  return out


def _caption(text: str, rows: Sequence[Row]) -> Image.Image:
  """The text, and beneath it the row of every model."""
  space = _WIDTH - 2 * panel.MARGIN
  lines = lettering.wrapped(f"“{text}”", _TEXT, space, _TEXT_LINES)
  drawn = [_row(row) for row in rows]
  height = _LINE * len(lines) + sum(row.height for row in drawn) + _BETWEEN
  out = Image.new("RGB", (_WIDTH, height), panel.PAPER)
  for i, line in enumerate(lines):
    lettering.write(out, (panel.MARGIN, _LINE * i), line, _TEXT, panel.INK)
  top = _LINE * len(lines)
  for row in drawn:
    out.paste(row, (0, top))
    top += row.height
  return out


def _row(row: Row) -> Image.Image:
  words = _COLUMNS - 2
  lines = max(1, -(-(len(row.maps) - 1) // words))
  out = Image.new("RGB", (_WIDTH, lines * (TILE + _CAPTION)), panel.PAPER)
  _draw_name(out, row)
  step = TILE + _GAP
  left = panel.MARGIN + _NAMES
  out.paste(Image.fromarray(row.picture), (left, 0))
  for i, each in enumerate(row.maps):
    line, column = divmod(i - 1, words) if i else (0, -1)
    place = (left + (column + 2) * step, line * (TILE + _CAPTION))
    _draw_map(out, row.picture, each, place)
  return out


def _draw_name(out: Image.Image, row: Row) -> None:
  top = 0
  for line in lettering.wrapped(row.model, _MODEL, _NAMES - _GAP, 3):
    lettering.write(out, (panel.MARGIN, top), line, _MODEL, panel.INK)
    top += 26
  notes = list(row.method)
  if row.cut:
    notes += lettering.wrapped(f"read in part: {row.cut}", _METHOD, _NAMES - _GAP, 2)
  if row.left_out:
    said = f"too long; left out: {' '.join(row.left_out)}"
    notes += lettering.wrapped(said, _METHOD, _NAMES - _GAP, 3)
  for note in notes:
    lettering.write(out, (panel.MARGIN, top), note, _METHOD, panel.SOFT)
    top += 20


def _draw_map(
  out: Image.Image, picture: np.ndarray, each: Map, place: tuple[int, int]
) -> None:
  left, top = place
  out.paste(Image.fromarray(overlay(picture, each.relevance)), place)
  if not each.relevance.max() > 0:
    middle = (left + TILE // 2, top + TILE // 2)
    pen = ImageDraw.Draw(out)
    pen.text(middle, "nothing", font=_VALUES.font, fill="white", anchor="mm")
  label = lettering.fitting(each.label, _LABEL, TILE, lettering.middle)
  lettering.write(out, (left, top + TILE + 4), label, _LABEL, panel.INK)
  lettering.write(out, (left, top + TILE + 29), each.values, _VALUES, panel.SOFT)
