"""What evaluations left: results, those of each checkpoint, and what was skipped."""

import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rankclip_jax.evals import results
from rankclip_jax.report import datasets
from rankclip_jax.report.logged import Curve

_OF_STEP = re.compile(r"step_(\d+)$")

# Metrics that are fractions by their definition, shown in percent.
# With their mean and standard deviation over draws of k examples a class.
_FRACTION = re.compile(
  r"(recall@\d+|acc\d+|mean_per_class_recall)(_k\d+_(mean|std))?$|overlap$"
)
_ROUNDING = 1e-6

# (data set, task, metric)
Key = tuple[str, str, str]


@dataclasses.dataclass(frozen=True)
class Result:
  """One file of results: metrics are fractions or numbers, None is undefined.

  `model` is the architecture's name, "" where the file has none.
  """

  dataset: str
  task: str
  metrics: Mapping[str, float | None]
  extras: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  model: str = ""


@dataclasses.dataclass(frozen=True)
class Skip:
  """A task that a job left out, and why."""

  dataset: str
  task: str
  reason: str


def read_results(directory: Path) -> tuple[Result, ...]:
  """Every result file of a folder; () if it is missing.

  Data sets are called by CLIP_benchmark's names, whatever the file calls them.

  Raises:
    ValueError: a file is no result, a metric is no number or out of its range, extras
      that the page shows are not as this project writes them, or two files are of the
      same data set and task; names the files.
  """
  found: dict[tuple[str, str], tuple[Path, Result]] = {}
  for path in sorted(directory.glob("*.json")):
    record = results.read(path)
    dataset, task, metrics = (record[key] for key in results.REQUIRED_KEYS)
    if not (isinstance(dataset, str) and isinstance(task, str)):
      raise ValueError(
        f"{path}: expected names of a data set and a task, got {dataset!r}, {task!r}"
      )
    model, extras = record.get("model"), record.get(results.EXTRAS)
    result = Result(
      datasets.canonical(dataset),
      task,
      _metrics(metrics, path),
      _extras(extras, path) if isinstance(extras, dict) else {},
      model if isinstance(model, str) else "",
    )
    other, _ = found.setdefault((result.dataset, task), (path, result))
    if other != path:
      raise ValueError(
        f"{other} and {path} are both of {result.dataset}, {task}; keep one of them"
      )
  return tuple(result for _, result in found.values())


def is_fraction(metric: str) -> bool:
  """Whether a metric is a fraction by its name, and so shown in percent."""
  return bool(_FRACTION.search(metric))


def _metrics(metrics: Any, path: Path) -> dict[str, float | None]:
  if not isinstance(metrics, dict):
    raise ValueError(f"{path}: expected an object of metrics, got {metrics!r}")
  checked = {name: _number(value, name, path) for name, value in metrics.items()}
  for name, value in checked.items():
    if is_fraction(name) and value is not None and abs(value - 0.5) > 0.5 + _ROUNDING:
      raise ValueError(
        f"{path}: expected a fraction from 0 to 1 as {name}, got {value:g}; per cent are"
        " to be divided by 100"
      )
  return checked


def _number(value: Any, name: str, path: Path) -> float | None:
  """A number; None also for NaN, which other tools write for what is undefined."""
  if value is None:
    return None
  if isinstance(value, bool) or not isinstance(value, int | float) or math.isinf(value):
    raise ValueError(f"{path}: expected a finite number or null as {name}, got {value!r}")
  return None if math.isnan(value) else value


def _extras(extras: Mapping[str, Any], path: Path) -> dict[str, Any]:
  """The same, after what the page does arithmetic with was checked."""
  error = _number(extras.get("calibration_error"), "calibration_error", path)
  confusions = extras.get("confusions") or []
  if not isinstance(confusions, list) or not all(map(_is_confusion, confusions)):
    raise ValueError(
      f"{path}: expected confusions as a list of objects with label, prediction, count"
      f" and fraction, got {str(confusions)[:80]}"
    )
  given = {"calibration_error": error, "confusions": confusions}
  return {key: given.get(key, value) for key, value in extras.items()}


def _is_confusion(each: Any) -> bool:
  return (
    isinstance(each, dict)
    and {"label", "prediction"} <= each.keys()
    and all(
      isinstance(each.get(key), int | float) and math.isfinite(each[key])
      for key in ("count", "fraction")
    )
  )


def read_steps(directory: Path) -> dict[Key, Curve]:
  """The results of checkpoints, `step_<step>/*.json`, as a curve for every metric.

  Raises:
    ValueError: as `read_results`.
  """
  points: dict[Key, dict[int, float]] = {}
  for folder in directory.glob("step_*"):
    if matched := _OF_STEP.match(folder.name):
      for key, value in by_key(read_results(folder)).items():
        number = math.nan if value is None else value
        points.setdefault(key, {})[int(matched[1])] = number
  return {
    key: Curve(
      np.array(sorted(by_step), np.int64),
      np.array([by_step[step] for step in sorted(by_step)], np.float64),
    )
    for key, by_step in sorted(points.items())
  }


def read_skipped(directory: Path, done: Sequence[Result]) -> tuple[Skip, ...]:
  """What jobs left out, `skipped/*.json`, and nobody did since.

  Of several checkpoints it is what they left out of the last.

  Raises:
    ValueError: a file is no note of a job; names it.
  """
  found: dict[tuple[str, str], Skip] = {}
  for path in sorted((directory / "skipped").glob("*.json")):
    try:
      last = json.loads(path.read_bytes())["visits"][-1:]
      skips = [_skip(**entry) for visit in last for entry in visit["skipped"]]
    except (ValueError, TypeError, KeyError) as error:
      raise ValueError(
        f"{path}: expected visits with what was skipped: {type(error).__name__}: {error};"
        " remove it or evaluate again"
      ) from error
    found |= {(skip.dataset, skip.task): skip for skip in skips}
  measured = {(result.dataset, result.task) for result in done}
  return tuple(skip for key, skip in sorted(found.items()) if key not in measured)


def _skip(dataset: str, task: str, reason: str) -> Skip:
  if not all(isinstance(text, str) for text in (dataset, task, reason)):
    raise TypeError(f"got {dataset!r}, {task!r}, {reason!r}")
  return Skip(datasets.canonical(dataset), task, reason)


def by_key(measured: Sequence[Result]) -> dict[Key, float | None]:
  """Every metric of every result."""
  return {
    (result.dataset, result.task, metric): value
    for result in measured
    for metric, value in result.metrics.items()
  }
