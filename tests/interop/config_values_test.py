"""Configs with whatever in them: read, or refused in one line that names the file."""

import copy as copying
import functools
import json

import pytest
import safetensors.torch
from folders import CONFIG, WEIGHTS

from rankclip_jax import interop
from rankclip_jax.interop import importing

BAD = (
  *(None, True, False, 0, -1, 7, 1.5, 1e30, float("nan"), "", "x", "12"),
  *([], [1], [0, 0, 0], ["a", "b", "c"], {}, {"a": 1}),
)
# Leaves for which one of these is as good as what they had, or stands for a default.
WELCOME = {
  "model_cfg.quick_gelu": (None, True, False),
  "model_cfg.init_logit_bias": (0, -1, 7, 1.5, 1e30),
  "model_cfg.vision_cfg.attentional_pool": (None, False, 0, "", [], {}),
  "model_cfg.text_cfg.hf_tokenizer_name": (None, False, 0, "", [], {}),
  "model_cfg.vision_cfg.patch_dropout": BAD,
  "preprocess_cfg": (None, {}),
  "preprocess_cfg.size": BAD,
  "preprocess_cfg.mode": (None,),
  "preprocess_cfg.mean": (None, [0, 0, 0]),
  "preprocess_cfg.std": (None,),
  "preprocess_cfg.interpolation": (None,),
  "preprocess_cfg.resize_mode": (None,),
  "image_processor": (None, {}, {"a": 1}),
  **dict.fromkeys(("image_mean", "image_processor.image_mean"), (None, [0, 0, 0])),
  **dict.fromkeys(("image_std", "image_processor.image_std"), (None,)),
  **{
    prefix + key: values
    for prefix in ("", "image_processor.")
    for key, values in {
      **dict.fromkeys(("do_resize", "do_rescale", "do_normalize"), (True,)),
      "do_center_crop": (True,),
      "resample": (0,),
    }.items()
  },
}
OPEN_CLIP = {
  "model_cfg": {
    "embed_dim": 24,
    "quick_gelu": False,
    "init_logit_bias": -1.0,
    "vision_cfg": {
      "image_size": 32, "patch_size": 8, "width": 48, "layers": 3, "head_width": 16,
      "mlp_ratio": 4.0, "pool_type": "tok", "attentional_pool": False,
      "patch_dropout": 0.0,
    },
    "text_cfg": {
      "context_length": 12, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2,
      "hf_tokenizer_name": "openai/clip-vit-base-patch32",
    },
  },
  "preprocess_cfg": {
    "size": 32, "mode": "RGB", "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5],
    "interpolation": "bicubic", "resize_mode": "shortest",
  },
}  # fmt: skip
TOWER = {"hidden_act": "gelu", "layer_norm_eps": 1e-5, "num_hidden_layers": 3}
TRANSFORMERS = {
  "model_type": "clip",
  "projection_dim": 24,
  "text_config": TOWER
  | {
    "hidden_size": 32, "intermediate_size": 128, "num_attention_heads": 2,
    "max_position_embeddings": 12, "vocab_size": 49408, "eos_token_id": 49407,
  },
  "vision_config": TOWER
  | {
    "hidden_size": 48, "intermediate_size": 192, "num_attention_heads": 3,
    "image_size": 32, "patch_size": 8, "num_channels": 3,
  },
}  # fmt: skip
PREPROCESSOR = {
  "do_resize": True,
  "size": {"shortest_edge": 32},
  "resample": 3,
  "do_center_crop": True,
  "crop_size": {"height": 32, "width": 32},
  "do_rescale": True,
  "rescale_factor": 1 / 255,
  "do_normalize": True,
  "image_mean": [0.5, 0.5, 0.5],
  "image_std": [0.5, 0.5, 0.5],
}


def leaves(content: dict, prefix: tuple = ()):
  for key, value in content.items():
    yield (*prefix, key)
    if isinstance(value, dict):
      yield from leaves(value, (*prefix, key))


def welcome(name: str, value) -> bool:
  return any(
    type(value) is type(good) and repr(value) == repr(good)
    for good in WELCOME.get(name, ())
  )


@pytest.mark.parametrize(
  "name, content",
  [
    (CONFIG, OPEN_CLIP),
    ("config.json", TRANSFORMERS),
    ("preprocessor_config.json", PREPROCESSOR),
    ("processor_config.json", {"image_processor": PREPROCESSOR}),
  ],
)
def test_any_value_in_any_place_is_read_or_refused_by_file(
  open_clip_folder, transformers_folder, copy, monkeypatch, peer, name, content
):
  """Every leaf and object x every bad value."""
  if name == CONFIG:
    folder = copy(open_clip_folder)
    safetensors.torch.save_file(
      peer.open_clip(bias=-1.0)[0].state_dict(), folder / WEIGHTS
    )
  else:
    folder = copy(transformers_folder)
    (folder / "config.json").write_text(json.dumps(TRANSFORMERS))
  (folder / name).write_text(json.dumps(content))
  read = functools.cache(importing._read_state)  # the weights are not what changes
  monkeypatch.setattr(importing, "_read_state", read)
  for layout in "from_openai", "from_transformers":
    monkeypatch.setattr(importing.layouts, layout, lambda *_: {})
  interop.read(folder)
  for path in leaves(content):
    for value in BAD:
      changed = copying.deepcopy(content)
      *outer, last = path
      functools.reduce(dict.get, outer, changed)[last] = value
      (folder / name).write_text(json.dumps(changed))
      where = ".".join(path)
      if welcome(where, value):
        interop.read(folder)
        continue
      with pytest.raises(ValueError) as error:
        pytest.fail(f"{where} may be {value!r}: {interop.read(folder).source}")
      assert str(folder / name) in str(error.value), (where, value)
