"""Text on panels: nothing becomes an empty box."""

import pathlib

import matplotlib
import numpy as np
import pytest
from PIL import Image

from rankclip_jax.search import lettering, panel
from rankclip_jax.search.lettering import Style

STYLE = Style(34, bold=True)


@pytest.fixture(autouse=True)
def no_other_fonts(monkeypatch):
  """What is drawn must not depend on the fonts of the computer that runs the tests."""
  monkeypatch.setattr(lettering, "_system_fonts", lambda: ())
  lettering._font_of.cache_clear()
  yield
  lettering._font_of.cache_clear()


def drawn(text, style=STYLE):
  canvas = Image.new("RGB", (1200, 60), "white")
  lettering.write(canvas, (5, 5), text, style, "black")
  return np.asarray(canvas)


def is_grey(pixels):
  return (np.ptp(pixels.astype(int), -1) < 8).all()


@pytest.mark.parametrize(
  "text, expected",
  [
    ("a red heart", "a red heart"),
    ("naïve Ωмир ♥ ½ ᚠ", "naïve Ωмир ♥ ½ [U+16A0]"),
    ("赤い猫 cat", "[U+8D64 U+3044 U+732B] cat"),
    ("ก x", "[U+0E01] x"),
    ("𓃠", "[U+130E0]"),
    ("a\tb\nc\0d", "a b c d"),
    ("a\u200bb\u2060c", "abc"),  # what is invisible anyway
    ("\udcff", "\\udcff"),  # of a file name that is no UTF-8
    ("🂡", "🂡"),  # DejaVu has playing cards
    ("🀀🪄", "[mahjong tile east wind]🪄"),
    ("⏻", "[power symbol]"),
  ],
)
def test_what_no_font_has_is_named(text, expected):
  assert lettering.drawable(text, STYLE) == expected


@pytest.mark.parametrize("text", ["❤️", "😀", "👍🏽", "🇯🇵", "👩‍🚀", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "1️⃣"])
def test_emoji_are_drawn_as_one_picture_in_colour(text):
  assert lettering.drawable(f"a {text}!", STYLE) == f"a {text}!"
  pieces = list(lettering._pieces(f"a {text}!", STYLE))
  assert [isinstance(p, Image.Image) for p in pieces] == [False, True, False]
  pixels = drawn(f"a {text}!")
  assert not is_grey(pixels)
  assert is_grey(drawn("a !"))
  side = round(1.25 * 34)
  assert lettering.width(text, STYLE) == side
  ink = (pixels < 255).any(-1).any(0)
  assert lettering.width(f"a {text}!", STYLE) == pytest.approx(
    np.flatnonzero(ink)[-1], abs=12
  )


def test_signs_that_are_letters_stay_letters():
  for text in ("©", "™", "☎", "❤", "1", "#"):
    assert lettering.drawable(text, STYLE) == text
    assert is_grey(drawn(text))
    assert (drawn(text) < 128).any()


def test_an_emoji_without_a_picture_is_named(monkeypatch):
  monkeypatch.setattr(lettering, "_emoji", lambda text, size: None)
  assert lettering.drawable("a 👍🏽!", STYLE) == "a [thumbs up medium skin tone]!"


def test_fonts_of_the_system_are_used_where_they_have_more(monkeypatch):
  folder = pathlib.Path(matplotlib.get_data_path(), "fonts", "ttf")
  everything = str(folder / "LastResortHE-Regular.ttf")
  damaged = str(folder / "no-such-font.ttf")
  monkeypatch.setattr(lettering, "_system_fonts", lambda: (damaged, everything))
  text = "cat 猫!"
  assert lettering.drawable(text, STYLE) == text
  letters, cat, rest = lettering._pieces(text, STYLE)
  assert (letters[0], cat[0], rest[0]) == ("cat ", "猫", "!")
  assert pathlib.Path(cat[1].path).name == "LastResortHE-Regular.ttf"
  assert letters[1].path == rest[1].path
  assert lettering.width(text, STYLE) == pytest.approx(
    sum(font.getlength(part) for part, font in (letters, cat, rest))
  )


def test_fonts_without_outlines_are_passed_over(monkeypatch):
  monkeypatch.undo()
  found = [
    "/x/NotoColorEmoji.ttf",
    "/x/Zed-Bold.ttf",
    "/x/Zed-Regular.ttf",
    "/LastResort.otf",
  ]
  monkeypatch.setattr(lettering.font_manager, "findSystemFonts", lambda: found)
  lettering._system_fonts.cache_clear()
  assert lettering._system_fonts() == ("/x/Zed-Regular.ttf", "/x/Zed-Bold.ttf")
  lettering._system_fonts.cache_clear()


@pytest.mark.parametrize("text", ["word " * 200, "x" * 900, "🎉" * 300, "猫 " * 300])
def test_lines_are_as_wide_as_they_may_be_and_say_what_was_cut(text):
  lines = lettering.wrapped(text, STYLE, 500, 3)
  assert len(lines) == 3
  assert all(350 < lettering.width(line, STYLE) <= 500 for line in lines)
  assert lines[-1].endswith("…")
  assert lettering.wrapped("a b", STYLE, 500, 3) == ["a b"]


@pytest.mark.parametrize("shorten", [lettering.start, lettering.middle, lettering.end])
def test_names_are_shortened_to_fit(shorten):
  name = "a/folder/of/many/names/and/猫/" + "picture" * 9 + ".png"
  short = lettering.fitting(name, Style(16), 240, shorten)
  assert 200 < lettering.width(short, Style(16)) <= 240
  assert "…" in short


def test_a_panel_shows_emoji_of_query_and_names(tmp_path):
  Image.new("RGB", (9, 9), "grey").save(tmp_path / "grey.png")
  hits = lambda name: [panel.Hit(1, 0.5, name, tmp_path / "grey.png")]
  plain = np.asarray(panel.draw("a cat", hits("cat.png"), among=1))
  assert not (np.ptp(plain.astype(int), -1) > 100).any()
  for query, name in (("a 😺", "cat.png"), ("a cat", "😺.png")):
    pixels = np.asarray(panel.draw(query, hits(name), among=1))
    assert (np.ptp(pixels.astype(int), -1) > 100).any()
