"""Result files: one JSON per data set and task, as CLIP_benchmark writes it.

Values are fractions and undefined ones are null. What CLIP_benchmark has no place for
goes under the one key `rankclip_jax`.
"""

import contextlib
import json
import math
import os
import re
import secrets
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

REQUIRED_KEYS = ("dataset", "task", "metrics")
EXTRAS = "rankclip_jax"
_EMBEDDINGS = "_embeddings.npz"


def write(
  directory: str | os.PathLike[str],
  *,
  dataset: str,
  task: str,
  metrics: Mapping[str, Any],
  model: str,
  pretrained: str | None,
  extras: Mapping[str, Any],
  language: str = "en",
) -> Path:
  """Writes `<dataset>_<task>.json` atomically and returns its path.

  An existing file of that name is replaced; a reader sees the old or the new one whole.

  Args:
    directory: made if it is missing.
    dataset: as CLIP_benchmark spells it ("vtab/cifar10"); "/" is "-" in the file name.
    task: such as "zeroshot_retrieval".
    metrics: values by name, written in this order; NaN and None become null.
    model: the model's name, such as "ViT-B-32".
    pretrained: which weights these are, or None.
    extras: anything more that JSON can hold.
    language: of the captions or class names.

  Raises:
    ValueError: a name is empty, or a value is infinite or nothing that JSON can hold.
  """
  if not dataset or not task:
    raise ValueError(
      f"expected a name for dataset and task, got dataset={dataset!r}, task={task!r}"
    )
  record = {
    "dataset": dataset,
    "model": model,
    "pretrained": pretrained,
    "task": task,
    "metrics": metrics,
    "language": language,
    EXTRAS: extras,
  }
  content = json.dumps(_plain(record, "result"), indent=2, ensure_ascii=False) + "\n"
  path = path_of(directory, dataset, task)
  path.parent.mkdir(parents=True, exist_ok=True)
  write_text(path, content)
  return path


def path_of(directory: str | os.PathLike[str], dataset: str, task: str) -> Path:
  """Where `write` puts a result."""
  return Path(directory) / f"{dataset}_{task}.json".replace("/", "-")


def embeddings_path(directory: str | os.PathLike[str], dataset: str) -> Path:
  """Where the embeddings lie that results of held-out data were computed from."""
  return Path(directory) / f"{dataset}{_EMBEDDINGS}"


def embedded_dataset(path: Path) -> str:
  """The inverse of `embeddings_path`."""
  return path.name.removesuffix(_EMBEDDINGS)


def held_out_name(source: str, test: str) -> str:
  """What results call held-out data: its file, or the folder of several.

  Args:
    source: `data.source` of the config; the built-in data set is called by it.
    test: `data.test`.
  """
  if source == "openmoji":
    return source
  first = test.split("::")[0].removeprefix("tfds:").rstrip("/")
  folder, _, file = first.rpartition("/")
  stem = re.sub(r"\.\w+$", "", file)
  if re.search(r"[*?{\[]", stem):
    stem = folder.rpartition("/")[2]
  return re.sub(r"[^\w.-]+", "-", stem).strip("-.") or source


def read_all(directory: str | os.PathLike[str]) -> list[dict[str, Any]]:
  """Reads every result file of a directory, sorted by file name; none if it is missing.

  Raises:
    ValueError: a file is not JSON or not a result; the message names it.
  """
  return [read(path) for path in sorted(Path(directory).glob("*.json"))]


def read(path: Path) -> dict[str, Any]:
  """Reads a result file.

  Raises:
    ValueError: it is not JSON or not a result; the message names it.
  """
  remedy = "remove it or repeat the evaluation that wrote it"
  try:
    record = json.loads(path.read_text(encoding="utf-8"))
  except ValueError as error:  # neither UTF-8 nor JSON
    raise ValueError(f"{path}: expected JSON, got {error}: {remedy}") from error
  if not isinstance(record, dict) or any(key not in record for key in REQUIRED_KEYS):
    found = list(record) if isinstance(record, dict) else type(record).__name__
    raise ValueError(
      f"{path}: expected a result with the keys {list(REQUIRED_KEYS)}, got {found}: "
      f"{remedy}"
    )
  if not isinstance(record["metrics"], dict):
    raise ValueError(
      f"{path}: expected metrics by name, got {record['metrics']!r}: {remedy}"
    )
  return record


def write_text(path: Path, content: str) -> None:
  """Writes a file at once: a reader sees the old one or the new one whole."""
  with replacing(path) as temporary:
    temporary.write_text(content, encoding="utf-8")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
  """A file to write, which becomes the one at `path` when that is done."""
  # In the same directory, because os.replace is atomic only within a file system. Its
  # name is nobody else's, on no host, and hidden from `read_all`.
  own = f"{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(4)}"
  temporary = path.with_name(f"{path.name}.{own}.tmp")
  try:
    yield temporary
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)


def _plain(value: Any, where: str) -> Any:
  """Turns numpy scalars, tuples and NaN into what JSON knows; `where` is for errors."""
  if getattr(value, "ndim", None) == 0:  # a scalar of numpy or jax
    value = value.item()
  if value is None or isinstance(value, bool | int | str):
    return value
  if isinstance(value, float):
    if math.isinf(value):
      raise ValueError(f"{where}: expected a finite number or NaN, got {value}")
    return None if math.isnan(value) else value
  if isinstance(value, Mapping):
    for key in value:
      if not isinstance(key, str):
        raise ValueError(f"{where}: expected keys that are strings, got {key!r}")
    return {key: _plain(entry, f"{where}.{key}") for key, entry in value.items()}
  if isinstance(value, list | tuple):
    return [_plain(entry, f"{where}[{i}]") for i, entry in enumerate(value)]
  raise ValueError(
    f"{where}: expected a number, string, list or mapping, got {type(value).__name__}: "
    "convert it first"
  )
