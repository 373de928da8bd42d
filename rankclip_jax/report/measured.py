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
from rankclip_jax.report.logged import Curve

_OF_STEP = re.compile(r"step_(\d+)$")

# (data set, task, metric)
Key = tuple[str, str, str]


@dataclasses.dataclass(frozen=True)
class Result:
  """One file of results: metrics are fractions or numbers, None is undefined."""

  dataset: str
  task: str
  metrics: Mapping[str, float | None]
  extras: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Skip:
  """A task that a job left out, and why."""

  dataset: str
  task: str
  reason: str


def read_results(directory: Path) -> tuple[Result, ...]:
  """Every result file of a folder; () if it is missing.

  Raises:
    ValueError: a file is no result, or a metric is no number.
  """
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
    extras = record.get(results.EXTRAS)
    extras = extras if isinstance(extras, dict) else {}
    found.append(Result(str(dataset), str(task), metrics, extras))
  return tuple(found)


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
      skips = [Skip(**entry) for visit in last for entry in visit["skipped"]]
    except (ValueError, TypeError, KeyError) as error:
      raise ValueError(
        f"{path}: expected visits with what was skipped: {type(error).__name__}: {error};"
        " remove it or evaluate again"
      ) from error
    found |= {(skip.dataset, skip.task): skip for skip in skips}
  measured = {(result.dataset, result.task) for result in done}
  return tuple(skip for key, skip in sorted(found.items()) if key not in measured)


def by_key(measured: Sequence[Result]) -> dict[Key, float | None]:
  """Every metric of every result."""
  return {
    (result.dataset, result.task, metric): value
    for result in measured
    for metric, value in result.metrics.items()
  }
