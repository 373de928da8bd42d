"""mode=attention: what is drawn and said, and what is refused."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from rankclip_jax import config, interop, launcher, start
from rankclip_jax import inference as inferences
from rankclip_jax.attention import drawing, mapping, words
from tests.attention.small import RESNET, VIT, params_of
from tests.inference_test import CARD

CAPTION = "a red heart, big"


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
  """Two vision transformers and a ResNet."""
  root = tmp_path_factory.mktemp("exports")
  for name, size, seed in (("vit", VIT, 0), ("other", VIT, 1), ("resnet", RESNET, 0)):
    interop.write_open_clip(root / name, params_of(size, seed), size, CARD)
  return root


@pytest.fixture
def picture(tmp_path):
  pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
  path = tmp_path / "a picture.png"
  Image.fromarray(pixels).resize((60, 40), Image.Resampling.NEAREST).save(path)
  return path


def config_of(weights, images, captions=CAPTION, model=None, **fields):
  return config.Config(
    mode="attention",
    init=config.InitConfig(weights=str(weights)),
    model=model or config.ModelConfig(name="loaded"),
    attention=config.AttentionConfig(images=str(images), captions=captions, **fields),
  )


def test_every_word_has_a_map_with_its_numbers(exports, picture, tmp_path, capsys):
  cfg = config_of(exports / "vit", picture, prompt="my {}!")
  assert launcher.run(cfg, tmp_path / "work") == 0
  said = capsys.readouterr().out.splitlines()
  drawn_to = tmp_path / "work" / "attention" / "a-picture.png"
  assert said[-1] == f"Maps: {drawn_to}"
  with Image.open(drawn_to) as image:
    assert image.width == drawing._WIDTH
  model = inferences.load(exports / "vit")
  texts = ["a red heart, big", *(f"my {w}!" for w in ("a", "red", "heart", "big"))]
  cosines = model.encode_text(texts) @ model.encode_image(picture)[0]
  found = [line.split() for line in said[2:7]]
  assert [float(f[0]) for f in found] == pytest.approx(cosines.tolist(), abs=6e-4)
  assert [f[-1] for f in found[1:]] == ["a", "red", "heart", "big"]
  shares = [float(f[1].rstrip("%")) for f in found[1:]]
  assert 50 < sum(shares) <= 102  # rounded; the comma has the rest


def test_shares_are_of_all_tokens_between_start_and_end():
  caption = words.Caption("", (words.Word("a", slice(1, 3)),), (), 4)
  relevance = np.array([9.0, 1.0, 2.0, 1.0, 9.0, 0.0])
  assert mapping.shares_of(caption, relevance) == [0.75]
  assert mapping.shares_of(caption, 0 * relevance) == [0.0]


def test_models_stand_side_by_side_each_with_its_own_grid(exports, picture, tmp_path):
  compare = f"{exports / 'resnet'},{exports / 'other'}"
  said = mapping.run(config_of(exports / "vit", picture, compare=compare), tmp_path)
  names = [line.split(":")[0].strip() for line in said.splitlines() if "a red" in line]
  assert names == ["vit", "resnet", "other"]
  rows = [
    mapping.Explainer("x", start.read(exports / name), [CAPTION], "{}")(picture)[0]
    for name in ("vit", "resnet")
  ]
  assert [row.maps[0].relevance.shape for row in rows] == [(4, 4), (4, 4)]
  assert "Chefer" in "".join(rows[0].method)
  assert "Grad-CAM" in "".join(rows[1].method)


def test_another_image_size_gives_another_grid(exports, picture, tmp_path):
  """Of foreign weights; a run's own checkpoint is what it is."""
  model = config.ModelConfig(name="loaded", image_size=16)
  cfg = config_of(exports / "vit", picture, model=model)
  _, weights = start.to_use(cfg, tmp_path)
  (row,) = mapping.Explainer("x", weights, [CAPTION], "{}")(picture)
  assert row.maps[0].relevance.shape == (2, 2)
  (tmp_path / "checkpoints" / "7").mkdir(parents=True)
  learned = interop.Weights(VIT, params_of(VIT), {}, "step 7")
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(start, "read", lambda *_: learned)
    with pytest.raises(ValueError, match="the checkpoint has 32, the config 16"):
      mapping.run(cfg, tmp_path)


def test_folders_are_drawn_and_names_kept_apart(exports, picture, tmp_path):
  (tmp_path / "deep").mkdir()
  Image.open(picture).save(tmp_path / "deep" / "A_picture.png")
  Image.open(picture).save(tmp_path / "deep" / "a picture.bmp")
  work = tmp_path / "work"
  work.mkdir()
  mapping.run(config_of(exports / "vit", f"{tmp_path / 'deep'},{picture}"), work)
  names = sorted(p.name for p in (work / "attention").iterdir())
  assert names == ["A_picture.png", "a-picture-2.png", "a-picture.png"]


def test_a_long_caption_says_what_is_left_out(exports, picture, tmp_path):
  caption = " ".join(f"cat{'s' * (i % 2)}" for i in range(17))  # 14 tokens fit
  said = mapping.run(config_of(exports / "vit", picture, caption), tmp_path)
  assert "3 words are more than the model reads, and left out: cat cats cat" in said
  with Image.open(tmp_path / "attention" / "a-picture.png") as image:
    three_lines = 3 * (drawing.TILE + drawing._CAPTION)  # of five words each
    assert three_lines < image.height < three_lines + 350


def test_the_brightest_part_of_an_overlay_is_the_maximum_of_its_map():
  picture = np.full((drawing.TILE, drawing.TILE, 3), 128, np.uint8)
  relevance = np.zeros((4, 4), np.float32)
  relevance[1, 2] = 1e-7  # however small
  light = drawing.overlay(picture, relevance).astype(int).sum(-1)
  row, column = np.unravel_index(light.argmax(), light.shape)
  assert (row * 4 // drawing.TILE, column * 4 // drawing.TILE) == (1, 2)
  dark = drawing.overlay(picture, 0 * relevance)
  assert len(np.unique(dark.reshape(-1, 3), axis=0)) == 1


@pytest.mark.parametrize(
  "fields, message",
  [
    ({"images": ""}, "no picture to look at; give --config.attention.images"),
    ({"images": "gone.png"}, "config.attention.images names gone.png, which does not"),
    ({"captions": " "}, "no caption; give --config.attention.captions"),
    ({"captions": "a:: ::b"}, "Caption 2 of 3 .* is empty"),
    ({"compare": "gone"}, "config.attention.compare names gone, which does not exist"),
    ({"compare": "{own}"}, "which is among the models already"),
  ],
)
def test_what_cannot_be_drawn_is_said(exports, picture, tmp_path, fields, message):
  fields = {k: v.replace("{own}", str(exports / "vit")) for k, v in fields.items()}
  cfg = config_of(exports / "vit", picture)
  wanted = dataclasses.replace(cfg.attention, **fields)
  with pytest.raises(ValueError, match=message):
    mapping.run(dataclasses.replace(cfg, attention=wanted), tmp_path)


def test_an_unreadable_picture_is_named_before_any_model_runs(
  exports, picture, tmp_path, monkeypatch
):
  monkeypatch.setattr(mapping, "Explainer", None)
  broken = tmp_path / "broken.jpg"
  broken.write_text("no picture")
  with pytest.raises(ValueError, match="broken.jpg, which cannot be read"):
    mapping.run(config_of(exports / "vit", f"{picture},{broken}"), tmp_path)
  assert not (tmp_path / "attention").exists()


def test_a_file_in_the_place_of_the_folder_is_named(exports, picture, tmp_path):
  (tmp_path / "attention").write_text("mine")
  with pytest.raises(ValueError, match="attention is a file, and panels go to a folder"):
    mapping.run(config_of(exports / "vit", picture), tmp_path)


def test_a_word_that_is_cut_is_told_from_those_that_are_left_out(
  exports, picture, tmp_path
):
  caption = "cat " * 13 + "skateboarder dog"  # 14 tokens fit
  said = mapping.run(config_of(exports / "vit", picture, caption), tmp_path)
  assert "1 word is read in part, and has no map: skateboarder" in said
  assert "1 words are" not in said
  assert "1 word is more than the model reads, and left out: dog" in said


def test_a_prompt_has_one_place_for_the_word():
  for prompt in ("a word", "{} {}"):
    with pytest.raises(ValueError, match="attention.prompt must be a text with one {}"):
      config.Config(attention=config.AttentionConfig(prompt=prompt))
