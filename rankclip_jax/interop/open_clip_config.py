"""open_clip's open_clip_config.json, read and written.

Options that change the arithmetic are known by name: those that are not built here are
refused, and so are those nobody knows.
"""

import logging
import pathlib
from collections.abc import Mapping
from typing import Any

from rankclip_jax.interop import described, files, tokenizer_files
from rankclip_jax.interop.described import Described
from rankclip_jax.models.sizes import VOCAB_SIZE, ResNetSize, TwoTowerSize

log = logging.getLogger(__name__)

FILE = "open_clip_config.json"
_CLIP_TOKENIZERS = (
  *("openai/clip-vit-base-patch32", "openai/clip-vit-base-patch16"),
  *("openai/clip-vit-large-patch14", "openai/clip-vit-large-patch14-336"),
)
# open_clip's own defaults for what a config leaves out.
_VISION = {"layers": 12, "width": 768, "head_width": 64, "patch_size": 16}
_VISION |= {"image_size": 224}
_TEXT = {"context_length": 77, "vocab_size": VOCAB_SIZE, "width": 512, "heads": 8}
_TEXT |= {"layers": 12}
_INTERPOLATIONS = ("bicubic", "bilinear")
# The only value of each option that this project's towers have.
_BOTH_FIXED = {
  "mlp_ratio": 4.0,
  **dict.fromkeys(("ls_init_value", "act_kwargs", "norm_kwargs"), None),
  **dict.fromkeys(("qk_norm", "scaled_cosine_attn", "scale_heads"), False),
  **dict.fromkeys(("scale_attn_inner", "scale_attn", "scale_fc"), False),
  "block_type": None,
  "final_ln_after_pool": False,
}
_VISION_FIXED = _BOTH_FIXED | {
  "attentional_pool": False,
  "no_ln_pre": False,
  "pos_embed_type": "learnable",
  "pool_type": "tok",
  "timm_model_name": None,
}
_TEXT_FIXED = _BOTH_FIXED | {
  "embed_cls": False,
  "no_causal_mask": False,
  "pool_type": "argmax",
  "proj_bias": False,
  "proj_type": "linear",
  "hf_model_name": None,
  "tokenizer_kwargs": None,
}
# Options without a say in the embeddings of a model of these towers.
_VISION_FREE = {"patch_dropout", "attn_pooler_queries", "attn_pooler_heads"}
_VISION_FREE |= {"output_tokens", "timm_model_pretrained", "timm_pool", "timm_proj"}
_VISION_FREE |= {"timm_proj_bias", "timm_drop", "timm_drop_path"}
_TEXT_FREE = {"output_tokens", "pad_id", "eos_id", "hf_tokenizer_name", "tokenizer_mode"}
_TEXT_FREE |= {"hf_model_pretrained", "hf_proj_type", "hf_pooler_type"}
_MODEL = {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "custom_text"}
_MODEL |= {"init_logit_scale", "init_logit_bias", "nonscalar_logit_scale"}


def read(path: pathlib.Path) -> Described:
  """What an open_clip_config.json says.

  Raises:
    ValueError: if it describes a model that cannot be built here, naming the option.
  """
  config = files.read_json(path)
  # Configs within open_clip's sources are the inner object alone.
  model = (
    config if "vision_cfg" in config else described.section(config, "model_cfg", path)
  )
  if unknown := sorted(model.keys() - _MODEL):
    raise ValueError(
      f"{path}: model_cfg.{unknown[0]} is {model[unknown[0]]!r}, which is not supported; "
      "supported are two towers, a ViT or a ResNet and a causal text transformer."
    )
  vision, text = (
    described.section(model, key, path) for key in ("vision_cfg", "text_cfg")
  )
  _refuse("vision_cfg", vision, _VISION_FIXED, _VISION.keys() | _VISION_FREE, path)
  _refuse("text_cfg", text, _TEXT_FIXED, _TEXT.keys() | _TEXT_FREE, path)
  vision, text = _VISION | vision, _TEXT | text
  _check_values(model, vision, text, path)
  _check_tokenizer(text, path)
  if vision.get("patch_dropout"):
    log.info("%s: patch_dropout is for training and is not applied.", path)
  attended = vision["width"] * (32 if isinstance(vision["layers"], list) else 1)
  return Described(
    file=path,
    stated=_stated(model, vision, text, path),
    vision_heads=described.heads(
      attended, vision["head_width"], "vision_cfg.head_width", path
    ),
    text_heads=text["heads"],
    activation="quick_gelu" if model.get("quick_gelu") else "gelu",
    preprocessing=_preprocessing(config, path),
    bias_key="model_cfg.init_logit_bias" if _has_bias(model) else None,
  )


def write(
  size: TwoTowerSize, logit_bias: float | None, preprocessing: Mapping[str, Any]
) -> dict[str, Any]:
  """The config that makes open_clip build a model of `size`.

  Raises:
    ValueError: for an interpolation that open_clip has not.
  """
  if preprocessing["interpolation"] not in _INTERPOLATIONS:
    raise ValueError(
      f"open_clip resizes pictures by {' or '.join(_INTERPOLATIONS)}, and this model "
      f"wants {preprocessing['interpolation']}; export it as transformers instead."
    )
  vision, text = size.vision, size.text
  shape: dict[str, Any] = {"image_size": vision.image_size, "width": vision.width}
  if isinstance(vision, ResNetSize):
    shape |= {"layers": list(vision.blocks), "patch_size": None}
    attended = 32 * vision.width
  else:
    shape |= {"layers": vision.depth, "patch_size": vision.patch_size}
    attended = vision.width
  shape["head_width"] = attended // vision.heads
  model: dict[str, Any] = {
    "embed_dim": size.embed_dim,
    "quick_gelu": size.activation == "quick_gelu",
    "vision_cfg": shape,
    "text_cfg": {
      "context_length": text.context_length,
      "vocab_size": text.vocab_size,
      "width": text.width,
      "heads": text.heads,
      "layers": text.depth,
    },
  }
  if logit_bias is not None:
    model["init_logit_bias"] = logit_bias
  how = {key: preprocessing[key] for key in ("interpolation", "resize_mode")}
  statistics = {"mean": list(size.mean), "std": list(size.std)}
  return {"model_cfg": model, "preprocess_cfg": statistics | how}


def _has_bias(model: Mapping[str, Any]) -> bool:
  return model.get("init_logit_bias") is not None


def _check_values(
  model: Mapping[str, Any], vision: dict, text: dict, path: pathlib.Path
) -> None:
  described.check_whole(text, _TEXT, "text_cfg", path)
  described.heads(text["width"], text["heads"], "text_cfg.heads", path)
  elsewhere = {"image_size", "patch_size"}
  if isinstance(vision["layers"], list):
    elsewhere.add("layers")
  described.check_whole(vision, _VISION.keys() - elsewhere, "vision_cfg", path)
  if _has_bias(model) and not described.is_number(model["init_logit_bias"]):
    raise ValueError(
      f"{path}: model_cfg.init_logit_bias must be a number, got "
      f"{model['init_logit_bias']!r}."
    )
  if model.get("quick_gelu") is not None:
    described.check_boolean(model["quick_gelu"], "model_cfg.quick_gelu", path)


def _stated(
  model: Mapping[str, Any], vision: dict, text: dict, path: pathlib.Path
) -> dict[str, tuple[str, Any]]:
  stated = {
    f"text.{ours}": (f"text_cfg.{theirs}", text[theirs])
    for ours, theirs in (
      ("width", "width"),
      ("depth", "layers"),
      ("context_length", "context_length"),
      ("vocab_size", "vocab_size"),
    )
  }
  side = described.square(vision["image_size"], "vision_cfg.image_size", path)
  stated["vision.image_size"] = ("vision_cfg.image_size", side)
  stated["vision.width"] = ("vision_cfg.width", vision["width"])
  layers = vision["layers"]
  layers = tuple(layers) if isinstance(layers, list) else layers
  # One of the two is what the weights tell, whichever tower the config means.
  stated["vision.blocks"] = stated["vision.depth"] = ("vision_cfg.layers", layers)
  patch = vision["patch_size"]  # null for a ResNet
  if patch is not None:
    patch = described.square(patch, "vision_cfg.patch_size", path)
  stated["vision.patch_size"] = ("vision_cfg.patch_size", patch)
  stated["embed_dim"] = ("embed_dim", model.get("embed_dim"))
  return stated


def _refuse(
  part: str,
  options: Mapping[str, Any],
  fixed: Mapping[str, Any],
  free: set[str],
  path: pathlib.Path,
) -> None:
  for key, value in options.items():
    if key in fixed:
      # null and {} leave a default alone as well.
      if value == fixed[key] or (not value and not fixed[key]):
        continue
      only = f"; it must be {fixed[key]!r}" if fixed[key] else "; it must not be set"
    elif key in free:
      continue
    else:
      only = " by anything known here"
    raise ValueError(
      f"{path}: model_cfg.{part}.{key} is {value!r}, which changes the arithmetic and is "
      f"not supported{only}."
    )


def _check_tokenizer(text: Mapping[str, Any], path: pathlib.Path) -> None:
  """Without a name it is the one built into open_clip, which is CLIP's."""
  name = text.get("hf_tokenizer_name")
  if not name:
    return
  is_clips = name in _CLIP_TOKENIZERS or tokenizer_files.check(path.parent)
  if text["vocab_size"] != VOCAB_SIZE or not is_clips:
    raise ValueError(
      f"{path}: model_cfg.text_cfg.hf_tokenizer_name is {name!r} with vocab_size "
      f"{text['vocab_size']}; only CLIP's own tokenizer of {VOCAB_SIZE} is supported. If "
      f"it is that one, put its tokenizer.json beside the config, or the name "
      f"{_CLIP_TOKENIZERS[0]!r} into it."
    )


def _preprocessing(config: Mapping[str, Any], path: pathlib.Path) -> dict[str, Any]:
  if config.get("preprocess_cfg") is None:
    return dict(described.CLIP_PREPROCESSING)
  config = described.section(config, "preprocess_cfg", path)
  given = {
    key: (f"preprocess_cfg.{key}", config.get(key))
    for key in described.CLIP_PREPROCESSING
  }
  if config.get("interpolation") == "random":  # in training; open_clip evaluates with
    given["interpolation"] = ("preprocess_cfg.interpolation", "bicubic")
  # The size is the model's, in open_clip as well, and black is what crops may add.
  fixed = {"mode": "RGB", "fill_color": 0}
  for key in config.keys() - given.keys() - {"size"}:
    if key not in fixed or config[key] not in (fixed[key], None):
      only = f"; it must be {fixed[key]!r}" if key in fixed else ""
      raise ValueError(
        f"{path}: preprocess_cfg.{key} is {config[key]!r}, which is not supported{only}."
      )
  return described.preprocessing_facts(given, path)
