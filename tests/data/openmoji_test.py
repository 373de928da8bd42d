import hashlib

import numpy as np
import pytest
from PIL import features

from rankclip_jax.data import openmoji

_SIZE = 36


@pytest.fixture(scope="module")
def captions():
  return openmoji.emoji_captions()


@pytest.fixture(scope="module")
def pictures(captions):
  return openmoji.draw(list(captions), _SIZE)


@pytest.fixture(scope="module")
def held_out():
  return openmoji.OpenMoji("test", render_size=_SIZE)


def test_has_3737_emoji_sorted_by_key(captions):
  assert len(captions) == 3737
  assert list(captions) == sorted(captions)


@pytest.mark.parametrize(
  "key, expected",
  [
    ("1F44D", ("thumbs up", "thumbsup", "+1")),
    ("1F44D-1F3FB", ("thumbs up light skin tone",)),
    ("1F468-200D-1F9B0", ("man red hair",)),
    # The alias ":japan:" is left out, being the same as the name once lower-cased.
    ("1F1EF-1F1F5", ("Japan", "flag for Japan", "jp")),
  ],
)
def test_captions_are_plain_words_with_the_name_first(captions, key, expected):
  assert captions[key][0] == expected[0]
  assert set(expected) <= set(captions[key])


def test_captions_are_neither_empty_nor_repeated(captions):
  for several in captions.values():
    assert several
    assert len({c.lower() for c in several}) == len(several)
    for caption in several:
      assert caption == " ".join(caption.split()) != ""
      assert not set("_:") & set(caption)


def test_pictures_are_centred_and_fill_the_frame(pictures):
  ink = (pictures < 255).any(-1)
  for axis in (1, 2):
    lines = ink.any(axis)
    first, last = lines.argmax(1), _SIZE - 1 - lines[:, ::-1].argmax(1)
    assert lines.any(1).all()
    assert np.abs(first + last - (_SIZE - 1)).max() <= 1
    assert np.median(last - first + 1) > 0.65 * _SIZE


def test_almost_all_pictures_differ(pictures):
  """A font that drew boxes, or only the first part of a sequence, would repeat."""
  assert len({picture.tobytes() for picture in pictures}) > 3550


def test_sizes_are_those_of_the_design_grid():
  # Black square button: a square from 15 to 57 of 72 with a border of 2, says its SVG.
  (square,) = openmoji.draw(["1F532"], 144)
  rows = (square < 255).any((1, 2)).nonzero()[0]
  assert abs(len(rows) - 2 * (57 - 15)) <= 1


def test_flag_of_france_is_blue_white_red():
  (flag,) = openmoji.draw(["1F1EB-1F1F7"], 72)
  left, middle, right = flag[36, [18, 36, 54]].astype(int)
  assert left[2] - left[0] > 80
  assert middle.min() > 240
  assert right[0] - right[2] > 80


@pytest.mark.parametrize(
  "key", ["F1234", "1F600-1F600", "1F469-1F468"], ids=["missing", "two", "no ligature"]
)
def test_what_the_font_cannot_draw_is_an_error(key):
  with pytest.raises(ValueError, match=key):
    openmoji.draw([key], 32)


def test_without_raqm_there_is_an_error_instead_of_wrong_pictures(monkeypatch):
  monkeypatch.setattr(features, "check", lambda feature: False)
  with pytest.raises(RuntimeError, match="Raqm"):
    openmoji.draw(["1F600"], 32)


def test_held_out_emoji_have_the_smallest_hashes(captions, held_out):
  by_hash = sorted(captions, key=lambda k: hashlib.sha256(k.encode()).hexdigest())
  assert [example.key for example in held_out] == sorted(by_hash[:500])
  # Spelled out, for a change of hash or key would change everybody's results.
  assert by_hash[:3] == ["1F933-1F3FD", "1F469-200D-1F9BD-200D-27A1-FE0F", "2650"]


def test_splits_share_nothing_and_miss_nothing(captions, held_out):
  train = openmoji.OpenMoji("train", holdout=3700, render_size=8)
  rest = openmoji.OpenMoji("test", holdout=3700, render_size=8)
  assert len(held_out) == 500
  assert len(train) == 37
  assert sorted(e.key for split in (train, rest) for e in split) == list(captions)


def test_examples_are_what_a_source_holds(captions, held_out):
  example = held_out[7]
  assert example.image.shape == (_SIZE, _SIZE, 3)
  assert example.image.dtype == np.uint8
  assert not example.image.flags.writeable
  assert example.captions == captions[example.key]
  np.testing.assert_array_equal(example.image, openmoji.draw([example.key], _SIZE)[0])


@pytest.mark.parametrize("holdout", [0, 3737])
def test_neither_split_may_be_empty(holdout):
  with pytest.raises(ValueError, match=f"1 to 3736, got {holdout}"):
    openmoji.OpenMoji("train", holdout=holdout)


def test_unknown_split_is_an_error():
  with pytest.raises(ValueError, match="validation"):
    openmoji.OpenMoji("validation")  # pyright: ignore[reportArgumentType]
