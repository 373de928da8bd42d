"""The hits of a search as one picture: the query on top, rank and cosine beneath each."""

import dataclasses
import pathlib
from collections.abc import Sequence

from PIL import Image, ImageDraw

from rankclip_jax.data import transforms
from rankclip_jax.search import lettering
from rankclip_jax.search.lettering import Style

_COLUMNS = 5
_MOST = 50  # hits drawn; the table has all of them
_TILE = 240  # pixels
_GAP = 24
_MARGIN = 40
_CAPTION = 62  # height of the two lines beneath a tile
_WIDTH = 2 * _MARGIN + _COLUMNS * _TILE + (_COLUMNS - 1) * _GAP
_QUERY_LINES = 3
_INK, _SOFT, _PAPER, _EMPTY = "#1d2129", "#667080", "#ffffff", "#eef0f3"
_TITLE, _NOTE = Style(34, bold=True), Style(20)
_RANK, _COSINE, _NAME, _MISSING = Style(22, bold=True), Style(22), Style(16), Style(18)


@dataclasses.dataclass(frozen=True)
class Hit:
  """A picture that was found: its name to show, and where it lies."""

  rank: int
  cosine: float
  name: str
  path: pathlib.Path


def draw(query: str | pathlib.Path, hits: Sequence[Hit], *, among: int) -> Image.Image:
  """The panel.

  Args:
    query: a text, or the path of a picture.
    hits: the nearest first.
    among: how many pictures were searched.
  """
  shown = hits[:_MOST]
  header = _header(query, len(hits), len(shown), among)
  rows = -(-len(shown) // _COLUMNS)
  height = header.height + rows * (_TILE + _CAPTION + _GAP) - _GAP + _MARGIN
  panel = Image.new("RGB", (_WIDTH, height), _PAPER)
  panel.paste(header)
  for i, hit in enumerate(shown):
    row, column = divmod(i, _COLUMNS)
    left = _MARGIN + column * (_TILE + _GAP)
    top = header.height + row * (_TILE + _CAPTION + _GAP)
    _draw_hit(panel, hit, left, top)
  return panel


def _header(query: str | pathlib.Path, hits: int, shown: int, among: int) -> Image.Image:
  """Query and counts, as wide as the panel."""
  note = f"The nearest {hits:,} of {among:,} pictures"
  note += f", the first {shown} of them drawn" if shown < hits else ""
  left = _MARGIN
  tile = None
  if isinstance(query, pathlib.Path):
    tile = _tile(query)
    left += _TILE + _GAP
    space = _WIDTH - _MARGIN - left
    title = [lettering.fitting(query.name, _TITLE, space, lettering.middle)]
  else:
    title = lettering.wrapped(f"“{query}”", _TITLE, _WIDTH - _MARGIN - left, _QUERY_LINES)
  text_height = 46 * len(title) + 34
  height = 2 * _MARGIN + max(text_height, _TILE if tile else 0)
  header = Image.new("RGB", (_WIDTH, height), _PAPER)
  if tile:
    header.paste(tile, (_MARGIN, _MARGIN))
  top = (height - text_height) // 2
  for i, line in enumerate(title):
    lettering.write(header, (left, top + 46 * i), line, _TITLE, _INK)
  lettering.write(header, (left, top + 46 * len(title) + 6), note, _NOTE, _SOFT)
  return header


def _draw_hit(panel: Image.Image, hit: Hit, left: int, top: int) -> None:
  panel.paste(_tile(hit.path), (left, top))
  first, second = top + _TILE + 8, top + _TILE + 38
  lettering.write(panel, (left, first), f"{hit.rank}", _RANK, _INK)
  cosine = f"{hit.cosine:.3f}"
  right = left + _TILE - round(lettering.width(cosine, _COSINE))
  lettering.write(panel, (right, first), cosine, _COSINE, _INK)
  name = lettering.fitting(hit.name, _NAME, _TILE, lettering.end)
  lettering.write(panel, (left, second), name, _NAME, _SOFT)


def _tile(path: pathlib.Path) -> Image.Image:
  """A whole picture, as large as a square allows."""
  tile = Image.new("RGB", (_TILE, _TILE), _EMPTY)
  try:
    with Image.open(path) as opened:
      picture = Image.fromarray(transforms.to_rgb(opened))
  except Exception:  # Pillow's decoders raise a dozen kinds
    middle = (_TILE // 2, _TILE // 2)
    pen = ImageDraw.Draw(tile)
    pen.text(middle, "cannot be read", font=_MISSING.font, fill=_SOFT, anchor="mm")
    return tile
  scale = _TILE / max(picture.size)
  width, height = (max(1, round(side * scale)) for side in picture.size)
  picture = picture.resize((width, height), Image.Resampling.BICUBIC)
  tile.paste(picture, ((_TILE - width) // 2, (_TILE - height) // 2))
  return tile
