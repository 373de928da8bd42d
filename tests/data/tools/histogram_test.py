import io

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from rankclip_jax.data.tools import histogram

WHOLE, CUT = "#0072b2", "#d55e00"


def columns(png, colour):
  pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), np.int32)
  wanted = np.array(to_rgb(colour)) * 255
  return np.flatnonzero((np.abs(pixels - wanted).max(axis=2) < 3).any(axis=0))


def test_captions_that_are_cut_have_their_own_colour():
  lengths = np.array([5] * 10 + [77] * 9 + [78] * 8 + [79] * 8)
  png = histogram.draw(lengths, 77)
  whole, cut = columns(png, WHOLE), columns(png, CUT)
  assert whole.max() < cut.min()
  assert not len(columns(histogram.draw(lengths, 79), CUT))
  assert not len(columns(histogram.draw(lengths, 4), WHOLE))


@pytest.mark.parametrize("longest", [90, 500, 4000])
def test_wide_bars_are_whole_or_cut_too(longest):
  rest = [longest] * 9
  assert not len(columns(histogram.draw(np.array([78, 79, *rest]), 77), WHOLE))
  png = histogram.draw(np.array([77, 77, *rest]), 77)
  whole, cut = columns(png, WHOLE), columns(png, CUT)
  assert whole.max() < cut.min()


def test_a_single_caption_and_one_of_thousands_of_tokens_are_drawn():
  for lengths in ([3], [4096], [3] * 1000 + [4096]):
    png = histogram.draw(np.array(lengths), 77)
    assert len(columns(png, WHOLE)) + len(columns(png, CUT))
