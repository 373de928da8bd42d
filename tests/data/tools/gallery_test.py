import numpy as np
import pytest

from rankclip_jax.data.tools import gallery
from rankclip_jax.data.tools.gallery import Pair

RED, BLUE = (200, 0, 0), (0, 0, 200)


def picture(colour, height=40, width=40):
  return np.full((height, width, 3), colour, np.uint8)


def where(panel, colour):
  """Rows and columns [2, found] of a colour."""
  pixels = np.asarray(panel).astype(int)
  return np.array(np.nonzero((abs(pixels - colour) < 4).all(axis=2)))


def test_pictures_are_whole_and_keep_their_shape():
  panel = gallery.draw("data", "note", [Pair(picture(RED, 30, 60), ("a",), "n")])
  rows, columns = where(panel, RED)
  assert np.ptp(columns) + 1 == 320
  assert np.ptp(rows) + 1 == 160


@pytest.mark.parametrize("words", [1, 40, 4000])
def test_a_long_caption_moves_what_is_beneath_it(words):
  long = Pair(picture(RED), ("river " * words,), "n")
  pairs = [long] * 4 + [Pair(picture(BLUE), ("a",), "n")] * 2
  panel = gallery.draw("data", "note", pairs)
  red, blue = where(panel, RED), where(panel, BLUE)
  pixels = np.asarray(panel)
  between = pixels[red[0].max() + 1 : blue[0].min()]
  inked = np.flatnonzero((between < 240).any(axis=(1, 2)))
  assert len(between) - 1 - inked.max() >= 20
  assert (pixels[-20:] == 255).all()  # nothing reaches the end
  assert (pixels[:, -20:] == 255).all()


def test_more_captions_and_missing_letters_are_mentioned(monkeypatch):
  plain = gallery.draw("data", "note", [Pair(picture(RED), ("a",), "n")])
  more = gallery.draw("data", "note", [Pair(picture(RED), ("a", "b", "c"), "n")])
  boxes = gallery.draw("data", "note", [Pair(picture(RED), ("\U0001fbf9\uab7f",), "n")])
  assert more.height > plain.height
  assert boxes.height > plain.height


def test_the_same_pairs_make_the_same_picture():
  pairs = [Pair(picture(RED), ("a 😀 猫",), "n")] * 5
  first, second = (gallery.draw("data", "x", pairs).tobytes() for _ in range(2))
  assert first == second
