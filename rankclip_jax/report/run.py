"""Reads what a run left in its workdir. Knows no plots and no HTML."""

import dataclasses
import functools
import json
import math
import shlex
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rankclip_jax.evals import results

EMBEDDINGS_FILE = "results/openmoji_embeddings.npz"

# What a workdir may hold: the file, and the `--config.mode` of main.py that writes it.
PARTS: Mapping[str, tuple[str, str]] = {
  "config": ("config.json", "train"),
  "environment": ("environment.json", "train"),
  "metrics": ("metrics.jsonl", "train"),
  "results": ("results/*.json", "eval"),
  "embeddings": (EMBEDDINGS_FILE, "eval"),
}

# Keys of a metrics line that are no curves.
_NOT_CURVES = ("step", "time")


@dataclasses.dataclass(frozen=True)
class Curve:
  """One logged quantity; a step that was logged twice keeps its last value.

  `steps` is int64 [points], rising; `values` is float64 [points], NaN for null.
  """

  steps: np.ndarray
  values: np.ndarray


@dataclasses.dataclass(frozen=True)
class Result:
  """One file of results: metrics are fractions or numbers, None is undefined."""

  dataset: str
  task: str
  metrics: Mapping[str, float | None]


@dataclasses.dataclass(frozen=True)
class Embeddings:
  """Held-out embeddings, L2-normalised, with what is needed to show the items."""

  image: np.ndarray  # float32 [images, dim]
  text: np.ndarray  # float32 [texts, dim]
  image_of_text: np.ndarray  # int [texts]
  captions: tuple[str, ...]  # [texts]
  keys: tuple[str, ...]  # [images]
  thumbnails: np.ndarray  # uint8 [images, height, width, 3]

  @functools.cached_property
  def main_text(self) -> np.ndarray:
    """The text row of every image's main (first) caption [images]."""
    return np.unique(self.image_of_text, return_index=True)[1]

  @functools.cached_property
  def index_of_key(self) -> dict[str, int]:
    """The image row of every key."""
    return {key: row for row, key in enumerate(self.keys)}

  def main_caption(self, image: int) -> str:
    """The main caption of an image row."""
    return self.captions[self.main_text[image]]


@dataclasses.dataclass(frozen=True)
class Run:
  """Everything the report shows of one run; `absent` says why a part is not there."""

  name: str
  workdir: Path
  config: Mapping[str, Any]
  environment: Mapping[str, Any]
  curves: Mapping[str, Curve]
  logged: tuple[float, float] | None  # first and last time of a line, Unix seconds
  results: tuple[Result, ...]
  embeddings: Embeddings | None
  absent: Mapping[str, str]

  def command(self, mode: str) -> str:
    """The command line that works on this run in `mode`."""
    workdir = shlex.quote(str(self.workdir))
    return f"python main.py --config=... --workdir={workdir} --config.mode={mode}"

  def setting(self, *paths: str) -> str | None:
    """The first of these dotted config paths that is set, as text; None if none is.

    A path that ends at a group of settings gives the group's `name`.
    """
    for path in paths:
      node: Any = self.config
      for part in path.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
      if isinstance(node, Mapping):
        node = node.get("name")
      if node is not None:
        return str(node)
    return None


def read_runs(workdirs: Sequence[Path]) -> tuple[Run, ...]:
  """Reads every workdir; the names are distinct even where the folders' are not.

  Raises:
    ValueError: no workdir, one that does not exist or holds no file of a run, or a
      file that breaks its format (with the file and, for metrics, the line).
  """
  paths = [Path(workdir) for workdir in workdirs]
  if not paths:
    raise ValueError("expected at least one workdir, got none")
  return tuple(
    read_run(path, name) for path, name in zip(paths, distinct_names(paths), strict=True)
  )


def distinct_names(paths: Sequence[Path]) -> list[str]:
  """Folder names, with as many parent folders as tell all of them apart.

  The same folder given again gets a number: "run", "run (2)".
  """
  resolved = [path.resolve() for path in paths]
  names = {path: path.name for path in resolved}
  for depth in range(2, max(len(path.parts) for path in resolved) + 1):
    taken = list(names.values())
    if len(set(taken)) == len(taken):
      break
    names = {
      path: str(Path(*path.parts[-depth:])) if taken.count(name) > 1 else name
      for path, name in names.items()
    }
  repeats = [resolved[:place].count(path) for place, path in enumerate(resolved)]
  return [
    f"{names[path]} ({repeat + 1})" if repeat else names[path]
    for path, repeat in zip(resolved, repeats, strict=True)
  ]


def read_run(workdir: Path, name: str) -> Run:
  """Reads one workdir.

  Raises:
    ValueError: it does not exist, holds no file of a run, or holds a broken one.
  """
  if not workdir.is_dir():
    raise ValueError(f"expected the workdir of a run, got {workdir}: no such folder")
  absent = {
    part: "is missing"
    for part, (pattern, _) in PARTS.items()
    if not any(workdir.glob(pattern))
  }
  if len(absent) == len(PARTS):
    files = ", ".join(pattern for pattern, _ in PARTS.values())
    raise ValueError(
      f"expected the workdir of a run, got {workdir}, which holds none of {files};"
      " give the folder that was passed to main.py as --workdir"
    )
  curves, logged = {}, None
  if "metrics" not in absent:
    curves, logged = read_metrics(workdir / "metrics.jsonl")
    if not curves:
      absent["metrics"] = "holds no complete line yet"
  embeddings = None
  if "embeddings" not in absent:
    embeddings = read_embeddings(workdir / EMBEDDINGS_FILE)
    if not (np.isfinite(embeddings.image).all() and np.isfinite(embeddings.text).all()):
      # A run that diverged still deserves a page with its curves.
      embeddings, absent["embeddings"] = None, "holds values that are not finite"
  return Run(
    name=name,
    workdir=workdir,
    config={} if "config" in absent else _read_object(workdir / "config.json"),
    environment=(
      {} if "environment" in absent else _read_object(workdir / "environment.json")
    ),
    curves=curves,
    logged=logged,
    results=_read_results(workdir / "results"),
    embeddings=embeddings,
    absent=absent,
  )


def read_metrics(path: Path) -> tuple[dict[str, Curve], tuple[float, float] | None]:
  """Reads metrics.jsonl into curves by key, and its first and last time.

  A last line that does not parse is left out: the run may be writing it.

  Raises:
    ValueError: any other line is broken; names the file and the line's number.
  """
  lines = path.read_bytes().split(b"\n")
  while lines and not lines[-1].strip():
    lines.pop()
  points: dict[str, dict[int, float]] = {}
  times: list[float] = []
  for number, line in enumerate(lines, start=1):
    try:
      record = json.loads(line)
    except ValueError as error:  # also what bytes that are no UTF-8 raise
      if number == len(lines):
        break
      raise ValueError(f"{path}, line {number}: not a JSON object: {error}") from error
    if not isinstance(record, dict) or not isinstance(record.get("step"), int):
      raise ValueError(
        f"{path}, line {number}: expected an object with an integer 'step',"
        f" got {line[:80].decode(errors='replace')}"
      )
    if isinstance(record.get("time"), int | float):
      times.append(record["time"])
    for key, value in record.items():
      if key in _NOT_CURVES:
        continue
      points.setdefault(key, {})[record["step"]] = _number(value, key, path, number)
  curves = {}
  for key, by_step in points.items():
    steps = sorted(by_step)
    values = np.array([by_step[step] for step in steps], np.float64)
    curves[key] = Curve(np.array(steps, np.int64), values)
  return curves, (min(times), max(times)) if times else None


def _number(value: object, key: str, path: Path, line: int) -> float:
  if value is None:
    return math.nan
  if isinstance(value, int | float):
    return float(value)
  raise ValueError(f"{path}, line {line}: expected a number for {key!r}, got {value!r}")


def read_embeddings(path: Path) -> Embeddings:
  """Reads and checks the arrays of held-out embeddings.

  Raises:
    ValueError: an array is missing or does not fit the others.
  """
  names = [field.name for field in dataclasses.fields(Embeddings)]
  try:
    # Opened here: np.load leaves a file open that turns out to be broken.
    with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
      absent = [name for name in names if name not in file]
      if absent:
        raise ValueError(f"expected the arrays {names}, got none named {absent}")
      arrays = {name: file[name] for name in names}
    _check_embeddings(**arrays)
  except (ValueError, OSError, zipfile.BadZipFile, EOFError) as error:
    raise ValueError(f"{path}: {error}; evaluate the run again") from error
  return Embeddings(
    image=arrays["image"],
    text=arrays["text"],
    image_of_text=arrays["image_of_text"],
    captions=tuple(map(str, arrays["captions"])),
    keys=tuple(map(str, arrays["keys"])),
    thumbnails=arrays["thumbnails"],
  )


def _check_embeddings(
  *,
  image: np.ndarray,
  text: np.ndarray,
  image_of_text: np.ndarray,
  captions: np.ndarray,
  keys: np.ndarray,
  thumbnails: np.ndarray,
) -> None:
  if image.ndim != 2 or text.ndim != 2 or image.shape[1] != text.shape[1]:
    raise ValueError(
      "expected image [images, dim] and text [texts, dim],"
      f" got {list(image.shape)} and {list(text.shape)}"
    )
  images, texts = len(image), len(text)
  if images == 0:
    raise ValueError("expected at least one image, got none")
  if image_of_text.shape != (texts,) or captions.shape != (texts,):
    raise ValueError(
      f"expected image_of_text and captions [{texts}], one for each text,"
      f" got {list(image_of_text.shape)} and {list(captions.shape)}"
    )
  if not np.array_equal(np.unique(image_of_text), np.arange(images)):
    raise ValueError(
      f"expected image_of_text to name each of the {images} images at least once,"
      f" got {len(np.unique(image_of_text))} different values"
    )
  if keys.shape != (images,) or len(np.unique(keys)) != images:
    raise ValueError(
      f"expected {images} different keys, one for each image,"
      f" got shape {list(keys.shape)} with {len(np.unique(keys))} different ones"
    )
  if (
    thumbnails.dtype != np.uint8
    or thumbnails.ndim != 4
    or (len(thumbnails), thumbnails.shape[3]) != (images, 3)
  ):
    raise ValueError(
      f"expected thumbnails uint8 [{images}, height, width, 3],"
      f" got {thumbnails.dtype} {list(thumbnails.shape)}"
    )


def _read_object(path: Path) -> dict[str, Any]:
  try:
    value = json.loads(path.read_bytes())
  except ValueError as error:
    raise ValueError(f"{path}: not JSON: {error}") from error
  if not isinstance(value, dict):
    raise ValueError(f"{path}: expected a JSON object, got {type(value).__name__}")
  return value


def _read_results(directory: Path) -> tuple[Result, ...]:
  found = []
  for record in results.read_all(directory):
    dataset, task, metrics = (record[key] for key in results.REQUIRED_KEYS)
    if not isinstance(metrics, dict) or not all(
      value is None or isinstance(value, int | float) for value in metrics.values()
    ):
      raise ValueError(
        f"{directory}: expected numbers or null as metrics of {dataset}, {task},"
        f" got {metrics!r}"
      )
    found.append(Result(str(dataset), str(task), metrics))
  return tuple(found)
