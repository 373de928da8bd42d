"""A loaded model in use: every kind of input, any number of them, on all devices."""

import dataclasses
import pathlib
import time

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import rankclip_jax
from rankclip_jax import inference, interop
from rankclip_jax.data import transforms
from rankclip_jax.models import sizes, two_tower

SIZE = sizes.changed(sizes.SIZES["nano"], activation="gelu")
CARD = interop.Card(name="nano", licence="other", data="none", objective="none")


def drawn(size=SIZE, seed=0, **options):
  init = lambda key: two_tower.init(key, size, initial_scale=20.0, **options)
  return jax.tree.map(np.asarray, jax.jit(init)(jax.random.key(seed)))


@pytest.fixture(scope="module")
def params():
  return drawn(initial_bias=-3.0)


@pytest.fixture(scope="module")
def exported(tmp_path_factory, params):
  folder = tmp_path_factory.mktemp("export") / "nano"
  interop.write_open_clip(folder, params, SIZE, CARD)
  return folder


@pytest.fixture(scope="module")
def model(exported):
  return rankclip_jax.load(exported, batch_size=16)


def pictures(count, side=16, seed=0):
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (count, side, side, 3), np.uint8)


def directly(params, images=None, texts=None):
  graph, _ = two_tower.abstract(SIZE, with_bias=True)
  tower = nnx.merge(graph, params)
  return tower.encode_text(texts) if images is None else tower.encode_image(images)


@pytest.mark.parametrize("count", [1, 3, 16, 17, 40])
def test_any_number_gives_what_the_towers_give(model, params, count):
  images = pictures(count)
  texts = [f"picture number {i}" for i in range(count)]
  got = model.encode_image(images), model.encode_text(texts)
  expected = (
    directly(params, images=images),
    directly(params, texts=model.tokenizer(texts)),
  )
  for a, b in zip(got, expected, strict=True):
    assert a.shape == (count, SIZE.embed_dim)
    assert a.dtype == np.float32
    np.testing.assert_allclose(a, b, atol=2e-6)


def test_nothing_gives_nothing(model):
  for empty in (model.encode_image([]), model.encode_text([])):
    assert empty.shape == (0, SIZE.embed_dim)


def test_batches_have_two_shapes_and_use_all_devices(exported):
  model = rankclip_jax.load(exported, batch_size=50)
  assert model.batch_size == 56  # a multiple of the eight devices
  seen = set()
  run = model._run

  def spy(features, normalize):
    compiled = run(features, normalize)

    def call(params, rows):
      seen.add((rows.shape[0], len(rows.sharding.device_set)))
      return compiled(params, rows)

    return call

  model._run = spy
  for count in (1, 7, 56, 60, 100, 119):
    model.encode_image(pictures(count))
  assert seen == {(56, 8), (8, 8)}


def test_one_device_and_eight_agree(exported, model):
  alone = rankclip_jax.load(exported, devices=jax.devices()[:1], batch_size=16)
  images = pictures(20)
  np.testing.assert_allclose(
    alone.encode_image(images), model.encode_image(images), atol=2e-6
  )


def test_every_kind_of_picture_is_the_same_picture(model, tmp_path):
  pixels = pictures(1, side=30)[0]
  path = tmp_path / "a.png"
  Image.fromarray(pixels).save(path)
  expected = model.encode_image(pixels)
  kinds = [
    path,
    str(path),
    Image.fromarray(pixels),
    Image.open(path),
    pixels,
    pixels[None],
  ]
  for kind in [*kinds, [path], (pixels,), np.array([str(path)])]:
    np.testing.assert_array_equal(model.encode_image(kind), expected)
  both = model.encode_image([path, Image.fromarray(pictures(1, side=9)[0])])
  np.testing.assert_allclose(both[0], expected[0], atol=1e-6)
  assert np.abs(both[1] - expected[0]).max() > 1e-3


def test_preprocess_is_the_transform_of_the_evaluation(model):
  image = Image.fromarray(pictures(1, side=40)[0])
  np.testing.assert_array_equal(
    model.preprocess(image), transforms.resize_center_crop(image, SIZE.image_size)
  )


def test_features_are_embeddings_before_their_length_is_taken(model):
  images, texts = pictures(5), ["a", "b"]
  for encode, given in ((model.encode_image, images), (model.encode_text, texts)):
    features = encode(given, normalize=False)
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    assert np.abs(lengths - 1).max() > 1e-2
    np.testing.assert_allclose(features / lengths, encode(given), atol=1e-6)


def test_similarity_is_scaled_shifted_and_takes_embeddings(model):
  images, texts = pictures(3), ["one", "two"]
  logits = model.similarity(images, texts)
  cosines = model.encode_image(images) @ model.encode_text(texts).T
  np.testing.assert_allclose(logits, 20.0 * cosines - 3.0, rtol=1e-5)
  longer = 7 * model.encode_image(images)
  np.testing.assert_allclose(
    model.similarity(longer, model.encode_text(texts)), logits, rtol=1e-5
  )
  assert model.similarity(images[0], "one").shape == (1, 1)


def test_dtype_and_activation_can_be_chosen(exported):
  half = rankclip_jax.load(exported, dtype="bfloat16", activation="quick_gelu")
  assert (half.size.dtype, half.size.activation) == ("bfloat16", "quick_gelu")
  assert half.encode_image(pictures(1)).dtype == np.float32


def test_facts_tell_models_apart_and_not_how_they_compute(exported, model, params):
  weights = interop.Weights(SIZE, params, {}, "the same")
  same = inference.Model(
    dataclasses.replace(weights, size=dataclasses.replace(SIZE, dtype="bfloat16"))
  )
  assert same.facts == model.facts
  other = inference.Model(dataclasses.replace(weights, params=drawn(seed=1)))
  assert other.facts["weights"] != model.facts["weights"]


@pytest.mark.parametrize(
  "images, message",
  [
    (np.zeros((2, 4, 4, 3)), r"Picture 0 must be uint8 .* got float64 \[4, 4, 3\]"),
    (np.zeros((4, 4), np.uint8), r"got uint8 \[4, 4\]; PIL"),
    ([np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4, 4), np.uint8)], "Picture 1 must be"),
    (np.zeros((0, 4, 3), np.uint8), "Picture 0 has no pixels"),
    ([3], "Picture 0 must be a path, a Pillow image or a uint8 array, got int"),
    (3, "one or a sequence of them, got int"),
    ("nowhere.png", "Picture 0, nowhere.png: there is no such file"),
    ([pathlib.Path(__file__)], r"Picture 0, .*inference_test.py cannot be read"),
  ],
)
def test_what_is_no_picture_is_named(model, images, message):
  with pytest.raises(ValueError, match=message):
    model.encode_image(images)


def test_a_cut_picture_is_named(model, tmp_path):
  path = tmp_path / "cut.png"
  Image.fromarray(pictures(1, side=64)[0]).save(path)
  path.write_bytes(path.read_bytes()[:3000])
  with pytest.raises(ValueError, match=r"Picture 0, .*cut.png cannot be read"):
    model.encode_image(path)


def test_other_arguments_that_do_not_fit(model, exported, tmp_path):
  with pytest.raises(ValueError, match="got int at 1"):
    model.encode_text(["a", 3])
  with pytest.raises(ValueError, match=r"shape \[n, 32\], got \[2, 5\]"):
    model.similarity(np.zeros((2, 5)), "a")
  with pytest.raises(ValueError, match="at least 1, got 0"):
    rankclip_jax.load(exported, batch_size=0)
  with pytest.raises(ValueError, match="does not exist"):
    rankclip_jax.load(tmp_path / "none")


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_embeddings_of_other_libraries_are_embeddings(model, dtype):
  torch = pytest.importorskip("torch")  # of the peers
  images, texts = np.ones((2, SIZE.embed_dim)), np.arange(3.0 * SIZE.embed_dim)
  texts = texts.reshape(3, -1)
  expected = model.similarity(images, texts)
  as_torch = lambda x: torch.tensor(x, dtype=getattr(torch, dtype))
  got = model.similarity(as_torch(images), as_torch(texts))
  np.testing.assert_allclose(got, expected, rtol=1e-3 if dtype == "float16" else 1e-6)
  as_jax = lambda x: jax.numpy.asarray(x, jax.numpy.bfloat16)
  got = model.similarity(as_jax(images), as_jax(texts))
  np.testing.assert_allclose(got, expected, rtol=1e-2)


def test_tensors_that_are_no_arrays_say_so(model):
  torch = pytest.importorskip("torch")
  learned = torch.zeros(2, SIZE.embed_dim, requires_grad=True)
  for call in (
    lambda: model.similarity(learned, "a"),
    lambda: model.encode_image(learned),
    lambda: model.encode_image([learned]),
  ):
    with pytest.raises(ValueError, match="Tensor does not become an array .*detach"):
      call()


@pytest.mark.parametrize("texts", [None, 3, object()])
def test_what_is_no_text_is_named(model, texts):
  for call in (model.encode_text, lambda x: model.similarity(pictures(1), x)):
    with pytest.raises(ValueError, match="Texts are a string .*, got (None|int|object)"):
      call(texts)


@pytest.mark.parametrize("value", [1000.0, 100.0, -1000.0])
def test_a_temperature_that_cannot_be_names_file_and_key(params, tmp_path, value):
  folder = tmp_path / "hot"
  hot = {**params, "logit_scale": np.float32(value)}
  interop.write_open_clip(folder, hot, SIZE, CARD)
  file = "hot/open_clip_model.safetensors"
  with pytest.raises(
    ValueError, match=f"{file}.*: logit_scale is {value:g}. It is the l"
  ):
    rankclip_jax.load(folder)


@pytest.mark.parametrize("key", ["logit_scale", "logit_bias"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_would_not_be_finite_are_refused(params, key, value):
  damaged = {**params, key: np.float32(value)}
  with pytest.raises(ValueError, match=f"here: {key} is {value}.* damaged"):
    inference.Model(interop.Weights(SIZE, damaged, {}, "here"))


def test_a_home_folder_is_found(exported, model, monkeypatch):
  monkeypatch.setenv("HOME", str(exported.parent))
  assert rankclip_jax.load("~/nano").source == model.source
  with pytest.raises(ValueError, match="~nobody-of-this-name/x does not exist"):
    rankclip_jax.load("~nobody-of-this-name/x")


def test_a_picture_as_long_as_files_allow_is_embedded(model, tmp_path):
  path = tmp_path / "long.jpg"
  Image.new("RGB", (65_500, 1), "red").save(path)
  square = Image.new("RGB", (9, 9), "red")
  np.testing.assert_allclose(
    model.encode_image(path), model.encode_image(square), atol=1e-2
  )


def test_another_vocabulary_has_pictures_alone():
  size = sizes.changed(SIZE, vocab_size=100)
  model = inference.Model(interop.Weights(size, drawn(size), {}, "here"))
  assert model.encode_image(pictures(2)).shape == (2, 32)
  assert model.encode_text([]).shape == (0, 32)
  with pytest.raises(ValueError, match="here has 100 tokens, .* only its pictures"):
    model.encode_text("a")


def test_devices_wait_for_pictures_only_while_they_have_nothing_to_do(model, monkeypatch):
  batches, seconds = 3, 0.01
  count = batches * model.batch_size

  def waits():
    found = []

    def picture(place):
      time.sleep(seconds)
      return np.zeros((5, 7, 3), np.uint8)

    model.encode_pictures(count, picture, waited=found.append)
    return found

  waits()  # compiles
  idle = waits()
  assert len(idle) == batches
  assert sum(idle) > seconds
  assert min(idle) >= 0

  def slow(embedded):
    time.sleep(2 * seconds * model.batch_size)
    return time.perf_counter()

  monkeypatch.setattr(inference, "_when_ready", slow)
  busy = waits()
  assert busy[0] >= seconds
  assert busy[1:] == [0.0, 0.0]
