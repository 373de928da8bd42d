"""Weights of other tools: the same embeddings here, or an error that says what to do."""

import json
import logging
import pathlib
import shutil
import warnings

import jax
import ml_dtypes
import numpy as np
import peers
import pytest
import safetensors.numpy
import safetensors.torch
from folders import CONFIG, WEIGHTS, change, save_open_clip

from rankclip_jax import interop
from rankclip_jax.interop import layouts
from rankclip_jax.models.sizes import TextSize, TwoTowerSize, ViTSize

torch = peers.torch


@pytest.mark.parametrize(
  "tower, options",
  [
    ("vit", {}),
    ("vit", {"quick_gelu": True, "custom_text": True}),
    ("vit", {"bias": -5.0}),
    ("resnet", {}),
    ("resnet", {"quick_gelu": True}),
  ],
)
def test_an_open_clip_model_embeds_the_same_here(tmp_path, peer, tower, options):
  model, config = peer.open_clip(tower, **options)
  with torch.no_grad():
    model.logit_scale.fill_(2.0)
  folder = save_open_clip(tmp_path / "m", model, config)
  weights = interop.read(folder)
  quick = options.get("quick_gelu")
  assert weights.size.activation == ("quick_gelu" if quick else "gelu")
  assert CONFIG in weights.source
  peer.assert_same(
    peer.ours(weights.params, weights.size), peer.theirs(model, weights.size)
  )


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
@pytest.mark.parametrize("shards", [False, True])
def test_a_clip_model_of_transformers_embeds_the_same_here(
  tmp_path, peer, activation, shards
):
  model = peer.transformers(activation)
  model.save_pretrained(tmp_path, **({"max_shard_size": "1MB"} if shards else {}))
  assert (tmp_path / "model.safetensors.index.json").exists() == shards
  weights = interop.read(tmp_path)
  assert weights.size.activation == activation
  peer.assert_same(
    peer.ours(weights.params, weights.size), peer.theirs(model, weights.size)
  )


def plain_model(peer):
  """Heads of 64, as where no config tells; also what the archives below hold."""
  vision = {"image_size": 16, "patch_size": 8, "width": 64, "layers": 1}
  text = {"context_length": 8, "vocab_size": 50, "width": 64, "heads": 1, "layers": 2}
  model = peers.open_clip.CLIP(16, vision, text, quick_gelu=True)
  size = TwoTowerSize(ViTSize(16, 8, 64, 1, 1), TextSize(64, 2, 1, 8, 50), embed_dim=16)
  return model.eval(), size


def training_file(state):
  optimizer = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1}]}
  return {"epoch": 3, "name": "run", "state_dict": state, "optimizer": optimizer}


@pytest.mark.parametrize(
  "name, content",
  [
    ("plain.pt", lambda state: state),
    ("epoch_3.pt", training_file),
    ("ddp.pth", lambda s: training_file({f"module.{k}": v for k, v in s.items()})),
    ("open_clip_pytorch_model.bin", lambda s: {k: v.half() for k, v in s.items()}),
    ("any.safetensors", None),
  ],
)
def test_a_state_dict_needs_no_config(tmp_path, peer, caplog, name, content):
  model, size = plain_model(peer)
  state = model.state_dict()
  if content is None:
    safetensors.torch.save_file(state, tmp_path / name)
  else:
    torch.save(content(state), tmp_path / name)
  with caplog.at_level(logging.INFO):
    weights = interop.read(str(tmp_path / name))
  assert weights.size == size
  if name.startswith("open_clip"):
    assert "float16 weights are read as float32" in caplog.text
    model = model.half().float()
  peer.assert_same(peer.ours(weights.params, size), peer.theirs(model, size))
  assert "--config.model.activation=gelu" in caplog.text
  caplog.clear()
  gelu = interop.read(tmp_path / name, activation="gelu")
  assert gelu.size.activation == "gelu"
  assert not caplog.records


def test_an_archive_of_openai_is_read_without_a_question(tmp_path, peer, caplog):
  model, size = plain_model(peer)
  for key in "input_resolution", "context_length", "vocab_size":
    if hasattr(model, key):
      delattr(model, key)
    model.register_buffer(key, torch.tensor(16))
  pixels, ids = torch.zeros(1, 3, 16, 16), torch.ones(1, 8, dtype=torch.long)
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # OpenAI's files are what PyTorch deprecates
    torch.jit.trace(model, (pixels, ids), check_trace=False).save(tmp_path / "ViT.pt")
  weights = interop.read(tmp_path / "ViT.pt")
  assert weights.size == size
  assert not caplog.records
  peer.assert_same(peer.ours(weights.params, size), peer.theirs(model, size))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions_become_float32(open_clip_folder, copy, dtype, caplog):
  folder = copy(open_clip_folder)
  state = safetensors.torch.load_file(folder / WEIGHTS)
  safetensors.torch.save_file(
    {k: v.to(dtype) for k, v in state.items()}, folder / WEIGHTS
  )
  with caplog.at_level(logging.INFO):
    read = interop.read(folder)
  name = str(dtype).removeprefix("torch.")
  assert f"{name} weights are read as float32" in caplog.text
  rounded = jax.tree.map(
    lambda x: x.astype(np.dtype(name)).astype(np.float32),
    interop.read(open_clip_folder).params,
  )
  jax.tree.map(np.testing.assert_array_equal, read.params, rounded)
  assert np.dtype("bfloat16") == ml_dtypes.bfloat16


def damaged(folder: pathlib.Path, what: str) -> pathlib.Path:
  """A path that is not a CLIP; its file is called model.safetensors unless said."""
  path = folder / "model.safetensors"
  match what:
    case "cut header":
      path.write_bytes((folder / WEIGHTS).read_bytes()[:50])
    case "cut":
      path.write_bytes((folder / WEIGHTS).read_bytes()[:-9])
    case "pointer":
      path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    case "empty":
      path.write_bytes(b"")
    case "float8":
      x = torch.zeros(3).to(torch.float8_e4m3fn)
      safetensors.torch.save_file({"visual.conv1.weight": x}, path)
    case "classifier":
      safetensors.numpy.save_file(
        {"conv1.weight": np.zeros(3), "fc.bias": np.ones(2)}, path
      )
    case "one tower":
      state = safetensors.numpy.load_file(folder / WEIGHTS)
      state = {k: v for k, v in state.items() if k.startswith("visual.")}
      safetensors.numpy.save_file(state, path)
    case "transformers":
      x = {"vision_model.embeddings.patch_embedding.weight": np.zeros((3, 3, 2, 2))}
      safetensors.numpy.save_file(x, path)
    case "small heads":
      shutil.copy(folder / WEIGHTS, path)
    case "not a number":
      state = safetensors.numpy.load_file(folder / WEIGHTS)
      state["ln_final.bias"][2] = np.nan
      safetensors.numpy.save_file(state, path)
      return path  # with its config
    case "tokenizer":
      path = folder / "tokenizer.json"
      path.write_text("{}")
    case "nowhere":
      path = folder / "nowhere.pt"
  (folder / CONFIG).unlink()
  return path


@pytest.mark.parametrize(
  "what, message",
  [
    ("cut header", "damaged or no safetensors file"),
    ("cut", "damaged or no safetensors file"),
    ("pointer", "git-lfs pointer.*git lfs pull"),
    ("empty", "is empty"),
    ("float8", "visual.conv1.weight as F8_E4M3; quantised"),
    ("classifier", "no CLIP.*visual.conv1.weight.*2 others, such as conv1.weight, fc"),
    ("one tower", "missing: positional_embedding, token_embedding.weight, text_proj"),
    ("transformers", "with a config.json; it is not beside them"),
    ("small heads", "text tower is 32 wide.*put .* open_clip_config.json"),
    ("not a number", "ln_final.bias holds NaN"),
    ("tokenizer", "no file of weights"),
    ("nowhere", "does not exist"),
  ],
)  # fmt: skip
def test_what_is_no_clip_is_refused_and_named(open_clip_folder, copy, what, message):
  path = damaged(copy(open_clip_folder), what)
  with pytest.raises(ValueError, match=message) as error:
    interop.read(path)
  assert str(path) in str(error.value)


def test_folders_without_a_model_say_what_was_looked_for(tmp_path):
  (tmp_path / "epoch_1.pt").write_bytes(b"x")
  with pytest.raises(ValueError, match="open_clip_config.json with.*config.json with.*"
                     "there is epoch_1.pt. Give the file itself"):  # fmt: skip
    interop.read(tmp_path)


@pytest.mark.parametrize(
  "content, message",
  [
    ([torch.zeros(2)], "should hold a dict of names and tensors, got list"),
    ({"epoch": 1, "model": {}}, "alone, got 'epoch', 'model'"),
    ({0: torch.zeros(2)}, "alone, got 0"),
    ({}, "alone, got nothing"),
  ],
)
def test_other_content_of_archives_is_named(tmp_path, content, message):
  torch.save(content, tmp_path / "x.pt")
  with pytest.raises(ValueError, match=message) as error:
    interop.read(tmp_path / "x.pt")
  assert str(tmp_path / "x.pt") in str(error.value)


def test_a_missing_shard_is_named(tmp_path, peer):
  peer.transformers().save_pretrained(tmp_path, max_shard_size="1MB")
  index = tmp_path / "model.safetensors.index.json"
  shard = sorted(set(json.loads(index.read_text())["weight_map"].values()))[0]
  (tmp_path / shard).unlink()
  with pytest.raises(ValueError, match=f"{shard} is missing"):
    interop.read(tmp_path)
  for wrong in "../secret.safetensors", ["x"], {}, None, "", 7:
    change(index, "weight_map", {"logit_scale": wrong})
    with pytest.raises(ValueError, match="lists .*; only files beside it are read"):
      interop.read(tmp_path)


def test_the_wish_for_an_activation_beats_the_config_and_is_logged(
  open_clip_folder, caplog
):
  weights = interop.read(open_clip_folder, activation="quick_gelu")
  assert weights.size.activation == "quick_gelu"
  assert "says gelu; quick_gelu is used" in caplog.text


def test_what_is_read_is_written_as_it_was(open_clip_folder):
  weights = interop.read(open_clip_folder)
  state = layouts.to_openai(weights.params, weights.size)
  for name, x in safetensors.numpy.load_file(open_clip_folder / WEIGHTS).items():
    np.testing.assert_array_equal(state[name], x)


def test_a_tensor_that_is_there_twice_is_refused(tmp_path, peer):
  model, _ = plain_model(peer)
  state = model.state_dict()
  other = {"text.positional_embedding": torch.zeros_like(state["positional_embedding"])}
  torch.save(state | other, tmp_path / "x.pt")
  with pytest.raises(ValueError, match=r"x\.pt holds positional_embedding twice, also "
                     'with "text." before it'):  # fmt: skip
    interop.read(tmp_path / "x.pt")


def test_a_tensor_in_two_shards_is_refused(tmp_path, peer):
  peer.transformers().save_pretrained(tmp_path, max_shard_size="1MB")
  shards = sorted(tmp_path.glob("model-*.safetensors"))
  states = [safetensors.numpy.load_file(shard) for shard in shards]
  name = next(iter(states[0]))
  safetensors.numpy.save_file(states[1] | {name: states[0][name]}, shards[1])
  with pytest.raises(ValueError, match=f"safetensors holds {name} twice, in another"):
    interop.read(tmp_path)


def test_weights_of_any_name_are_read_in_a_folder_of_their_own(tmp_path, peer):
  model, size = plain_model(peer)
  torch.save(model.state_dict(), tmp_path / "weights.PT")
  safetensors.torch.save_file(model.state_dict(), tmp_path / "weights")
  for name in "weights.PT", "weights":
    assert interop.read(tmp_path / name, activation="quick_gelu").size == size


def test_json_that_is_nested_too_deeply_is_refused(open_clip_folder, copy):
  folder = copy(open_clip_folder)
  (folder / CONFIG).write_text("[" * 100_000)
  with pytest.raises(ValueError, match=f"{CONFIG} is not valid JSON"):
    interop.read(folder)
