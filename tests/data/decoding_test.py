import io
import pickle

import numpy as np
import pytest
from PIL import Image

from rankclip_jax.data import decoding, transforms
from rankclip_jax.data.source import BadExample, Example
from tests.data.pictures import encoded, photograph


def example(data):
  return Example("key-7", data, ("a cat",), shard="00000.tar")


def pillow(data):
  return transforms.to_rgb(Image.open(io.BytesIO(data)))


ODD = {
  "grey": photograph().convert("L"),
  "cmyk": photograph().convert("CMYK"),
  "one pixel wide": photograph(40, 1),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_jpegs_are_what_pillow_says(name):
  data = encoded(ODD[name])
  whole = decoding.at_least(example(data), 10_000, 10_000)
  assert whole.shape == pillow(data).shape
  # libjpeg-turbo and Pillow's libjpeg may round apart, by what nobody sees.
  assert np.abs(whole.astype(int) - pillow(data)).max() <= 3
  np.testing.assert_array_equal(decoding.exact(example(data)), pillow(data))


@pytest.mark.parametrize(
  "data, first",
  [
    (encoded(photograph(), "PNG"), None),
    (encoded(photograph().convert("RGBA"), "PNG"), None),
    (encoded(photograph().convert("P"), "PNG"), None),
    (encoded(np.full((4, 5), 515, np.uint16), "PNG"), 2),
    (encoded(photograph(), "WEBP", lossless=True), None),
    (
      encoded(
        Image.new("RGB", (6, 6), "red"),
        "GIF",
        save_all=True,
        append_images=[Image.new("RGB", (6, 6), "blue")],
      ),
      [255, 0, 0],
    ),
  ],
  ids=["png", "alpha", "palette", "16 bit", "webp", "animated gif"],
)
def test_other_formats_are_pillows(data, first):
  image = decoding.at_least(example(data), 2, 2)
  np.testing.assert_array_equal(image, decoding.exact(example(data)))
  assert image.dtype == np.uint8
  assert image.shape == (*decoding.size_of(example(data)), 3)
  if first is not None:
    np.testing.assert_array_equal(image[0, 0], np.broadcast_to(first, 3))


@pytest.mark.parametrize(
  "wanted, decoded",
  [((300, 400), (300, 400)), ((151, 1), (300, 400)), ((150, 200), (150, 200)),
   ((75, 100), (75, 100)), ((30, 50), (38, 50)), ((1, 1), (38, 50))],
)  # fmt: skip
def test_a_jpeg_is_decoded_no_larger_than_needed(wanted, decoded):
  data = encoded(photograph())
  image = decoding.at_least(example(data), *wanted)
  assert image.shape == (*decoded, 3)
  scale = decoding.reduction(decoded[1], 400)
  assert scale in (1, 1 / 2, 1 / 4, 1 / 8)
  box = (0, 0, decoded[1] / scale, decoded[0] / scale)  # beyond the last row, perhaps
  larger = np.pad(pillow(data), [(0, 8), (0, 8), (0, 0)], "edge")
  small = Image.fromarray(larger).resize(decoded[::-1], Image.Resampling.BOX, box)
  assert np.abs(image.astype(int) - np.asarray(small)).mean() < 6


@pytest.mark.parametrize("whole", [1, 7, 8, 13, 300, 401, 700, 1023])
@pytest.mark.parametrize("eighths", [1, 2, 3, 4, 8])
def test_the_reduction_is_libjpegs(whole, eighths):
  decoded = -(-whole * eighths // 8)
  found = decoding.reduction(decoded, whole)
  assert found == eighths / 8 or whole < 16  # of few pixels, several would do
  assert abs(found * whole - decoded) < 1


JPEG, PNG = encoded(photograph()), encoded(photograph(), "PNG")


@pytest.mark.parametrize(
  "data, reason",
  [
    (b"", "empty picture"),
    (b"\x00" * 100, "undecodable picture"),
    (b"<html>404</html>", "undecodable picture"),
    (JPEG[: len(JPEG) // 2], "undecodable picture"),
    (JPEG[:3], "undecodable picture"),
    (JPEG[:200], "undecodable picture"),
    (PNG[: len(PNG) // 2], "undecodable picture"),
  ],
)
def test_damage_has_a_reason_and_a_place(data, reason):
  for decode in (decoding.exact, lambda e: decoding.at_least(e, 64, 64)):
    with pytest.raises(BadExample, match="'key-7' of 00000.tar") as caught:
      decode(example(data))
    assert caught.value.reason == reason
    assert (caught.value.key, caught.value.shard) == ("key-7", "00000.tar")


def test_bombs_are_refused_by_their_header(monkeypatch):
  monkeypatch.setattr(decoding, "MAX_PIXELS", 300 * 400 - 1)
  for data in (JPEG, PNG):
    for look in (decoding.exact, decoding.size_of):
      with pytest.raises(BadExample, match="400 x 300 pixels") as caught:
        look(example(data))
      assert caught.value.reason == "too large picture"


def test_bombs_that_pillow_refuses_itself_are_too_large_too(monkeypatch):
  monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
  for look in (decoding.exact, decoding.size_of):
    with pytest.raises(BadExample) as caught:
      look(example(PNG))
    assert caught.value.reason == "too large picture"


def test_what_libjpeg_only_complains_of_is_used():
  """Extraneous bytes before a marker: simplejpeg refuses them, Pillow does not."""
  marker = JPEG.index(b"\xff\xc0")
  data = JPEG[:marker] + b"\x00\x00" + JPEG[marker:]
  np.testing.assert_array_equal(decoding.at_least(example(data), 1, 1), pillow(data))


def test_bad_examples_travel_between_processes():
  with pytest.raises(BadExample) as caught:
    decoding.exact(example(b""))
  again = pickle.loads(pickle.dumps(caught.value))
  assert (str(again), again.reason) == (str(caught.value), "empty picture")
  assert (again.key, again.shard) == ("key-7", "00000.tar")


def test_postscript_is_not_run():
  eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
  for read in (decoding.exact, decoding.size_of):
    with pytest.raises(BadExample, match="cannot identify image file"):
      read(example(eps))
