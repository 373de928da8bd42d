"""The hits of a search as one picture: the query on top, rank and cosine beneath each."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from rankclip_jax.data import transforms

_COLUMNS = 5
_MOST = 50  # hits drawn; the table has all of them
_TILE = 240  # pixels
_GAP = 24
_MARGIN = 40
_CAPTION = 62  # height of the two lines beneath a tile
_WIDTH = 2 * _MARGIN + _COLUMNS * _TILE + (_COLUMNS - 1) * _GAP
_QUERY_LINES = 3
_INK, _SOFT, _PAPER, _EMPTY = "#1d2129", "#667080", "#ffffff", "#eef0f3"

# What of a text is left when it has to be shorter by some characters.
_Shortened = Callable[[str, int], str]


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
    title = [_fitting(query.name, _font(34, bold=True), _WIDTH - _MARGIN - left, _middle)]
  else:
    title = _wrapped(f"“{query}”", _font(34, bold=True), _WIDTH - _MARGIN - left)
  text_height = 46 * len(title) + 34
  height = 2 * _MARGIN + max(text_height, _TILE if tile else 0)
  header = Image.new("RGB", (_WIDTH, height), _PAPER)
  if tile:
    header.paste(tile, (_MARGIN, _MARGIN))
  pen = ImageDraw.Draw(header)
  top = (height - text_height) // 2
  for i, line in enumerate(title):
    pen.text((left, top + 46 * i), line, font=_font(34, bold=True), fill=_INK)
  pen.text((left, top + 46 * len(title) + 6), note, font=_font(20), fill=_SOFT)
  return header


def _draw_hit(panel: Image.Image, hit: Hit, left: int, top: int) -> None:
  panel.paste(_tile(hit.path), (left, top))
  pen = ImageDraw.Draw(panel)
  pen.text((left, top + _TILE + 8), f"{hit.rank}", font=_font(22, bold=True), fill=_INK)
  right = left + _TILE
  cosine = f"{hit.cosine:.3f}"
  pen.text((right, top + _TILE + 8), cosine, font=_font(22), fill=_INK, anchor="ra")
  name = _fitting(hit.name, _font(16), _TILE, _end)
  pen.text((left, top + _TILE + 38), name, font=_font(16), fill=_SOFT)


def _tile(path: pathlib.Path) -> Image.Image:
  """A whole picture, as large as a square allows."""
  tile = Image.new("RGB", (_TILE, _TILE), _EMPTY)
  try:
    with Image.open(path) as opened:
      picture = Image.fromarray(transforms.to_rgb(opened))
  except Exception:  # Pillow's decoders raise a dozen kinds
    middle = (_TILE // 2, _TILE // 2)
    pen = ImageDraw.Draw(tile)
    pen.text(middle, "cannot be read", font=_font(18), fill=_SOFT, anchor="mm")
    return tile
  scale = _TILE / max(picture.size)
  width, height = (max(1, round(side * scale)) for side in picture.size)
  picture = picture.resize((width, height), Image.Resampling.BICUBIC)
  tile.paste(picture, ((_TILE - width) // 2, (_TILE - height) // 2))
  return tile


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
  """Text in lines of `width` pixels, cut after `_QUERY_LINES`."""
  lines, rest = [], " ".join(_drawable(text).split())
  while rest and len(lines) < _QUERY_LINES:
    last = len(lines) == _QUERY_LINES - 1
    if font.getlength(rest) <= width or last:
      lines.append(_fitting(rest, font, width, _start))
      break
    fits = lambda n, rest=rest: font.getlength(rest[:n]) <= width
    count = _longest(fits, len(rest))
    count = rest.rfind(" ", 0, count + 1) if " " in rest[: count + 1] else count
    lines.append(rest[:count])
    rest = rest[count:].lstrip()
  return lines


def _fitting(
  text: str, font: ImageFont.FreeTypeFont, width: int, shorten: _Shortened
) -> str:
  """`text`, shortened if it is wider than `width` pixels."""
  text = _drawable(text)
  if font.getlength(text) <= width:
    return text
  fits = lambda n: font.getlength(shorten(text, n)) <= width
  return shorten(text, _longest(fits, len(text)))


def _longest(fits: Callable[[int], bool], most: int) -> int:
  """The largest number from 1 to `most` that fits, by halving; 1 if none does."""
  low, high = 1, most
  while low < high:
    middle = (low + high + 1) // 2
    low, high = (middle, high) if fits(middle) else (low, middle - 1)
  return low


def _start(text: str, count: int) -> str:
  return text[:count].rstrip() + "…"


def _end(text: str, count: int) -> str:
  """The end of a path is what tells it from its neighbours."""
  return "…" + text[-count:]


def _middle(text: str, count: int) -> str:
  return text[: count - count // 2] + "…" + text[len(text) - count // 2 :]


def _drawable(text: str) -> str:
  """Without what a font has no picture of and Pillow refuses."""
  text = text.encode(errors="backslashreplace").decode()
  return "".join(c if c.isprintable() else " " for c in text)


@functools.cache
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
  """DejaVu Sans, which comes with matplotlib and has most alphabets."""
  name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
  fonts = pathlib.Path(matplotlib.get_data_path(), "fonts", "ttf")
  return ImageFont.truetype(fonts / name, size)
