"""Starting from other weights: which, at what size, and into which shards."""

import dataclasses
import logging
import math

import jax
import numpy as np
import pytest
import safetensors.numpy

from rankclip_jax import config, launcher, optim, plan, sharding, start, state, train
from rankclip_jax.interop import layouts
from rankclip_jax.losses import objective
from rankclip_jax.models import sizes, two_tower

SIZE = sizes.changed(sizes.SIZES["nano"], activation="gelu")
NANO = config.Config(
  data=config.DataConfig(batch_size=512),
  model=config.ModelConfig(name="loaded", dtype="float32"),
  objective=config.ObjectiveConfig(name="clip"),
  optim=config.OptimConfig(epochs=1, learning_rate=1e-3),
  checkpoint=config.CheckpointConfig(every_minutes=0.0),
)


def drawn(size=SIZE, seed=0, **options):
  init = lambda key: two_tower.init(key, size, initial_scale=20.0, **options)
  return jax.tree.map(np.asarray, jax.jit(init)(jax.random.key(seed)))


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
  """A file of another tool: heads of 16 channels are not what shapes alone would say."""
  size = sizes.TwoTowerSize(
    sizes.ViTSize(32, 16, 64, 2, 1), sizes.TextSize(64, 2, 1), 32, activation="gelu"
  )
  params = drawn(size)
  path = tmp_path_factory.mktemp("foreign") / "weights.safetensors"
  safetensors.numpy.save_file(layouts.to_openai(params, size), path)
  return path, size, params


def with_weights(path, **model):
  return dataclasses.replace(
    NANO,
    init=config.InitConfig(weights=str(path)),
    model=config.ModelConfig(name="loaded", **{"dtype": "float32", **model}),
  )


def assert_equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_foreign_weights_come_as_they_are(foreign):
  path, size, params = foreign
  found = start.weights_of(with_weights(path, activation="gelu"))
  assert found.size == size
  assert_equal(found.params, params)


def test_a_text_tower_of_another_vocabulary_cannot_be_trained():
  with pytest.raises(ValueError, match="has 100 tokens, and CLIP's tokenizer"):
    plan.make(NANO, sizes.changed(SIZE, vocab_size=100))


def test_no_weights_are_none():
  assert start.weights_of(config.Config()) is None


def test_another_resolution_and_length(foreign, caplog):
  path, _, params = foreign
  cfg = with_weights(path, activation="gelu", image_size=64, context_length=10)
  with caplog.at_level(logging.INFO, logger="rankclip_jax"):
    found = start.weights_of(cfg)
  assert "interpolated from 2 x 2 to 4 x 4" in caplog.text
  assert "first 10 of the model's 77 tokens" in caplog.text
  positions = found.params["vision"]["positional_embedding"]
  assert positions.shape == (17, 64)
  np.testing.assert_array_equal(positions[0], params["vision"]["positional_embedding"][0])
  text = found.params["text"]["positional_embedding"]
  np.testing.assert_array_equal(text, params["text"]["positional_embedding"][:10])
  assert (found.size.image_size, found.size.context_length) == (64, 10)


@pytest.mark.parametrize(
  "model, message",
  [
    ({"context_length": 78}, "trained on 77 tokens .* set model.context_length to 77"),
    ({"image_size": 33}, "image_size 33 must be a multiple of patch_size 16"),
    (
      {"name": "nano"},
      r"is not a nano:\n.*text.depth|is not a nano:(.|\n)*text.width: 64",
    ),
    (
      {"name": "nano-resnet"},
      r"vision.blocks: None loaded, \(1, 2, 1, 3\) in nano-resnet",
    ),
  ],
)
def test_what_does_not_fit_the_weights_is_refused(foreign, model, message):
  cfg = with_weights(foreign[0], activation="gelu")
  cfg = dataclasses.replace(cfg, model=dataclasses.replace(cfg.model, **model))
  with pytest.raises(ValueError, match=message):
    start.weights_of(cfg)


def test_a_home_folder_is_found(foreign, monkeypatch):
  path, size, _ = foreign
  monkeypatch.setenv("HOME", str(path.parent))
  cfg = with_weights(f"~/{path.name}", activation="gelu")
  assert start.weights_of(cfg).size == size
  place, found = start.to_use(cfg, path.parent / "none")
  assert (place, found.size) == (path, size)
  with pytest.raises(ValueError, match="~nobody-of-this-name/x does not exist"):
    start.weights_of(with_weights("~nobody-of-this-name/x"))


def test_another_way_to_resize_pictures_is_said(foreign, monkeypatch, caplog):
  path, size, params = foreign
  read = lambda how: lambda *_, **__: start.Weights(size, params, how, "there")
  for how in ({}, {"interpolation": "bicubic", "resize_mode": "shortest"}):
    monkeypatch.setattr(start, "read", read(how))
    start.weights_of(with_weights(path))
  assert not caplog.text
  monkeypatch.setattr(start, "read", read({"resize_mode": "squash"}))
  start.weights_of(with_weights(path))
  assert "there was trained on pictures resized by bicubic, squash; train" in caplog.text


def test_tools_change_the_model_as_training_does(foreign, tmp_path):
  path, size, params = foreign
  cfg = with_weights(path, activation="gelu", image_size=64, context_length=10)
  place, found = start.to_use(cfg, tmp_path)
  expected = start.weights_of(cfg)
  assert place == path
  assert found.size == dataclasses.replace(expected.size, dtype=size.dtype)
  assert_equal(found.params, expected.params)
  assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(found.params))
  assert found.preprocessing["image_size"] == 64
  # Of no matter is which model the config trains.
  other = dataclasses.replace(cfg.model, name="tiny", image_size=None)
  cfg = dataclasses.replace(cfg, model=other)
  assert start.to_use(cfg, tmp_path)[1].size.vision == size.vision
  assert_equal(start.to_use(cfg, tmp_path)[1].params["vision"], params["vision"])


def test_loaded_needs_weights(tmp_path):
  with pytest.raises(ValueError, match="init.weights, which is empty; give"):
    train.run(NANO, tmp_path)


def into(weights, name, temperature, *, data=2, fsdp=4):
  wanted = objective.PRESETS[name]
  mesh = sharding.make_mesh(data, fsdp)
  fresh = state.create(1, SIZE, wanted, optim.optimizer(lambda _: 0.1), mesh)
  return fresh, start.from_weights(fresh, weights, wanted, temperature=temperature)


def weights(**options):
  return start.Weights(SIZE, drawn(**options), {}, "a test")


def test_weights_fill_the_shards_of_a_fresh_state():
  given = weights()
  fresh, loaded = into(given, "clip", "loaded")
  assert_equal(jax.device_get(loaded.params), given.params)
  assert jax.tree.map(lambda x: x.sharding, loaded) == jax.tree.map(
    lambda x: x.sharding, fresh
  )
  assert any(not x.sharding.is_fully_replicated for x in jax.tree.leaves(loaded.params))
  assert_equal(jax.device_get(loaded.opt_state), jax.device_get(fresh.opt_state))


def test_the_temperature_is_loaded_or_new_and_never_out_of_bounds():
  scale = lambda *args: float(into(*args)[1].params["logit_scale"])
  assert scale(weights(), "clip", "loaded") == pytest.approx(math.log(20.0))
  assert scale(weights(), "clip", "new") == pytest.approx(math.log(1 / 0.07))
  hot = weights()
  hot.params["logit_scale"] = np.float32(9.0)
  assert scale(hot, "clip", "loaded") == pytest.approx(math.log(100.0))


def test_a_bias_is_taken_dropped_or_made_as_the_objective_wants(caplog):
  bias = lambda *args: into(*args)[1].params.get("logit_bias")
  assert float(bias(weights(initial_bias=-3.0), "siglip", "loaded")) == -3.0
  assert float(bias(weights(initial_bias=-3.0), "siglip", "new")) == -10.0
  assert float(bias(weights(), "siglip", "loaded")) == -10.0
  with caplog.at_level(logging.INFO, logger="rankclip_jax"):
    assert bias(weights(initial_bias=-3.0), "clip", "loaded") is None
  assert "bias is dropped" in caplog.text


def run(cfg, workdir):
  cfg = dataclasses.replace(
    cfg, eval=config.EvalConfig(every_epochs=0), report=config.ReportConfig()
  )
  assert launcher.run(cfg, workdir) == 0
  return start.read(workdir)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """A finished run of one epoch."""
  workdir = tmp_path_factory.mktemp("first")
  cfg = dataclasses.replace(
    NANO, model=config.ModelConfig(name="nano", dtype="float32", image_size=24)
  )
  return workdir, run(cfg, workdir)


def test_a_workdir_is_read_with_its_size(trained):
  _, found = trained
  assert found.size == sizes.changed(sizes.SIZES["nano"], image_size=24)
  assert found.preprocessing["image_size"] == 24
  assert found.source.startswith("step 6 of ")


def test_a_workdir_that_was_trained_in_is_what_tools_use(trained, foreign, caplog):
  """Who repeats the command of a training with mode=export wants what it learned."""
  workdir, learned = trained
  cfg = with_weights(foreign[0], activation="quick_gelu")
  with caplog.at_level(logging.INFO, logger="rankclip_jax"):
    place, found = start.to_use(cfg, workdir)
  assert place == workdir
  assert_equal(found.params, learned.params)
  line = f"{workdir} has checkpoints, and they are used; config.init.weights="
  assert caplog.text.count(line) == 1
  caplog.clear()
  for weights in ("", str(workdir)):
    cfg = dataclasses.replace(NANO, init=config.InitConfig(weights=weights))
    assert start.to_use(cfg, workdir)[1].source == learned.source
  assert line not in caplog.text


def test_a_workdir_without_a_checkpoint_is_not_taken_for_untrained(foreign, tmp_path):
  cfg = with_weights(foreign[0], activation="gelu")
  (tmp_path / "checkpoints" / "6.orbax-checkpoint-tmp").mkdir(parents=True)
  with pytest.raises(ValueError, match="A run has begun in .* another --workdir to use"):
    start.to_use(cfg, tmp_path)


@pytest.mark.parametrize(
  "model, message",
  [
    ({"image_size": 32}, "model.image_size: the checkpoint has 24, the config 32"),
    ({"context_length": 8}, "model.context_length: the checkpoint has 16, the config 8"),
    ({"activation": "gelu"}, "model.activation: the checkpoint has quick_gelu, the conf"),
  ],
)
def test_a_workdirs_own_model_is_not_changed(trained, tmp_path, model, message):
  workdir, learned = trained
  cfg = dataclasses.replace(NANO, model=config.ModelConfig(**model))
  with pytest.raises(
    ValueError, match=f"step 6 of .*\n  {message}(.|\n)*Leave these out"
  ):
    start.to_use(cfg, workdir)
  # What the message advises: the same weights, from another workdir.
  cfg = dataclasses.replace(cfg, init=config.InitConfig(weights=str(workdir)))
  _, found = start.to_use(cfg, tmp_path)
  assert found.size == sizes.changed(learned.size, **model)


def test_fine_tuning_goes_on_from_a_workdir(trained, tmp_path):
  """LiT of a run of ours: the image tower stays bit by bit, the text tower learns."""
  first, before = trained
  cfg = dataclasses.replace(
    with_weights(first), optim=dataclasses.replace(NANO.optim, frozen="image")
  )
  after = run(cfg, tmp_path)
  assert_equal(after.params["vision"], before.params["vision"])
  moved = lambda params: params["text"]["projection"]["kernel"]
  assert not np.array_equal(moved(after.params), moved(before.params))
  assert after.size == before.size
  # Started again, it is finished, and asks its first weights for nothing but their size.
  assert_equal(run(cfg, tmp_path).params, after.params)
