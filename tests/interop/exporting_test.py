"""Folders for other tools: loaded by these tools, unchanged and offline."""

import json
import pathlib

import jax
import numpy as np
import peers
import pytest
from PIL import Image

from rankclip_jax import interop
from rankclip_jax.data import tokenizer, transforms
from rankclip_jax.interop import Card, described, exporting
from rankclip_jax.models import sizes, two_tower
from rankclip_jax.models.sizes import ResNetSize, TextSize, TwoTowerSize, ViTSize

CARD = Card(
  name="A nano model",
  licence="cc-by-sa-4.0",
  data="the built-in pictures",
  objective="rankclip",
  metrics={"image_retrieval_recall@1": 0.25, "undefined": None},
  training={"Steps": 7},
)
TEXT = TextSize(32, 2, 4, context_length=10)
VIT = TwoTowerSize(ViTSize(24, 8, 32, 3, 4), TEXT, embed_dim=20)
RESNET = TwoTowerSize(ResNetSize(64, (2, 1, 3, 1), width=8, heads=16), TEXT, embed_dim=20)
CAPTIONS = ["a cat", "Two  dogs &amp; a café", "x " * 40, "🙂 emoji", ""]
PICTURE = np.random.default_rng(1).integers(0, 256, (50, 37, 3), np.uint8)


def parameters(size: TwoTowerSize, bias: float | None = None) -> dict:
  """Drawn so that no array, running statistics included, is at its initial value."""
  params = two_tower.init(jax.random.key(0), size, initial_scale=9.0, initial_bias=bias)
  rng = np.random.default_rng(0)

  def move(path, x):
    if path[0].key.startswith("logit"):
      return np.float32(x)
    noise = 0.1 * rng.standard_normal(x.shape)
    near = {"scale": 1.0, "var": 0.1}.get(path[-1].key, x)
    return np.float32(near + (np.abs(noise) if path[-1].key == "var" else noise))

  return jax.tree.map_with_path(move, params)


def assert_bit_equal(a, b) -> None:
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
@pytest.mark.parametrize("size, bias", [(VIT, None), (VIT, -4.0), (RESNET, None)])
def test_open_clip_loads_the_folder(tmp_path, peer, size, bias, activation):
  size = sizes.changed(size, activation=activation, std=(0.5, 0.4, 0.3))
  params = parameters(size, bias)
  interop.write_open_clip(tmp_path / "out", params, size, CARD)

  name = f"local-dir:{tmp_path / 'out'}"
  model, _, preprocess = peers.open_clip.create_model_and_transforms(name)
  peer.assert_same(peer.ours(params, size), peer.theirs(model.eval(), size))
  tokens = peers.open_clip.get_tokenizer(name)(CAPTIONS).numpy()
  np.testing.assert_array_equal(tokens, tokenizer.Tokenizer(10)(CAPTIONS))
  np.testing.assert_allclose(
    preprocess(Image.fromarray(PICTURE)).numpy(), prepared(size), atol=1e-6
  )
  back = interop.read(tmp_path / "out")
  assert back.size == size
  assert_bit_equal(back.params, params)


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_transformers_loads_the_folder(tmp_path, peer, activation):
  size = sizes.changed(VIT, activation=activation, mean=(0.5, 0.4, 0.3))
  params = parameters(size)
  interop.write_transformers(tmp_path / "out", params, size, CARD)

  model, loading = peers.transformers.CLIPModel.from_pretrained(
    tmp_path / "out", output_loading_info=True
  )
  assert not any(loading.values())
  peer.assert_same(peer.ours(params, size), peer.theirs(model.eval(), size))
  processor = peers.transformers.CLIPProcessor.from_pretrained(tmp_path / "out")
  batch = processor(
    text=[tokenizer.clean(text) for text in CAPTIONS],
    images=Image.fromarray(PICTURE),
    padding="max_length",
    truncation=True,
    return_tensors="np",
  )
  ids = np.where(batch["attention_mask"], batch["input_ids"], 0)
  np.testing.assert_array_equal(ids, tokenizer.Tokenizer(10)(CAPTIONS))
  # torchvision's resize of tensors rounds some pixels to the other neighbour.
  np.testing.assert_allclose(batch["pixel_values"][0], prepared(size), atol=2 / 255 / 0.2)
  back = interop.read(tmp_path / "out")
  assert back.size == size
  assert_bit_equal(back.params, params)


SQUASHED = {"interpolation": "bilinear", "resize_mode": "squash"}


@pytest.mark.parametrize(
  "how",
  [SQUASHED, {**SQUASHED, "resize_mode": "shortest"},
   {**SQUASHED, "interpolation": "bicubic"}],
)  # fmt: skip
@pytest.mark.parametrize("library", ["open_clip", "transformers"])
def test_the_way_to_resize_is_kept_and_seen_by_both(tmp_path, how, library):
  write = getattr(interop, f"write_{library}")
  size = sizes.changed(VIT, std=(0.5, 0.4, 0.3))
  write(tmp_path / "a", parameters(size), size, CARD, how)
  first = interop.read(tmp_path / "a")
  assert first.preprocessing == {
    "image_size": 24, "mean": list(size.mean), "std": list(size.std), **how,
  }  # fmt: skip
  write(tmp_path / "b", first.params, first.size, CARD, first.preprocessing)
  assert interop.read(tmp_path / "b").preprocessing == first.preprocessing

  picture = Image.fromarray(PICTURE)
  if library == "open_clip":
    name = f"local-dir:{tmp_path / 'b'}"
    _, _, preprocess = peers.open_clip.create_model_and_transforms(name)
    theirs, tolerance = preprocess(picture).numpy(), 1e-6
  else:
    processor = peers.transformers.CLIPProcessor.from_pretrained(tmp_path / "b")
    theirs = processor(images=picture, return_tensors="np")["pixel_values"][0]
    tolerance = 2 / 255 / 0.3  # of tensors, as above
  np.testing.assert_allclose(theirs, prepared(size, **how), atol=tolerance)


def test_a_way_to_resize_that_a_library_has_not_is_refused(tmp_path):
  for write, how, what in (
    (interop.write_open_clip, {"interpolation": "lanczos"}, "wants lanczos.*transform"),
    (interop.write_transformers, {"resize_mode": "longest"}, "mode longest.*open_clip"),
  ):
    preprocessing = {**described.CLIP_PREPROCESSING, **how}
    with pytest.raises(ValueError, match=what):
      write(tmp_path / "x", parameters(VIT), VIT, CARD, preprocessing)
  assert not list(tmp_path.iterdir())


def prepared(size: TwoTowerSize, **how) -> np.ndarray:
  """PICTURE as the towers see it here, [3, height, width]."""
  pixels = transforms.resize_center_crop(PICTURE, size.image_size, **how)
  pixels = pixels.astype(np.float32) / 255
  return ((pixels - np.float32(size.mean)) / np.float32(size.std)).transpose(2, 0, 1)


@pytest.mark.parametrize("write", [interop.write_open_clip, interop.write_transformers])
def test_the_card_names_the_run_and_its_usage_runs(tmp_path, monkeypatch, capsys, write):
  write(tmp_path / "nano", parameters(VIT), VIT, CARD)
  text = (tmp_path / "nano" / "README.md").read_text(encoding="utf-8")

  for fact in ('license: "cc-by-sa-4.0"', "# A nano model", "the built-in pictures",
               "| image_retrieval_recall@1 | 0.2500 |",
               "| Steps | 7 |", "arXiv:2404.09387", "patch 8", "10 tokens"):  # fmt: skip
    assert fact in text
  assert "undefined" not in text
  huggingface_hub = pytest.importorskip("huggingface_hub")  # of transformers
  data = huggingface_hub.ModelCard(text).data
  assert data.license == CARD.licence
  assert data.library_name in write.__name__
  assert data.pipeline_tag == "zero-shot-image-classification"
  monkeypatch.chdir(tmp_path)
  Image.fromarray(PICTURE).save("cat.jpg")
  exec(text.split("```python\n")[1].split("```")[0], {})
  assert "tensor([[0." in capsys.readouterr().out


def test_what_transformers_cannot_say_is_refused_by_name(tmp_path):
  for size, bias, what in ((RESNET, None, "no ResNet"), (VIT, 0.0, "no bias")):
    with pytest.raises(ValueError, match=f"{what}.*open_clip"):
      interop.write_transformers(tmp_path / "x", parameters(size, bias), size, CARD)
  assert not list(tmp_path.iterdir())


def test_parameters_of_another_size_are_refused(tmp_path):
  other = sizes.changed(VIT, context_length=11)
  with pytest.raises(ValueError, match=r"text/positional_embedding should be \(11, 32\)"):
    interop.write_open_clip(tmp_path / "x", parameters(VIT), other, CARD)


def test_a_folder_appears_whole_or_not_at_all(tmp_path, monkeypatch):
  out = tmp_path / "out"
  interop.write_open_clip(out, parameters(VIT), VIT, CARD)
  before = {p.name: p.read_bytes() for p in out.iterdir()}

  def fail(*_):
    raise OSError("disk full")

  with monkeypatch.context() as patch:
    patch.setattr(exporting, "_write_card", fail)
    with pytest.raises(OSError, match="disk full"):
      interop.write_transformers(out, parameters(VIT), VIT, CARD)
  assert {p.name: p.read_bytes() for p in out.iterdir()} == before
  assert list(tmp_path.iterdir()) == [out]
  interop.write_transformers(out, parameters(VIT), VIT, CARD)
  assert not (out / "open_clip_config.json").exists()
  assert list(tmp_path.iterdir()) == [out]


def test_a_former_export_comes_back_when_the_new_one_cannot_take_its_place(
  tmp_path, monkeypatch
):
  out = tmp_path / "out"
  interop.write_open_clip(out, parameters(VIT), VIT, CARD)
  before = {p.name: p.read_bytes() for p in out.iterdir()}
  rename = pathlib.Path.rename

  def fail(self, target):
    if self.name == "new":
      raise OSError("no more names")
    return rename(self, target)

  with monkeypatch.context() as patch:
    patch.setattr(pathlib.Path, "rename", fail)
    with pytest.raises(OSError, match="no more names"):
      interop.write_transformers(out, parameters(VIT), VIT, CARD)
  assert {p.name: p.read_bytes() for p in out.iterdir()} == before
  assert list(tmp_path.iterdir()) == [out]

  def fail_twice(self, target):
    if self.name in ("new", "old"):
      raise OSError("no more names at all")
    return rename(self, target)

  with monkeypatch.context() as patch:
    patch.setattr(pathlib.Path, "rename", fail_twice)
    with pytest.raises(OSError, match="no more names at all"):
      interop.write_transformers(out, parameters(VIT), VIT, CARD)
  kept = [p for p in tmp_path.rglob("old") if p.is_dir()]
  assert {p.name: p.read_bytes() for p in kept[0].iterdir()} == before


def test_what_is_not_an_export_is_left_alone(tmp_path):
  (tmp_path / "README.md").write_text("mine\n")
  with pytest.raises(ValueError, match="not empty and no former export"):
    interop.write_open_clip(tmp_path, parameters(VIT), VIT, CARD)
  assert [p.name for p in tmp_path.iterdir()] == ["README.md"]
  with pytest.raises(ValueError, match="is a file"):
    interop.write_open_clip(tmp_path / "README.md", parameters(VIT), VIT, CARD)


def test_a_model_of_another_vocabulary_has_no_tokenizer_files(tmp_path, caplog):
  size = sizes.changed(VIT, vocab_size=100)
  interop.write_transformers(tmp_path / "out", parameters(size), size, CARD)
  files = {p.name for p in (tmp_path / "out").iterdir()}
  assert files == {
    "README.md", "config.json", "model.safetensors", "preprocessor_config.json",
  }  # fmt: skip
  assert "no tokenizer to export" in caplog.text
  config = json.loads(pathlib.Path(tmp_path / "out" / "config.json").read_text())
  assert config["text_config"]["eos_token_id"] == 99
