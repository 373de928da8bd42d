"""Folders as open_clip writes them, and changes to their JSON files."""

import json
import pathlib

import safetensors.torch

WEIGHTS, CONFIG = "open_clip_model.safetensors", "open_clip_config.json"


def save_open_clip(folder: pathlib.Path, model, config) -> pathlib.Path:
  folder.mkdir()
  safetensors.torch.save_file(model.state_dict(), folder / WEIGHTS)
  (folder / CONFIG).write_text(json.dumps({"model_cfg": config}))
  return folder


def change(path: pathlib.Path, keys: str, value) -> None:
  """Sets a key of a JSON file, "a.b" for an object within an object."""
  content = json.loads(path.read_text())
  *outer, last = keys.split(".")
  inner = content
  for key in outer:
    inner = inner.setdefault(key, {})
  inner[last] = value
  path.write_text(json.dumps(content))
