"""A task's files in a folder of results: one JSON, and predictions where they are wanted.

A result has a key, which stands for all that it depends on.
"""

import contextlib
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import numpy as np

from rankclip_jax.evals import results
from rankclip_jax.suite import arrays

_PREDICTIONS = "predictions"


def predictions_of(directory: pathlib.Path, dataset: str, task: str) -> pathlib.Path:
  """Where the predictions of a task lie."""
  name = results.path_of(directory, dataset, task).with_suffix(".npz").name
  return directory / _PREDICTIONS / name


def is_done(
  directory: pathlib.Path, dataset: str, task: str, key: str, *, predicted: bool
) -> bool:
  """Whether a task has a result of this key, and if `predicted` its predictions."""
  path = results.path_of(directory, dataset, task)
  if not path.is_file():
    return False
  same = False
  with contextlib.suppress(ValueError):  # what cannot be read is done again
    same = results.read(path).get(results.EXTRAS, {}).get("key") == key
  if not same or not predicted:
    return same
  stored = arrays.read(predictions_of(directory, dataset, task), ("key",))
  return stored is not None and str(stored["key"]) == key


def write(
  directory: pathlib.Path,
  *,
  dataset: str,
  task: str,
  extras: Mapping[str, Any],
  predictions: Mapping[str, np.ndarray],
  **fields: Any,
) -> None:
  """Writes a result, whose `extras` have the key; `fields` are more of `results.write`.

  The JSON comes last, because it says that the task is done.
  """
  path = predictions_of(directory, dataset, task)
  if predictions:
    arrays.write(path, {**predictions, "key": np.array(extras["key"])})
  else:
    path.unlink(missing_ok=True)  # of other weights
  results.write(directory, dataset=dataset, task=task, extras=extras, **fields)


def publish(
  source: pathlib.Path, directory: pathlib.Path, dataset: str, task: str
) -> None:
  """Copies a task's files from one folder of results to another."""
  old = predictions_of(source, dataset, task)
  new = predictions_of(directory, dataset, task)
  if old.is_file():
    new.parent.mkdir(parents=True, exist_ok=True)
    with results.replacing(new) as temporary:
      shutil.copyfile(old, temporary)
  else:
    new.unlink(missing_ok=True)
  path = results.path_of(directory, dataset, task)
  text = results.path_of(source, dataset, task).read_text(encoding="utf-8")
  results.write_text(path, text)
