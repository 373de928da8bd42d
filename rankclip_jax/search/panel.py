"""The hits of a search as one picture: the query on top, rank and cosine beneath each."""

import dataclasses
import pathlib
from collections.abc import Sequence

from PIL import Image, ImageDraw

from rankclip_jax.data import transforms
from rankclip_jax.search import lettering
from rankclip_jax.search.lettering import Style

_COLUMNS = 5
MOST = 50  # hits drawn; the table has all of them
_TILE = 240  # pixels
_GAP = 24
MARGIN = 40
_CAPTION = 62  # height of the two lines beneath a tile
_WIDTH = 2 * MARGIN + _COLUMNS * _TILE + (_COLUMNS - 1) * _GAP
_QUERY_LINES = 3
INK, SOFT, PAPER, _EMPTY = "#1d2129", "#667080", "#ffffff", "#eef0f3"
_TITLE, _NOTE = Style(34, bold=True), Style(20)
_RANK, _COSINE, _NAME, _MISSING = Style(22, bold=True), Style(22), Style(16), Style(18)


@dataclasses.dataclass(frozen=True)
class Hit:
  """A picture that was found: its name to show, and where it lies."""

  rank: int
  cosine: float
  name: str
  path: pathlib.Path


@dataclasses.dataclass(frozen=True)
class Line:
  """What a model has found, the nearest first."""

  name: str
  hits: Sequence[Hit]


def draw(query: str | pathlib.Path, hits: Sequence[Hit], *, among: int) -> Image.Image:
  """The panel.

  Args:
    query: a text, or the path of a picture.
    hits: the nearest first.
    among: how many pictures were searched.
  """
  shown = hits[:MOST]
  header = title(query, counted(len(hits), among), _WIDTH)
  rows = -(-len(shown) // _COLUMNS)
  height = header.height + rows * (_TILE + _CAPTION + _GAP) - _GAP + MARGIN
  panel = Image.new("RGB", (_WIDTH, height), PAPER)
  panel.paste(header)
  for i, hit in enumerate(shown):
    row, column = divmod(i, _COLUMNS)
    left = MARGIN + column * (_TILE + _GAP)
    top = header.height + row * (_TILE + _CAPTION + _GAP)
    _draw_hit(panel, hit, left, top)
  return panel


def counted(hits: int, among: int) -> str:
  """How many were found, and of how many."""
  note = f"The nearest {hits:,} of {among:,} pictures"
  return note + (f", the first {MOST} of them drawn" if hits > MOST else "")


def title(query: str | pathlib.Path, note: str, width: int) -> Image.Image:
  """The query as a text or a picture, and a note, in a strip as wide as the panel."""
  left = MARGIN
  picture = None
  if isinstance(query, pathlib.Path):
    picture = tile(query, _TILE)
    left += _TILE + _GAP
    space = width - MARGIN - left
    lines = [lettering.fitting(query.name, _TITLE, space, lettering.middle)]
  else:
    lines = lettering.wrapped(f"“{query}”", _TITLE, width - MARGIN - left, _QUERY_LINES)
  text_height = 46 * len(lines) + 34
  height = 2 * MARGIN + max(text_height, _TILE if picture else 0)
  header = Image.new("RGB", (width, height), PAPER)
  if picture:
    header.paste(picture, (MARGIN, MARGIN))
  top = (height - text_height) // 2
  for i, line in enumerate(lines):
    lettering.write(header, (left, top + 46 * i), line, _TITLE, INK)
  lettering.write(header, (left, top + 46 * len(lines) + 6), note, _NOTE, SOFT)
  return header


def _draw_hit(panel: Image.Image, hit: Hit, left: int, top: int) -> None:
  panel.paste(tile(hit.path, _TILE), (left, top))
  first, second = top + _TILE + 8, top + _TILE + 38
  lettering.write(panel, (left, first), f"{hit.rank}", _RANK, INK)
  cosine = f"{hit.cosine:.3f}"
  right = left + _TILE - round(lettering.width(cosine, _COSINE))
  lettering.write(panel, (right, first), cosine, _COSINE, INK)
  name = lettering.fitting(hit.name, _NAME, _TILE, lettering.end)
  lettering.write(panel, (left, second), name, _NAME, SOFT)


def tile(path: pathlib.Path, side: int) -> Image.Image:
  """A whole picture, as large as a square of so many pixels allows."""
  square = Image.new("RGB", (side, side), _EMPTY)
  try:
    with Image.open(path) as opened:
      picture = Image.fromarray(transforms.to_rgb(opened))
  except Exception:  # Pillow's decoders raise a dozen kinds
    middle = (side // 2, side // 2)
    pen = ImageDraw.Draw(square)
    pen.text(middle, "cannot be read", font=_MISSING.font, fill=SOFT, anchor="mm")
    return square
  scale = side / max(picture.size)
  width, height = (max(1, round(length * scale)) for length in picture.size)
  picture = picture.resize((width, height), Image.Resampling.BICUBIC)
  square.paste(picture, ((side - width) // 2, (side - height) // 2))
  return square
