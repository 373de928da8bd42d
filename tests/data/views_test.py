import numpy as np
import pytest
from PIL import Image

from rankclip_jax.data import decoding, transforms
from rankclip_jax.data.source import BadExample, Example
from rankclip_jax.data.views import View
from tests.data.pictures import encoded, photograph


def example(image):
  return Example("key", image, ("a cat",))


def rng(seed=0):
  return np.random.default_rng(seed)


def difference(a, b):
  return np.abs(a.astype(int) - b.astype(int)).mean()


@pytest.mark.parametrize(
  "height, width", [(300, 400), (400, 300), (64, 64), (900, 700), (525, 701)]
)
def test_the_fast_centre_is_nearly_the_exact_one(height, width):
  data = encoded(photograph(height, width))
  fast = View(64)(example(data), rng())
  exact = View(64, fast=False)(example(data), rng())
  assert fast.shape == exact.shape == (64, 64, 3)
  # Of one pixel more the difference would be larger.
  assert difference(fast, exact) < 0.5 * difference(np.roll(exact, 1, 0), exact)
  assert difference(fast, exact) < 0.5 * difference(np.roll(exact, 1, 1), exact)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("scale", [(0.05, 0.2), (0.5, 1.0)])
def test_the_fast_crop_is_the_exact_one_to_a_pixel(seed, scale):
  data = encoded(photograph(600, 800))
  fast = View(96, scale)(example(data), rng(seed))
  exact = View(96, scale, fast=False)(example(data), rng(seed))
  assert difference(fast, exact) < 5


@pytest.mark.parametrize("times", [2, 4, 5])
def test_stripes_finer_than_pixels_become_grey(times):
  """Sampling without averaging would make them black, white, or coarser stripes."""
  stripes = np.zeros((32 * times, 32 * times, 3), np.uint8)
  stripes[:, ::2] = 254
  view = View(32)(example(encoded(stripes, "PNG")), rng())
  assert np.abs(view.astype(int) - 127).max() <= 1


@pytest.mark.parametrize("pixels, interpolated", [(96, True), (140, False)])
def test_colours_are_interpolated_where_all_of_them_are_needed(
  pixels, interpolated, monkeypatch
):
  """They are half as fine as the picture in most JPEGs."""
  asked, decode = [], decoding.simplejpeg.decode_jpeg
  monkeypatch.setattr(
    decoding.simplejpeg,
    "decode_jpeg",
    lambda data, **options: asked.append(options) or decode(data, **options),
  )
  data = encoded(photograph(pixels, pixels), subsampling="4:2:0")
  fast = View(96)(example(data), rng())
  assert [options["fastupsample"] for options in asked] == [not interpolated]
  exact = View(96, fast=False)(example(data), rng())
  colours = lambda image: image.astype(int) - image.astype(int).mean(2, keepdims=True)
  assert np.abs(colours(fast) - colours(exact)).mean() < 2


def test_small_pictures_are_enlarged():
  data = encoded(photograph(20, 30))
  assert View(64, (0.1, 1.0))(example(data), rng()).shape == (64, 64, 3)
  flat = encoded(Image.new("RGB", (1, 50), (200, 10, 30)), "PNG")
  view = View(16, (0.5, 1.0))(example(flat), rng())
  np.testing.assert_array_equal(view, np.broadcast_to([200, 10, 30], (16, 16, 3)))


def test_every_other_picture_is_mirrored():
  data = encoded(photograph(64, 64), "PNG")
  plain = View(64)(example(data), rng())
  views = [View(64, flip=True)(example(data), rng(seed)) for seed in range(200)]
  mirrored = [np.array_equal(v, plain[:, ::-1]) for v in views]
  assert all(m or np.array_equal(v, plain) for m, v in zip(mirrored, views, strict=True))
  assert 70 < sum(mirrored) < 130


def test_pixels_stay_pillows():
  image = np.asarray(photograph(100, 120))
  np.testing.assert_array_equal(
    View(32)(example(image), rng()), transforms.resize_center_crop(image, 32)
  )
  np.testing.assert_array_equal(
    View(32, (0.2, 0.9))(example(image), rng(3)),
    transforms.random_resized_crop(image, 32, rng(3), (0.2, 0.9)),
  )


def test_damage_shows_in_every_view():
  data = encoded(photograph())
  for fast in (True, False):
    with pytest.raises(BadExample):
      View(32, (0.1, 1.0), fast=fast)(example(data[:3000]), rng())
