"""What a run logged while it trained: metrics.jsonl as curves."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np

# Keys of a metrics line that are no curves.
_NOT_CURVES = ("step", "time")


@dataclasses.dataclass(frozen=True)
class Curve:
  """One logged quantity; a step that was logged twice keeps its last value.

  `steps` is int64 [points], rising; `values` is float64 [points], NaN for null.
  """

  steps: np.ndarray
  values: np.ndarray


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
