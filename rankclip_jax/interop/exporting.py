"""Writes weights as folders that the tools of others load unchanged."""

import json
import logging
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import safetensors.numpy

from rankclip_jax.interop import (
  described,
  layouts,
  model_card,
  open_clip_config,
  tokenizer_files,
  transformers_config,
)
from rankclip_jax.interop.model_card import Card
from rankclip_jax.models.sizes import VOCAB_SIZE, TwoTowerSize

log = logging.getLogger(__name__)

_CARD = "README.md"


def write_transformers(
  directory: pathlib.Path | str,
  params: Mapping[str, Any],
  size: TwoTowerSize,
  card: Card,
  preprocessing: Mapping[str, Any] = described.CLIP_PREPROCESSING,
) -> None:
  """Writes a folder for `CLIPModel.from_pretrained` and `CLIPProcessor.from_pretrained`.

  Args:
    directory: new or empty, or a former export, which is replaced; it appears complete
      or not at all.
    params: see `two_tower.init`.
    size: their architecture.
    card: what README.md is to say.
    preprocessing: how pictures are resized; see `Weights`. Their mean and standard
      deviation are those of `size`.

  Raises:
    ValueError: for a ResNet, a bias of the logits or a way to resize that CLIPModel and
      its processor have not; if `params` are not of `size`; or if `directory` holds
      anything else.
  """
  state = layouts.to_transformers(params, size)
  preprocessor = transformers_config.write_preprocessor(size, preprocessing)

  def write(folder: pathlib.Path) -> None:
    _write_tensors(folder / "model.safetensors", state)
    _write_json(folder / transformers_config.FILE, transformers_config.write(size))
    _write_json(folder / transformers_config.PREPROCESSOR, preprocessor)
    if size.text.vocab_size == VOCAB_SIZE:
      tokenizer_files.write(folder, size.context_length)
    else:
      log.warning(
        "The model has %d tokens and not CLIP's %d: there is no tokenizer to export.",
        size.text.vocab_size, VOCAB_SIZE
      )  # fmt: skip
    _write_card(folder, card, size, "transformers", pathlib.Path(directory).name)

  _replace(pathlib.Path(directory), write)


def write_open_clip(
  directory: pathlib.Path | str,
  params: Mapping[str, Any],
  size: TwoTowerSize,
  card: Card,
  preprocessing: Mapping[str, Any] = described.CLIP_PREPROCESSING,
) -> None:
  """Writes a folder for open_clip's "local-dir:" and, uploaded, its "hf-hub:".

  The tokenizer is the one built into open_clip. Arguments and errors are those of
  `write_transformers`, but ResNets and biases are welcome.
  """
  state = layouts.to_openai(params, size)
  bias = float(state["logit_bias"]) if "logit_bias" in state else None
  config = open_clip_config.write(size, bias, preprocessing)

  def write(folder: pathlib.Path) -> None:
    _write_tensors(folder / "open_clip_model.safetensors", state)
    _write_json(folder / open_clip_config.FILE, config)
    _write_card(folder, card, size, "open_clip", pathlib.Path(directory).name)

  _replace(pathlib.Path(directory), write)


def _write_tensors(path: pathlib.Path, state: dict[str, np.ndarray]) -> None:
  # Both libraries refuse files that do not name their framework.
  safetensors.numpy.save_file(state, path, metadata={"format": "pt"})


def _write_json(path: pathlib.Path, content: Mapping[str, Any]) -> None:
  path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _write_card(
  folder: pathlib.Path, card: Card, size: TwoTowerSize, library: Any, name: str
) -> None:
  text = model_card.render(card, size, library, name)
  (folder / _CARD).write_text(text, encoding="utf-8")


def _replace(directory: pathlib.Path, write: Callable[[pathlib.Path], None]) -> None:
  """Has a folder written beside `directory` and puts it in its place."""
  _refuse_other_content(directory)
  directory.parent.mkdir(parents=True, exist_ok=True)
  unfinished = pathlib.Path(
    tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent)
  )
  new, old = unfinished / "new", unfinished / "old"
  try:
    new.mkdir()
    write(new)
    if directory.exists():
      directory.rename(old)
    try:
      new.rename(directory)
    except BaseException:
      if old.exists():
        old.rename(directory)
      raise
  finally:
    # Unless it has the only copy of a former export.
    if directory.exists() or not old.exists():
      shutil.rmtree(unfinished)
  log.info("Exported to %s.", directory)


def _refuse_other_content(directory: pathlib.Path) -> None:
  if not directory.exists():
    return
  if not directory.is_dir():
    raise ValueError(f"{directory} is a file; give a folder to export to.")
  card = directory / _CARD
  if any(directory.iterdir()) and not (
    card.is_file() and f"\n- {model_card.MARK}\n" in card.read_text(encoding="utf-8")
  ):
    raise ValueError(
      f"{directory} is not empty and no former export; give a new folder to export to."
    )
