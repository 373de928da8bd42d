import json

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image

from rankclip_jax.data import transforms


def _picture(height, width, seed=0):
  return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def _bicubic_matrix(size, new_size):
  """Antialiased bicubic (a = -1/2) as a matrix [new_size, size], by its definition."""
  scale = size / new_size
  stretch = max(scale, 1.0)
  centre = (np.arange(new_size) + 0.5) * scale
  x = np.abs((np.arange(size) + 0.5 - centre[:, None]) / stretch)
  near = 1.5 * x**3 - 2.5 * x**2 + 1
  far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
  weights = np.where(x < 1, near, np.where(x < 2, far, 0.0))
  return weights / weights.sum(1, keepdims=True)


def _resize_in_float64(image, height, width):
  rows = _bicubic_matrix(image.shape[0], height)
  columns = _bicubic_matrix(image.shape[1], width)
  # Pillow goes row by row first, and rounds to bytes in between.
  between = np.einsum("xw,hwc->hxc", columns, image).round().clip(0, 255)
  return np.einsum("yh,hxc->yxc", rows, between).round().clip(0, 255)


@pytest.mark.parametrize(
  "height, width, size, resized",
  [
    (72, 72, 64, (64, 64)),
    (50, 75, 24, (24, 36)),
    (75, 50, 24, (36, 24)),
    (37, 90, 16, (16, 38)),  # 38.9 is rounded down
    (90, 37, 16, (38, 16)),
    (5, 9, 20, (20, 36)),  # upwards
    (1, 7, 4, (4, 28)),
    (9, 1, 3, (27, 3)),
  ],
)
def test_resize_center_crop_is_antialiased_bicubic(height, width, size, resized):
  image = _picture(height, width)
  whole = _resize_in_float64(image, *resized)
  top, left = (round((extent - size) / 2) for extent in resized)
  expected = whole[top : top + size, left : left + size]
  out = transforms.resize_center_crop(image, size)
  assert out.dtype == np.uint8
  assert out.shape == (size, size, 3)
  assert np.abs(out - expected).max() <= 1


@pytest.mark.parametrize("extra, offset", [(1, 0), (2, 1), (3, 2), (5, 2), (7, 4)])
def test_crop_offsets_are_rounded_half_to_even(extra, offset):
  """Torchvision's CenterCrop: int(round(extra / 2.0)). No scaling happens here."""
  image = _picture(8, 8 + extra)
  out = transforms.resize_center_crop(image, 8)
  np.testing.assert_array_equal(out, image[:, offset : offset + 8])
  out = transforms.resize_center_crop(image.swapaxes(0, 1), 8)
  np.testing.assert_array_equal(out, image.swapaxes(0, 1)[offset : offset + 8])


_EXTENT = st.integers(1, 60)


@hypothesis.given(_EXTENT, _EXTENT, st.integers(1, 33), st.integers(0, 99))
@hypothesis.settings(deadline=None, max_examples=100)
def test_any_extent_gives_a_square(height, width, size, seed):
  image = _picture(height, width)
  rng = np.random.default_rng(seed)
  crop = transforms.random_resized_crop(image, size, rng, (0.08, 1.0))
  for out in (transforms.resize_center_crop(image, size), crop):
    assert out.shape == (size, size, 3)
    assert out.dtype == np.uint8


def _long_pictures():
  """Of every mode, in both directions, with extents that divide each other and do not."""
  rng = np.random.default_rng(0)
  for mode in ("RGB", "L", "LA", "RGBA", "CMYK", "YCbCr", "HSV", "LAB"):
    for short, long in ((1, 60), (1, 333), (3, 125), (5, 191), (13, 600)):
      bands = [Image.fromarray(rng.integers(0, 256, (long, short), np.uint8))
               for _ in Image.new(mode, (1, 1)).getbands()]  # fmt: skip
      picture = Image.merge(mode, bands)
      yield from (picture, picture.transpose(Image.Transpose.TRANSPOSE))


@pytest.mark.parametrize("size", [14, 32, 51])
def test_the_middle_of_a_long_picture_is_that_of_the_whole(monkeypatch, size):
  """Bit by bit what Pillow makes of the middle when it enlarges the whole strip."""
  for picture in _long_pictures():
    with monkeypatch.context() as patch:
      patch.setattr(transforms, "_WHOLE", 10**9)
      whole = transforms.resize_center_crop(picture, size)
    out = transforms.resize_center_crop(picture, size)
    np.testing.assert_array_equal(out, whole, err_msg=f"{picture.mode} {picture.size}")
    assert out.std() > 1


@pytest.mark.parametrize("mode", ["1", "P"])
def test_the_middle_of_a_long_palette_picture_is_its_nearest_pixels(mode):
  strip = np.zeros((1, 4001), np.uint8)
  strip[:, 2000:] = 1
  picture = Image.fromarray(strip * 255).convert(mode)
  out = transforms.resize_center_crop(picture, 16)
  # The middle of 4001 is within the pixel 2000, the first that is white.
  assert out[..., 0].tolist() == [[255] * 16] * 16
  tall = picture.transpose(Image.Transpose.TRANSPOSE)
  np.testing.assert_array_equal(transforms.resize_center_crop(tall, 16), out)


@pytest.mark.parametrize("width, height", [(1, 65535), (65535, 1), (2, 400_000)])
@pytest.mark.parametrize("mode", ["RGB", "P"])
def test_long_thin_pictures_need_no_memory(monkeypatch, width, height, mode):
  """Enlarged whole, the first of them would take 10 GiB."""
  resize = Image.Image.resize

  def bounded(picture, size, *arguments, **options):
    assert size[0] * size[1] < 224 * 1000
    return resize(picture, size, *arguments, **options)

  monkeypatch.setattr(Image.Image, "resize", bounded)
  out = transforms.resize_center_crop(Image.new(mode, (width, height), 7), 224)
  assert out.shape == (224, 224, 3)
  assert len(np.unique(out.reshape(-1, 3), axis=0)) == 1


def test_random_resized_crop_is_decided_by_the_generator():
  image = _picture(40, 50)
  crops = [
    transforms.random_resized_crop(image, 16, np.random.default_rng(seed), (0.3, 0.9))
    for seed in (1, 1, 2)
  ]
  np.testing.assert_array_equal(crops[0], crops[1])
  assert (crops[0] != crops[2]).any()


def _box_of(height, width, seed, scale):
  """Returns the extents of a crop, read off a picture that holds coordinates."""
  y, x = np.mgrid[:height, :width]
  image = np.stack([y, x, 0 * x], -1).astype(np.uint8)
  rng = np.random.default_rng(seed)
  crop = transforms.random_resized_crop(image, 128, rng, scale)[..., :2].astype(int)
  return np.ptp(crop, (0, 1)) + 1


def test_random_crops_have_the_areas_and_ratios_asked_for():
  boxes = np.array([_box_of(100, 120, seed, (0.25, 0.5)) for seed in range(200)])
  fraction = boxes.prod(1) / (100 * 120)
  ratio = boxes[:, 1] / boxes[:, 0]
  slack = 0.05  # of a box rounded to pixels, seen through a bicubic
  assert 0.25 - slack < fraction.min() < 0.25 + slack
  assert 0.5 - slack < fraction.max() < 0.5 + slack
  assert 3 / 4 - slack < ratio.min() < 3 / 4 + slack
  assert 4 / 3 - 2 * slack < ratio.max() < 4 / 3 + 2 * slack
  assert 0.375 - slack < fraction.mean() < 0.375 + slack


def test_the_whole_area_is_the_plain_resize():
  """A square picture holds no box of its own area but itself: the fallback is central."""
  image = _picture(30, 30)
  out = transforms.random_resized_crop(image, 20, np.random.default_rng(3), (1.0, 1.0))
  assert np.abs(out - _resize_in_float64(image, 20, 20)).max() <= 1


@pytest.mark.parametrize("axis", [0, 1])
def test_where_no_crop_fits_the_centre_is_taken(axis):
  """The whole area of a long strip has no allowed ratio; 5 of 60 pixels have 4/5."""
  strip = np.repeat(np.arange(60, dtype=np.uint8)[:, None, None], 4, 1).repeat(3, 2)
  strip = strip if axis == 0 else strip.swapaxes(0, 1)
  crop = transforms.random_resized_crop(strip, 5, np.random.default_rng(0), (1.0, 1.0))
  np.testing.assert_array_equal(crop.max(1 - axis)[:, 0], [27, 28, 29, 30, 31])


@pytest.mark.parametrize("scale", [(0.0, 1.0), (0.9, 0.5), (0.5, 1.5)])
def test_scale_must_be_a_range_of_fractions(scale):
  with pytest.raises(ValueError, match="area fractions"):
    transforms.random_resized_crop(_picture(8, 8), 4, np.random.default_rng(), scale)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA"])
def test_to_rgb_of_common_modes_is_pillows_conversion(mode):
  grey = Image.fromarray(_picture(5, 6)[..., 0])
  image = grey.convert("LA" if mode == "PA" else mode).convert(mode)
  expected = np.asarray(image.convert("RGB"))
  out = transforms.to_rgb(image)
  assert out.shape == (5, 6, 3)
  assert out.dtype == np.uint8
  np.testing.assert_array_equal(out, expected)


def test_to_rgb_drops_alpha():
  image = Image.new("RGBA", (1, 1), (10, 20, 30, 0))
  assert transforms.to_rgb(image).tolist() == [[[10, 20, 30]]]


def test_to_rgb_of_cmyk_and_ycbcr():
  assert transforms.to_rgb(Image.new("CMYK", (1, 1), (0, 255, 255, 0))).tolist() == [
    [[255, 0, 0]]
  ]
  assert transforms.to_rgb(Image.new("YCbCr", (1, 1), (255, 128, 128))).tolist() == [
    [[255, 255, 255]]
  ]


@pytest.mark.parametrize("transparency", [0, b"\x00\x80"])
def test_to_rgb_of_a_palette_with_transparency_warns_not(transparency, tmp_path):
  image = Image.new("P", (2, 1))
  image.putpalette([255, 0, 0, 0, 0, 255])
  image.putpixel((1, 0), 1)
  image.save(tmp_path / "p.png", transparency=transparency)
  with Image.open(tmp_path / "p.png") as stored:
    assert stored.mode == "P"
    assert transforms.to_rgb(stored).tolist() == [[[255, 0, 0], [0, 0, 255]]]


def test_to_rgb_keeps_the_high_byte_of_16_bits(tmp_path):
  grey = np.array([[0, 255, 256, 0x80FF, 0xFFFF]], np.uint16)
  Image.fromarray(grey).save(tmp_path / "g.png")
  with Image.open(tmp_path / "g.png") as stored:
    assert stored.mode.startswith("I")
    out = transforms.to_rgb(stored)
  assert out[0].tolist() == [[0] * 3, [0] * 3, [1] * 3, [128] * 3, [255] * 3]


@pytest.mark.parametrize(
  "pixels, match",
  [
    (np.array([[70000]], np.int32), "70000"),
    (np.array([[-1]], np.int32), "-1"),
    (np.array([[0.5]], np.float32), '"F"'),
  ],
)
def test_to_rgb_refuses_pixels_without_a_range(pixels, match):
  with pytest.raises(ValueError, match=match):
    transforms.to_rgb(Image.fromarray(pixels))


def _noise(mode):
  """A picture with detail, and transparency where the mode has it."""
  rgba = np.random.default_rng(0).integers(0, 256, (25, 37, 4), np.uint8)
  image = Image.fromarray(np.kron(rgba, np.ones((4, 4, 1), np.uint8)), "RGBA")
  return image if mode == "RGBA" else image.convert("RGB").convert(mode)


def _odd_pictures():
  thin = _noise("RGB")
  exif = Image.Exif()
  exif[0x0112] = 6  # rotated by a quarter
  yield "jpeg", _noise("RGB"), "JPEG", {"quality": 80}
  yield "exif-rotated", _noise("RGB"), "JPEG", {"exif": exif}
  yield "cmyk", _noise("CMYK"), "JPEG", {}
  yield "grey-jpeg", _noise("L"), "JPEG", {}
  yield "alpha", _noise("RGBA"), "PNG", {}
  yield "grey", _noise("L"), "PNG", {}
  yield "grey-alpha", _noise("RGBA").convert("LA"), "PNG", {}
  yield "bits", _noise("1"), "PNG", {}
  yield "palette", _noise("RGB").quantize(64), "PNG", {}
  yield "palette-transparency", _noise("RGB").quantize(64), "PNG", {"transparency": 3}
  yield "gif", _noise("RGB").quantize(32), "GIF", {}
  yield "webp-alpha", _noise("RGBA"), "WEBP", {"lossless": True}
  yield "one-pixel-wide", thin.resize((1, 300)), "PNG", {}
  yield "one-pixel-high", thin.resize((300, 1)), "PNG", {}
  yield "one-pixel", thin.resize((1, 1)), "PNG", {}
  yield "long", thin.resize((3000, 7)), "PNG", {}


@pytest.mark.parametrize("size", [32, 224])
@pytest.mark.parametrize(
  "picture, kind, options", [pytest.param(*p, id=name) for name, *p in _odd_pictures()]
)
@pytest.mark.filterwarnings("ignore:Palette images with Transparency")  # open_clip's
def test_preprocessing_equals_open_clips(tmp_path, picture, kind, options, size):
  import peers

  path = tmp_path / "picture"
  picture.save(path, kind, **options)
  theirs = peers.open_clip.image_transform(size, is_train=False)
  with Image.open(path) as opened:
    expected = theirs(opened).numpy().transpose(1, 2, 0)
  with Image.open(path) as opened:
    ours = transforms.resize_center_crop(opened, size)
  mean, std = (np.float32(x) for x in (peers.open_clip.OPENAI_DATASET_MEAN,
                                       peers.open_clip.OPENAI_DATASET_STD))  # fmt: skip
  normalised = (ours.astype(np.float32) / 255 - mean) / std
  np.testing.assert_allclose(normalised, expected, atol=1e-6)


def test_facts_survive_json():
  facts = transforms.Preprocess(64, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), (0.8, 1.0)).facts()
  assert json.loads(json.dumps(facts)) == facts
  assert facts == {
    "image_size": 64,
    "mean": [0.1, 0.2, 0.3],
    "std": [0.4, 0.5, 0.6],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
    "augment_scale": [0.8, 1.0],
  }
  plain = transforms.Preprocess(64, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
  assert plain.facts()["augment_scale"] is None
