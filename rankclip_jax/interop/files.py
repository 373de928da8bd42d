"""Tensors and JSON from files of others, with errors that name the file."""

import json
import pathlib
from typing import Any

import ml_dtypes  # noqa: F401  (tells NumPy what bfloat16 is)
import numpy as np
import safetensors

from rankclip_jax.interop import torch_archive

_FLOATS_AND_INTEGERS = {
  *("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL")
}
_LENGTH = 8  # bytes of a safetensors file before its header, a JSON object
_LFS = b"version https://git-lfs.github.com/spec"


def read_tensors(path: pathlib.Path) -> Any:
  """What a file of weights holds: tensors as arrays, in whatever containers it has.

  Args:
    path: a file of safetensors or an archive of PyTorch, whatever it is called; of the
      latter, only tensors and plain containers are read and nothing is ever executed.

  Raises:
    ValueError: if it is neither, or damaged, or holds numbers in no known format.
  """
  refuse_pointer(path)
  with path.open("rb") as file:
    head = file.read(_LENGTH + 1)
  if head[_LENGTH:] == b"{" and not head.startswith(b"PK"):
    return _read_safetensors(path)
  return torch_archive.load(path)


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """The object in a JSON file.

  Raises:
    ValueError: if the file is not there, is no JSON or holds no object.
  """
  text = read_text(path)
  try:
    value = json.loads(text)
  except (ValueError, RecursionError) as error:  # RecursionError: nested too deeply
    raise ValueError(f"{path} is not valid JSON ({error}); get it again.") from None
  if not isinstance(value, dict):
    raise ValueError(f"{path} should hold a JSON object, got {type(value).__name__}.")
  return value


def read_text(path: pathlib.Path) -> str:
  """The text in a file; a ValueError if it is not there or is no UTF-8."""
  if not path.is_file():
    raise ValueError(f"{path} is missing; get it from where the weights are from.")
  refuse_pointer(path)
  try:
    return path.read_text(encoding="utf-8")
  except UnicodeDecodeError as error:
    raise ValueError(f"{path} is no text ({error}); get it again.") from None


def refuse_pointer(path: pathlib.Path) -> None:
  """Raises a ValueError if `path` is empty, or git-lfs's stand-in for a large file."""
  with path.open("rb") as file:
    head = file.read(len(_LFS))
  if head == _LFS:
    raise ValueError(
      f"{path} is a git-lfs pointer and not the file itself; run `git lfs pull` in its "
      "repository."
    )
  if not head:
    raise ValueError(f"{path} is empty; copy or download it again.")


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
  try:
    with safetensors.safe_open(path, framework="np") as file:
      kinds = {key: file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118
      for key, kind in kinds.items():
        if kind not in _FLOATS_AND_INTEGERS:
          raise ValueError(
            f"{path} holds {key} as {kind}; quantised weights cannot be read, give the "
            "float32, float16 or bfloat16 ones."
          )
      return {key: file.get_tensor(key) for key in kinds}
  except safetensors.SafetensorError as error:
    raise ValueError(
      f"{path} is damaged or no safetensors file ({error}); copy or download it again."
    ) from None
