"""The paper's experiments; expected numbers are spelled as the released code has them."""

import importlib.util
import itertools
import pathlib
import subprocess
import sys

import pytest

from rankclip_jax import config, plan
from rankclip_jax.losses import objective
from rankclip_jax.models import sizes

ROOT = pathlib.Path(__file__).parents[1]
PAPER = ("cc3m", "cc12m", "yfcc15m", "released")
MODELS = {"rn50": "RN50", "vit_b32": "ViT-B-32", "vit_b16": "ViT-B-16"}
OBJECTIVES = (
  "clip", "cyclip", "siglip", "rankclip", "rankclip_c", "rankclip_i", "rankclip_paper",
  "rankclip_released",
)  # fmt: skip


def read(name: str, arg: str | None) -> config.Config:
  spec = importlib.util.spec_from_file_location(name, ROOT / "configs" / f"{name}.py")
  assert spec
  assert spec.loader
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return config.from_config_dict(module.get_config(arg))


@pytest.mark.parametrize("name", PAPER)
def test_every_variant_has_the_released_hyper_parameters(name):
  for model, goal in itertools.product(MODELS, OBJECTIVES):
    for arg in (f"{model},{goal}", f"{goal},{model}"):
      cfg = read(name, arg)
      assert cfg.model.name == MODELS[model]
      assert cfg.objective == config.ObjectiveConfig(name=goal)
      assert cfg.optim == config.OptimConfig(
        epochs=64,
        learning_rate=5e-4,
        warmup_steps=10_000,
        b1=0.9,
        b2=0.999,
        eps=1e-8,
        weight_decay=0.1,
        clip_norm=0.0,
        layer_decay=1.0,
        frozen="none",
      )
      assert cfg.data.batch_size == 128
      assert cfg.data.source == "csv"
      assert plan.crop_scale_of(cfg) is None  # no augmentation
      assert cfg.init.weights == ""
      size = plan.size_of(cfg)
      assert (size.image_size, size.context_length) == (224, 77)
      assert size.activation == "quick_gelu"


def test_the_models_are_those_of_the_paper():
  rn50 = plan.size_of(read("cc3m", "rn50"))
  assert isinstance(rn50.vision, sizes.ResNetSize)
  assert (rn50.vision.width, rn50.vision.blocks, rn50.embed_dim) == (
    64,
    (3, 4, 6, 3),
    1024,
  )
  for arg, patch in (("vit_b32", 32), ("vit_b16", 16)):
    vit = plan.size_of(read("cc3m", arg))
    assert vit.vision == sizes.ViTSize(224, patch, width=768, depth=12, heads=12)
    assert vit.text == sizes.TextSize(512, 12, 8, context_length=77, vocab_size=49408)
    assert vit.embed_dim == 512


@pytest.mark.parametrize("name", PAPER)
def test_without_a_word_it_is_rankclip_on_vit_b32(name):
  assert read(name, None) == read(name, "vit_b32,rankclip")


@pytest.mark.parametrize(
  "name, arg, message",
  [
    ("cc3m", "rn51", "Unknown variant 'rn51'.*Did you mean rn50"),
    ("yfcc15m", "rn50,vit_b32", "'rn50' and 'vit_b32' both choose the model"),
    ("cc12m", "rankklip", "Did you mean rankclip"),
    ("finetune", "vit_b32", "Unknown variant 'vit_b32'; there are full, layerwise, lit"),
    ("finetune", "full,lit", "'full' and 'lit' both choose the recipe"),
  ],
)
def test_unknown_and_contradictory_variants_are_refused(name, arg, message):
  with pytest.raises(ValueError, match=message):
    read(name, arg)


def test_data_must_be_given_and_errors_say_how():
  with pytest.raises(ValueError, match="--config.data.train=PATH"):
    plan.source_of(read("cc3m", None), "train")


FULL = dict(epochs=20, learning_rate=1e-5, warmup_fraction=0.1, weight_decay=0.2)


@pytest.mark.parametrize(
  "recipe, optim",
  [
    ("full", FULL),
    ("lit", FULL | dict(frozen="image")),
    (
      "layerwise",
      FULL
      | dict(
        learning_rate=7.5e-5, warmup_fraction=0.2, weight_decay=0.05, layer_decay=0.6
      ),
    ),
  ],
)
@pytest.mark.parametrize("goal", OBJECTIVES)
def test_fine_tuning(recipe, optim, goal):
  cfg = read("finetune", f"{recipe},{goal}")
  assert cfg.optim == config.OptimConfig(**optim)
  assert cfg.model.name == "loaded"
  assert cfg.init.temperature == "loaded"
  assert (cfg.data.source, cfg.data.batch_size) == ("openmoji", 256)
  assert cfg.objective == config.ObjectiveConfig(name=goal)
  # The ramp has an end, in an epoch count that the released one accepts.
  ranking = objective.named(goal)
  weight = objective.rank_weight(ranking, 239, num_steps=240, epoch_steps=12)
  assert weight == (1 if ranking.ramp == "none" else 2)


def test_fine_tuning_without_weights_says_what_to_give():
  with pytest.raises(ValueError, match="--config.init.weights=PATH"):
    plan.size_of(read("finetune", None))


def test_configs_work_from_any_directory(tmp_path):
  """`configs` is found beside main.py, not in the working directory."""
  result = subprocess.run(
    [
      sys.executable,
      str(ROOT / "main.py"),
      f"--config={ROOT}/configs/cc3m.py:rn50,rankclip",
      "--config.data.train=nowhere.csv",
      f"--workdir={tmp_path / 'run'}",
    ],
    cwd=tmp_path,
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert result.returncode == 1
  assert "There is no file nowhere.csv" in result.stderr.splitlines()[-1]
