"""The hits of several models for one query as one picture, a line for each model."""

import pathlib
from collections.abc import Sequence

from PIL import Image, ImageDraw

from rankclip_jax.search import lettering, panel
from rankclip_jax.search.lettering import Style

_COLUMNS = 10
_TILE = 152  # pixels
_GAP = 20
_NAMES = 220  # width of the column of names
_CAPTION = 54  # height of the two lines beneath a tile
_BETWEEN = 28  # models
_NAME_LINES = 4
_FRAME, _FRAME_WIDTH = "#0072b2", 5  # Okabe and Ito's blue, which most eyes tell apart
_WIDTH = 2 * panel.MARGIN + _NAMES + _COLUMNS * _TILE + (_COLUMNS - 1) * _GAP
_MODEL = Style(20, bold=True)
_RANK, _COSINE, _HIT = Style(17, bold=True), Style(17), Style(13)


def draw(
  query: str | pathlib.Path, lines: Sequence[panel.Line], *, among: int
) -> Image.Image:
  """The panel; hits that all models have are framed, drawn or not.

  Args:
    query: a text, or the path of a picture.
    lines: of every model, with as many hits each.
    among: how many pictures were searched.
  """
  common = shared(lines)
  count = len(lines[0].hits)
  note = panel.counted(count, among)
  every = "both" if len(lines) == 2 else f"all {len(lines)}"
  note += f"; a frame marks the {len(common)} that {every} models have found"
  header = panel.title(query, note, _WIDTH)
  rows = -(-min(count, panel.MOST) // _COLUMNS)
  step = rows * (_TILE + _CAPTION) + _BETWEEN
  height = header.height + len(lines) * step - _BETWEEN + panel.MARGIN
  out = Image.new("RGB", (_WIDTH, height), panel.PAPER)
  out.paste(header)
  for i, line in enumerate(lines):
    _draw_line(out, line, common, header.height + i * step)
  return out


def shared(lines: Sequence[panel.Line]) -> set[str]:
  """The names of what is among the hits of every model."""
  names = [{hit.name for hit in line.hits} for line in lines]
  return set.intersection(*names)


def _draw_line(out: Image.Image, line: panel.Line, common: set[str], top: int) -> None:
  name = lettering.wrapped(line.name, _MODEL, _NAMES - _GAP, _NAME_LINES)
  for i, text in enumerate(name):
    lettering.write(out, (panel.MARGIN, top + 28 * i), text, _MODEL, panel.INK)
  for i, hit in enumerate(line.hits[: panel.MOST]):
    row, column = divmod(i, _COLUMNS)
    left = panel.MARGIN + _NAMES + column * (_TILE + _GAP)
    _draw_hit(out, hit, hit.name in common, left, top + row * (_TILE + _CAPTION))


def _draw_hit(
  out: Image.Image, hit: panel.Hit, framed: bool, left: int, top: int
) -> None:
  out.paste(panel.tile(hit.path, _TILE), (left, top))
  if framed:
    around = (left - 5, top - 5, left + _TILE + 4, top + _TILE + 4)
    ImageDraw.Draw(out).rectangle(around, outline=_FRAME, width=_FRAME_WIDTH)
  first, second = top + _TILE + 8, top + _TILE + 31
  lettering.write(out, (left, first), f"{hit.rank}", _RANK, panel.INK)
  cosine = f"{hit.cosine:.3f}"
  right = left + _TILE - round(lettering.width(cosine, _COSINE))
  lettering.write(out, (right, first), cosine, _COSINE, panel.INK)
  name = lettering.fitting(hit.name, _HIT, _TILE, lettering.end)
  lettering.write(out, (left, second), name, _HIT, panel.SOFT)
