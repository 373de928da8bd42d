import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from rankclip_jax.data.tools import lettering
from rankclip_jax.data.tools.lettering import BOX, Lettering

TEXTS = {
  "words": "a photo of a cat on the mat, looking at us with its green eyes",
  "one long word": "x" * 90,
  "Arabic": "صورة قطة جميلة تجلس على النافذة في بيت قديم جدا بالقرب من النهر",
  "emoji": "party 😀 👩‍👩‍👧 👍🏽 ❤️ with 🎉🎉🎉🎉🎉🎉🎉 friends 🇩🇪🇩🇪🇩🇪🇩🇪",
  "no spaces": "猫の写真です。とても可愛いですね。窓際に座っています" * 3,
}


def drawn(text, size=20):
  """Pixels of a line, and how wide it was said to be."""
  letters = Lettering(size)
  canvas = Image.new("RGB", (900, letters.pitch), "white")
  letters.draw(ImageDraw.Draw(canvas), 0, 0, text, "#000000")
  return np.asarray(canvas), letters.width(text)


@pytest.mark.parametrize("name", TEXTS)
def test_lines_fit_and_hold_the_whole_text(name):
  letters = Lettering(19)
  lines = letters.wrapped(TEXTS[name], 320, 50)
  assert len(lines) > 1
  for line in lines:
    assert letters.width(line) <= 320
  whole = "".join(lines).replace(" ", "")
  assert whole == TEXTS[name].replace(" ", "")


@settings(deadline=None, max_examples=60)
@given(st.text(max_size=200), st.integers(1, 6))
def test_any_text_wraps_within_its_width(text, most):
  letters = Lettering(16)
  lines = letters.wrapped(text, 100, most)
  assert len(lines) <= most
  for line in lines:
    assert letters.width(line) <= 100 or len(line) == 1
  assert bool(lines) == bool(lettering.drawable(text))


def test_words_stay_whole_where_they_can():
  lines = Lettering(20).wrapped(TEXTS["words"], 200, 50)
  assert " ".join(lines) == TEXTS["words"]


def test_what_is_cut_says_how_much():
  letters = Lettering(19)
  lines = letters.wrapped("cat " * 500, 320, 4)
  assert len(lines) == 4
  shown = sum(line.count("cat") for line in lines)
  left = int(lines[-1].split("(+")[1].split()[0].replace(",", ""))
  assert left == pytest.approx(4 * (500 - shown), abs=4)
  assert letters.width(lines[-1]) <= 320


def test_a_line_is_shortened_in_its_middle():
  letters = Lettering(14)
  name = "a/very/long/folder/" * 9 + "00001.jpg"
  short = letters.shortened(name, 200)
  assert letters.width(short) <= 200
  assert short.startswith("a/very")
  assert short.endswith("01.jpg")
  assert letters.shortened("00001.jpg", 200) == "00001.jpg"


def test_emoji_have_colours_and_letters_have_none():
  picture, _ = drawn("😀 ❤️")
  assert np.ptp(picture, axis=2).max() > 100
  picture, _ = drawn("abc Ж ♥")
  assert np.ptp(picture, axis=2).max() == 0


def test_letters_come_out_in_the_width_that_was_measured():
  picture, width = drawn("Hello, wörld")
  ink = np.flatnonzero((picture < 128).any(axis=(0, 2)))
  assert width - 4 <= ink.max() <= width + 2


def test_lines_do_not_touch():
  picture, _ = drawn("Ågjpq|Ñ_Ệ صورة 😀")
  assert (picture[[0, -1]] > 200).all()


def test_what_no_font_has_becomes_a_box(monkeypatch):
  monkeypatch.setattr(lettering, "_others", lambda: ())
  letters = Lettering(20)
  assert letters.width("猫猫") == letters.width(2 * BOX)
  assert letters.missing == {"猫"}
  letters.width("a cat é 😀 \ufe0f")
  assert letters.missing == {"猫"}


def test_what_has_no_shape_is_left_out():
  text = "a\tb\r\nc\x00 \u202ed\u202c [e]\udc80"
  assert lettering.drawable(text) == r"a b c d [e]\udc80"
