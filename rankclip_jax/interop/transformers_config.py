"""The transformers library's config.json and preprocessor_config.json of CLIP."""

import pathlib
from collections.abc import Mapping
from typing import Any

from rankclip_jax.interop import described, files
from rankclip_jax.interop.described import Described
from rankclip_jax.models.sizes import VOCAB_SIZE, TwoTowerSize, ViTSize

FILE = "config.json"
PREPROCESSOR = "preprocessor_config.json"
_PROCESSOR = "processor_config.json"  # where newer releases put the same
_EPSILON = 1e-5  # of all layer norms here
# transformers' own defaults for what a config leaves out.
_BOTH: dict[str, Any] = {
  "hidden_act": "quick_gelu",
  "layer_norm_eps": _EPSILON,
  "projection_dim": 512,
}
_BOTH |= {"num_hidden_layers": 12}
_VISION: dict[str, Any] = _BOTH | {
  "hidden_size": 768,
  "intermediate_size": 3072,
  "num_channels": 3,
}
_VISION |= {"num_attention_heads": 12, "image_size": 224, "patch_size": 32}
_TEXT: dict[str, Any] = _BOTH | {
  "hidden_size": 512,
  "intermediate_size": 2048,
  "eos_token_id": 49407,
}
_TEXT |= {"num_attention_heads": 8, "max_position_embeddings": 77}
_TEXT |= {"vocab_size": VOCAB_SIZE}
# Of before 2023: the feature is read at the largest id, as it is here.
_LEGACY_EOS = 2
# By Pillow's numbers.
_RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}


def read(path: pathlib.Path) -> Described:
  """What a config.json, and the preprocessor's beside it, say.

  Raises:
    ValueError: if it describes a model that cannot be built here, naming the option.
  """
  config = files.read_json(path)
  if config.get("model_type") != "clip":
    raise ValueError(
      f"{path}: model_type is {config.get('model_type')!r}, which is not supported; of "
      "transformers' models CLIPModel is (model_type 'clip', both towers)."
    )
  vision, text = (
    _tower(config, "vision_config", path),
    _tower(config, "text_config", path),
  )
  vision, text = _VISION | vision, _TEXT | text
  _check("vision_config", vision, path)
  _check("text_config", text, path)
  lengths = ("max_position_embeddings", "vocab_size")
  described.check_whole(text, lengths, "text_config", path)
  if vision["hidden_act"] != text["hidden_act"]:
    raise ValueError(
      f"{path}: vision_config.hidden_act is {vision['hidden_act']!r} and "
      f"text_config.hidden_act is {text['hidden_act']!r}; they must be the same."
    )
  if vision["num_channels"] != 3:
    raise ValueError(f"{path}: vision_config.num_channels must be 3.")
  if text["eos_token_id"] not in (_LEGACY_EOS, text["vocab_size"] - 1):
    raise ValueError(
      f"{path}: text_config.eos_token_id is {text['eos_token_id']}; the feature of a "
      f"caption is read at its largest id, so that {text['vocab_size'] - 1} is needed."
    )
  side, patch = (
    described.square(vision[key], f"vision_config.{key}", path)
    for key in ("image_size", "patch_size")
  )
  return Described(
    file=path,
    stated={
      "vision.image_size": ("vision_config.image_size", side),
      "vision.patch_size": ("vision_config.patch_size", patch),
      "vision.width": ("vision_config.hidden_size", vision["hidden_size"]),
      "vision.depth": ("vision_config.num_hidden_layers", vision["num_hidden_layers"]),
      "text.width": ("text_config.hidden_size", text["hidden_size"]),
      "text.depth": ("text_config.num_hidden_layers", text["num_hidden_layers"]),
      "text.context_length": (
        "text_config.max_position_embeddings", text["max_position_embeddings"],
      ),
      "text.vocab_size": ("text_config.vocab_size", text["vocab_size"]),
      "embed_dim": ("projection_dim", config.get("projection_dim", 512)),
    },
    vision_heads=vision["num_attention_heads"],
    text_heads=text["num_attention_heads"],
    activation=vision["hidden_act"],
    preprocessing=_preprocessing(path.parent, side),
  )  # fmt: skip


def write(size: TwoTowerSize) -> dict[str, Any]:
  """The config.json of a CLIPModel of `size`, which must have a vision transformer."""
  assert isinstance(size.vision, ViTSize)
  vision, text = size.vision, size.text
  shared = {
    "hidden_act": size.activation,
    "layer_norm_eps": _EPSILON,
    "projection_dim": size.embed_dim,
    "attention_dropout": 0.0,
  }
  return {
    "architectures": ["CLIPModel"],
    "model_type": "clip",
    "projection_dim": size.embed_dim,
    "text_config": shared
    | {
      "model_type": "clip_text_model",
      "hidden_size": text.width,
      "intermediate_size": 4 * text.width,
      "num_hidden_layers": text.depth,
      "num_attention_heads": text.heads,
      "max_position_embeddings": text.context_length,
      "vocab_size": text.vocab_size,
      "bos_token_id": text.vocab_size - 2,
      "eos_token_id": text.vocab_size - 1,
      "pad_token_id": text.vocab_size - 1,
    },
    "vision_config": shared
    | {
      "model_type": "clip_vision_model",
      "hidden_size": vision.width,
      "intermediate_size": 4 * vision.width,
      "num_hidden_layers": vision.depth,
      "num_attention_heads": vision.heads,
      "num_channels": 3,
      "image_size": vision.image_size,
      "patch_size": vision.patch_size,
    },
  }


def write_preprocessor(
  size: TwoTowerSize, preprocessing: Mapping[str, Any]
) -> dict[str, Any]:
  """The preprocessor_config.json of a model's pictures.

  Raises:
    ValueError: for a way to resize that CLIPImageProcessor has not.
  """
  side = size.image_size
  both = {"height": side, "width": side}
  sizes = {"shortest": {"shortest_edge": side}, "squash": both}
  how = preprocessing["resize_mode"]
  if how not in sizes:
    raise ValueError(
      f"transformers' CLIPImageProcessor has no resize_mode {how}; export this model as "
      "open_clip instead."
    )
  numbers = {name: number for number, name in _RESAMPLE.items()}
  return {
    "image_processor_type": "CLIPImageProcessor",
    "processor_class": "CLIPProcessor",
    "do_convert_rgb": True,
    "do_resize": True,
    "size": sizes[how],
    "resample": numbers[preprocessing["interpolation"]],
    "do_center_crop": how == "shortest",
    "crop_size": both,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": list(size.mean),
    "image_std": list(size.std),
  }


def _tower(config: Mapping[str, Any], key: str, path: pathlib.Path) -> dict[str, Any]:
  """A tower's object; one that old releases wrote beside it has the last word."""
  old = config.get(f"{key}_dict")
  if old is not None:
    return described.section(config, f"{key}_dict", path)
  return described.section(config, key, path)


def _check(part: str, tower: Mapping[str, Any], path: pathlib.Path) -> None:
  counted = ("hidden_size", "num_hidden_layers", "num_attention_heads")
  described.check_whole(tower, counted, part, path)
  heads = tower["num_attention_heads"]
  described.heads(tower["hidden_size"], heads, f"{part}.num_attention_heads", path)
  wanted = {
    "layer_norm_eps": (_EPSILON,),
    "intermediate_size": (4 * tower["hidden_size"],),
    "hidden_act": ("gelu", "quick_gelu"),
  }
  for key, values in wanted.items():
    if tower[key] not in values:
      raise ValueError(
        f"{path}: {part}.{key} is {tower[key]!r}, which is not supported; it must be "
        f"{' or '.join(map(repr, values))}."
      )


def _preprocessing(folder: pathlib.Path, side: int) -> dict[str, Any]:
  """From the preprocessor's file, wherever it is; CLIP's own if there is none."""
  path, config = _preprocessor(folder)
  for key in ("do_resize", "do_rescale", "do_normalize"):
    if not described.check_boolean(config.get(key, True), key, path):
      raise ValueError(f"{path}: {key} is false, which is not supported.")
  factor = config.get("rescale_factor", 1 / 255)
  if not described.is_number(factor) or not abs(factor * 255 - 1) <= 1e-6:
    raise ValueError(f"{path}: rescale_factor must be 1/255, got {factor!r}.")
  number = config.get("resample", 3)
  if type(number) is not int or number not in _RESAMPLE:
    raise ValueError(f"{path}: resample is {number!r}; it must be one of {_RESAMPLE}.")
  given = {
    "mean": ("image_mean", config.get("image_mean")),
    "std": ("image_std", config.get("image_std")),
    "interpolation": ("resample", _RESAMPLE[number]),
    "resize_mode": ("size", _resize_mode(config, side, path)),
  }
  return described.preprocessing_facts(given, path)


def _preprocessor(folder: pathlib.Path) -> tuple[pathlib.Path, Mapping[str, Any]]:
  path = folder / PREPROCESSOR
  if path.is_file():
    return path, files.read_json(path)
  path = folder / _PROCESSOR
  config = files.read_json(path) if path.is_file() else {}
  if config.get("image_processor") is None:
    return path, {}
  return path, described.section(config, "image_processor", path)


def _resize_mode(config: Mapping[str, Any], side: int, path: pathlib.Path) -> str:
  """open_clip's word for a resize and a crop; a ValueError if it has none."""
  size = config.get("size", {"shortest_edge": side})
  size = {"shortest_edge": size} if isinstance(size, int) else size
  crop = config.get("crop_size", side)
  crop = {"height": crop, "width": crop} if isinstance(crop, int) else crop
  crops = config.get("do_center_crop", True)
  crops = described.check_boolean(crops, "do_center_crop", path)
  both = {"height": side, "width": side}
  if size == {"shortest_edge": side} and crops and crop == both:
    return "shortest"
  if size == both and (not crops or crop == both):
    return "squash"
  raise ValueError(
    f"{path}: size {size} with crop_size {crop if crops else None} is not supported for "
    f"a model of {side} pixels; supported are a shortest_edge of {side} with a crop of "
    f"{side}, or a height and width of {side}."
  )
