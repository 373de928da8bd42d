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
_BAR = (220, 14)
_TITLE, _TEXT, _NOTE = Style(30, bold=True), Style(24, bold=True), Style(17)
_MODEL, _METHOD = Style(19, bold=True), Style(14)
_LABEL, _VALUES = Style(18, bold=True), Style(15)
_HOW = (
  "Brighter: the likeness to the text below rests more on this part of the picture. "
  "Numbers: its cosine,",
  "and how much of the caption's likeness rests on the word. Each map has its own scale:",
)


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
  """

  model: str
  method: Sequence[str]
  picture: np.ndarray
  maps: Sequence[Map]
  left_out: Sequence[str] = ()


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
  grey = np.asarray(Image.fromarray(picture).convert("L"), np.float32)[..., None] / 255
  colours = _COLOURS(np.clip(strength, 0, 1))[..., :3]
  mixed = (1 - _OPACITY) * grey + _OPACITY * colours
  return (255 * mixed + 0.5).astype(np.uint8)


def _header(name: str) -> Image.Image:
  out = Image.new("RGB", (_WIDTH, panel.MARGIN + 130), panel.PAPER)
  title = lettering.fitting(name, _TITLE, _WIDTH - 2 * panel.MARGIN, lettering.middle)
  lettering.write(out, (panel.MARGIN, panel.MARGIN), title, _TITLE, panel.INK)
  for i, line in enumerate(_HOW):
    place = (panel.MARGIN, panel.MARGIN + 48 + 25 * i)
    lettering.write(out, place, line, _NOTE, panel.SOFT)
  left = panel.MARGIN + round(lettering.width(_HOW[-1], _NOTE)) + 16
  top = panel.MARGIN + 48 + 25
  lettering.write(out, (left, top), "0", _NOTE, panel.SOFT)
  left += 20
  ramp = np.broadcast_to(np.linspace(0, 1, _BAR[0]), _BAR[::-1])
  bar = Image.fromarray(np.uint8(255 * _COLOURS(ramp)[..., :3]))
  out.paste(bar, (left, top + 5))
  lettering.write(out, (left + _BAR[0] + 8, top), "its largest value", _NOTE, panel.SOFT)
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
  if row.left_out:
    some = ", ".join(row.left_out)
    notes += [f"too long; {len(row.left_out)} left out:", some]
  for note in notes:
    line = lettering.fitting(note, _METHOD, _NAMES - _GAP, lettering.start)
    lettering.write(out, (panel.MARGIN, top), line, _METHOD, panel.SOFT)
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
