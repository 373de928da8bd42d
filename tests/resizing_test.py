"""Ways to resize that weights of others come with: as open_clip does it, or refused."""

import itertools

import jax
import numpy as np
import peers
import pytest
from PIL import Image

import rankclip_jax
from rankclip_jax import inference, interop
from rankclip_jax.data import transforms
from rankclip_jax.interop import Card
from rankclip_jax.models import sizes, two_tower

SIZE = sizes.SIZES["nano"]
HOWS = list(itertools.product(*transforms.RESIZING.values()))


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
  pixels = np.random.default_rng(0).integers(0, 256, (height, width, 4), np.uint8)
  return Image.fromarray(pixels, "RGBA").convert(mode)


@pytest.fixture(scope="module")
def params():
  init = lambda key: two_tower.init(key, SIZE, initial_scale=9.0)
  return jax.tree.map(np.asarray, jax.jit(init)(jax.random.key(0)))


@pytest.mark.parametrize("mode", ["RGB", "L", "LA", "P", "CMYK"])
@pytest.mark.parametrize("interpolation, resize_mode", HOWS)
@pytest.mark.parametrize("size", [(100, 60), (60, 100), (9, 14), (1, 50), (2000, 7)])
def test_every_way_is_open_clips(interpolation, resize_mode, size, mode):
  theirs = peers.open_clip.image_transform(
    24, is_train=False, mean=(0, 0, 0), std=(1, 1, 1),
    interpolation=interpolation, resize_mode=resize_mode,
  )  # fmt: skip
  expected = theirs(picture(*size, mode)).numpy().transpose(1, 2, 0) * 255
  ours = transforms.resize_center_crop(
    picture(*size, mode), 24, interpolation, resize_mode
  )
  np.testing.assert_allclose(ours, expected, atol=1e-4)


@pytest.mark.parametrize("interpolation, resize_mode", HOWS)
def test_a_model_in_use_resizes_as_its_weights_were_trained(
  tmp_path, params, interpolation, resize_mode
):
  how = {"interpolation": interpolation, "resize_mode": resize_mode}
  card = Card(name="nano", licence="other", data="none", objective="none")
  interop.write_open_clip(tmp_path / "x", params, SIZE, card, how)
  model = rankclip_jax.load(tmp_path / "x")
  expected = transforms.resize_center_crop(picture(50, 20), SIZE.image_size, **how)
  np.testing.assert_array_equal(model.preprocess(picture(50, 20)), expected)
  picture(50, 20).save(tmp_path / "p.png")
  np.testing.assert_allclose(
    model.encode_image(tmp_path / "p.png"), model.encode_image(expected[None]), atol=1e-5
  )


@pytest.mark.parametrize(
  "how", [{"interpolation": "lanczos"}, {"resize_mode": "longest"}]
)
def test_a_way_that_is_not_built_is_refused_by_key(params, how):
  ((key, value),) = how.items()
  weights = interop.Weights(SIZE, params, how, "some file")
  with pytest.raises(ValueError, match=f"some file: {key} .* '{value}', which is not"):
    inference.Model(weights)
