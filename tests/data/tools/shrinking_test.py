import io

import numpy as np
import pytest
from PIL import Image

from rankclip_jax.data import transforms
from rankclip_jax.data.source import BadExample, Example
from rankclip_jax.data.tools.shrinking import shrunk
from tests.data.pictures import encoded, photograph


def example(data):
  return Example("key-7", data, ("a cat",), shard="00000.tar")


def pixels(data):
  picture = Image.open(io.BytesIO(data))
  assert picture.format == "JPEG"
  return np.asarray(picture, np.int32)


@pytest.mark.parametrize("height, width", [(64, 48), (48, 300), (64, 64), (1, 1)])
def test_a_small_jpeg_keeps_its_bytes(height, width):
  data = encoded(photograph(height, width))
  assert shrunk(example(data), 64, 90) == (data, height, width)


@pytest.mark.parametrize(
  "height, width, wanted",
  [
    (300, 400, (64, 85)),
    (400, 300, (85, 64)),
    (65, 65, (64, 64)),
    (40, 3000, (40, 3000)),
    (2000, 65, (1969, 64)),
  ],
)
def test_the_short_side_is_as_asked_and_never_enlarged(height, width, wanted):
  data, *size = shrunk(example(encoded(photograph(height, width), "PNG")), 64, 90)
  assert tuple(size) == pixels(data).shape[:2] == wanted


# Decoded whole, at a half and at a quarter.
@pytest.mark.parametrize("height, width", [(200, 300), (450, 600), (900, 1200)])
@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_pixels_are_what_pillow_makes_of_them(height, width, form):
  data = encoded(photograph(height, width), form)
  picture = Image.fromarray(transforms.to_rgb(Image.open(io.BytesIO(data))))
  found, new_height, new_width = shrunk(example(data), 96, 98)
  wanted = picture.resize((new_width, new_height), Image.Resampling.BICUBIC)
  difference = np.abs(pixels(found) - np.asarray(wanted, np.int32))
  assert difference.mean() < 1.5


def test_quality_is_obeyed():
  data = encoded(photograph())
  assert len(shrunk(example(data), 128, 95)[0]) > 2 * len(
    shrunk(example(data), 128, 60)[0]
  )


ODD = {
  "grey": encoded(photograph().convert("L")),
  "cmyk": encoded(photograph().convert("CMYK")),
  "palette": encoded(photograph().quantize(32), "GIF"),
  "transparent": encoded(photograph().convert("RGBA"), "PNG"),
  "16-bit": encoded(np.arange(300 * 400, dtype=np.uint16).reshape(300, 400) // 2, "PNG"),
  "pixels": np.asarray(photograph()),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_pictures_become_plain_jpegs(name):
  data = ODD[name]
  whole = data
  if isinstance(data, bytes):
    whole = transforms.to_rgb(Image.open(io.BytesIO(data)))
  found = pixels(shrunk(example(data), 64, 95)[0])
  assert found.shape == (64, 85, 3)
  wanted = Image.fromarray(whole).resize((85, 64), Image.Resampling.BICUBIC)
  assert np.abs(found - np.asarray(wanted, np.int32)).mean() < 4


@pytest.mark.parametrize(
  "data, reason",
  [
    (encoded(photograph(40, 40))[:-100], "undecodable picture"),
    (encoded(photograph())[:-100], "undecodable picture"),
    (b"", "empty picture"),
    (b"no picture", "undecodable picture"),
    (encoded(photograph(1, 70_000), "PNG"), "too large picture"),
  ],
)
def test_what_cannot_be_used_is_bad(data, reason):
  with pytest.raises(BadExample, match="key-7") as bad:
    shrunk(example(data), 64, 90)
  assert bad.value.reason == reason
  assert bad.value.shard == "00000.tar"
