"""Text of any script on pictures: by a font that has it, as drawn emoji, or by names."""

import dataclasses
import functools
import pathlib
import re
import unicodedata
from collections.abc import Callable, Iterator

import emoji
import matplotlib
from matplotlib import font_manager, ft2font
from PIL import Image, ImageDraw, ImageFont

from rankclip_jax.data import openmoji

# What of a text is left when it has to be shorter by some characters.
Shortened = Callable[[str, int], str]

_EMOJI_HEIGHT, _CAP_MIDDLE = 1.25, 0.37  # of the size of the letters around
_EMOJI_STYLE = "\ufe0f"  # a character that asks for the emoji, not the letter
_FIRST_EMOJI = 0x1F000
_NEIGHBOURS = re.compile(
  r"(U\+[0-9A-F]{4,6})\]\[(?=U\+)"
)  # code points one after another
# Fonts that claim characters they have no outlines of.
_NO_LETTERS = ("emoji", "lastresort")


@dataclasses.dataclass(frozen=True)
class Style:
  """Size of letters in pixels, and their weight."""

  size: int
  bold: bool = False

  @property
  def font(self) -> ImageFont.FreeTypeFont:
    """What most texts are written in."""
    return _font(_fonts(self.bold)[0], self.size)


def write(
  onto: Image.Image, corner: tuple[int, int], text: str, style: Style, colour: str
) -> None:
  """Draws what `drawable` made of a text; its line begins at this upper left corner."""
  pen = ImageDraw.Draw(onto)
  left, top = corner
  baseline = top + style.font.getmetrics()[0]
  for piece in _pieces(text, style):
    if isinstance(piece, Image.Image):
      middle = baseline - _CAP_MIDDLE * style.size
      onto.paste(piece, (round(left), round(middle - piece.height / 2)))
      left += piece.width
    else:
      letters, font = piece
      pen.text((left, baseline), letters, font=font, fill=colour, anchor="ls")
      left += font.getlength(letters)


def width(text: str, style: Style) -> float:
  """Of a line of `write`, in pixels."""
  return sum(
    piece.width if isinstance(piece, Image.Image) else piece[1].getlength(piece[0])
    for piece in _pieces(text, style)
  )


def wrapped(text: str, style: Style, most: int, lines: int) -> list[str]:
  """A text in lines of at most `most` pixels, cut after so many of them."""
  out, rest = [], " ".join(drawable(text, style).split())
  while rest and len(out) < lines:
    if width(rest, style) <= most or len(out) == lines - 1:
      out.append(fitting(rest, style, most, start))
      break
    fits = lambda n, rest=rest: width(rest[:n], style) <= most
    count = _longest(fits, len(rest))
    count = rest.rfind(" ", 0, count + 1) if " " in rest[: count + 1] else count
    out.append(rest[:count])
    rest = rest[count:].lstrip()
  return out


def fitting(text: str, style: Style, most: int, shorten: Shortened) -> str:
  """A text, shortened if it is wider than `most` pixels."""
  text = drawable(text, style)
  if width(text, style) <= most:
    return text
  fits = lambda n: width(shorten(text, n), style) <= most
  return shorten(text, _longest(fits, len(text)))


def start(text: str, count: int) -> str:
  """The beginning of a sentence."""
  return text[:count].rstrip() + "…"


def end(text: str, count: int) -> str:
  """The end of a path, which is what tells it from its neighbours."""
  return "…" + text[-count:]


def middle(text: str, count: int) -> str:
  """Both ends of a name."""
  return text[: count - count // 2] + "…" + text[len(text) - count // 2 :]


def drawable(text: str, style: Style) -> str:
  """A text in which everything can be drawn: what nothing here can becomes its name."""
  text = text.encode(errors="backslashreplace").decode()
  out = ""
  for part, is_emoji in _parts(text):
    if is_emoji:
      known = _emoji(part, style.size) is not None
      named = emoji.demojize(part, delimiters=("[", "]")).replace("_", " ")
      out += part if known else named
      continue
    for character in part:
      if not character.isprintable():
        out += "" if unicodedata.category(character) == "Cf" else " "
      else:
        drawn = _font_of(character, style.bold) is not None
        out += character if drawn else _name_of(character)
  return _NEIGHBOURS.sub(r"\1 ", out)


def _name_of(character: str) -> str:
  """What is said of a character that cannot be drawn; nothing of a mere modifier."""
  if unicodedata.category(character) in ("Mn", "Me"):
    return ""
  name = unicodedata.name(character, "")
  # Names of letters are longer than their code points and tell as little.
  if not name or unicodedata.category(character).startswith("L"):
    return f"[U+{ord(character):04X}]"
  return f"[{name.lower()}]"


def _parts(text: str) -> Iterator[tuple[str, bool]]:
  """A text in pieces, and whether each is an emoji that should be drawn as one."""
  done = 0
  for found in emoji.emoji_list(text):
    begin, stop = found["match_start"], found["match_end"]
    if any(c == _EMOJI_STYLE or ord(c) >= _FIRST_EMOJI for c in text[begin:stop]):
      yield text[done:begin], False
      yield text[begin:stop], True
      done = stop
  yield text[done:], False


def _pieces(
  text: str, style: Style
) -> Iterator[Image.Image | tuple[str, ImageFont.FreeTypeFont]]:
  """Emoji as pictures, and letters with their font, as many at once as share it."""
  for part, is_emoji in _parts(text):
    picture = _emoji(part, style.size) if is_emoji else None
    if picture:
      yield picture
      continue
    run, path = "", None
    for character in part:
      wanted = _font_of(character, style.bold) or _fonts(style.bold)[0]
      if run and wanted != path:
        yield run, _font(path or wanted, style.size)
        run = ""
      run, path = run + character, wanted
    if run and path:
      yield run, _font(path, style.size)


def _longest(fits: Callable[[int], bool], most: int) -> int:
  """The largest number from 1 to `most` that fits, by halving; 1 if none does."""
  low, high = 1, most
  while low < high:
    half = (low + high + 1) // 2
    low, high = (half, high) if fits(half) else (low, half - 1)
  return low


@functools.cache
def _emoji(text: str, size: int) -> Image.Image | None:
  """OpenMoji's picture for letters of a size; None if there is none."""
  key = "-".join(f"{ord(character):04X}" for character in text)
  try:
    return Image.fromarray(openmoji.draw([key], round(_EMOJI_HEIGHT * size))[0])
  except (ValueError, RuntimeError):  # RuntimeError: of a Pillow without Raqm
    return None


@functools.cache
def _font_of(character: str, bold: bool) -> str | None:
  """The first font that has a character; the system's are opened when they are needed."""
  has = lambda path: ord(character) in _characters(path)
  own = next(filter(has, _fonts(bold)), None)
  return own or next(filter(has, _system_fonts()), None)


def _fonts(bold: bool) -> tuple[str, str]:
  """DejaVu Sans, which comes with matplotlib and has most alphabets."""
  folder = pathlib.Path(matplotlib.get_data_path(), "fonts", "ttf")
  names = ["DejaVuSans-Bold.ttf", "DejaVuSans.ttf"]
  first, second = names if bold else reversed(names)
  return str(folder / first), str(folder / second)


@functools.cache
def _system_fonts() -> tuple[str, ...]:
  """All fonts of this computer that letters can be drawn with, the regular ones first."""
  found = font_manager.findSystemFonts()
  name = lambda path: pathlib.Path(path).name.lower()
  usable = [f for f in found if not any(word in name(f) for word in _NO_LETTERS)]
  return tuple(sorted(usable, key=lambda f: ("regular" not in name(f), name(f))))


@functools.cache
def _characters(path: str) -> frozenset[int]:
  """The code points that a font has."""
  try:
    return frozenset(ft2font.FT2Font(path).get_charmap())
  except (OSError, RuntimeError, ValueError):  # damaged, or no outlines
    return frozenset()


@functools.cache
def _font(path: str, size: int) -> ImageFont.FreeTypeFont:
  return ImageFont.truetype(path, size)
