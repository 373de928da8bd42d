"""Numbers of a run: JSON lines are the truth, TensorBoard is a mirror."""

import contextlib
import json
import math
import pathlib
import time
from collections.abc import Mapping
from typing import Self

import tensorboardX

FILE = "metrics.jsonl"
BOARD = "tensorboard"


class MetricsLog:
  """Writes `{"step", "time", name: value, ...}`, one object a line.

  Opening it for a run that goes on at `step` drops what was written beyond that step,
  and a last line that a killed process left torn.
  """

  def __init__(self, workdir: pathlib.Path, *, step: int = 0):
    path = workdir / FILE
    _drop_after(path, step)
    self._file = path.open("a", encoding="utf-8")
    self._board = tensorboardX.SummaryWriter(
      str(workdir / BOARD), purge_step=step + 1 if step else None
    )

  def write(self, step: int, values: Mapping[str, float | None]) -> None:
    """Appends the values after `step` steps. What is not finite is written as null."""
    finite = {k: _finite(v) for k, v in values.items()}
    line = {"step": step, "time": round(time.time(), 3), **finite}
    self._file.write(json.dumps(line) + "\n")
    self._file.flush()
    _mirror(self._board, step, finite)

  def close(self) -> None:
    self._file.close()
    self._board.close()


class Board(contextlib.AbstractContextManager):
  """TensorBoard alone, for numbers whose truth lies elsewhere; a context.

  Args:
    folder: of its own, because TensorBoard reads one growing file of a folder. It is made
      when the first numbers come.
  """

  def __init__(self, folder: pathlib.Path):
    self._folder = folder
    self._writer: tensorboardX.SummaryWriter | None = None

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *_) -> None:
    if self._writer:
      self._writer.close()

  def write(self, step: int, values: Mapping[str, float | None]) -> None:
    """Writes the values of `step`; those that are not finite are left out."""
    self._writer = self._writer or tensorboardX.SummaryWriter(str(self._folder))
    _mirror(self._writer, step, {k: _finite(v) for k, v in values.items()})
    self._writer.flush()


def _mirror(
  board: tensorboardX.SummaryWriter, step: int, values: Mapping[str, float | None]
) -> None:
  for name, value in values.items():
    if value is not None:
      # TensorBoard knows no "@" in names.
      board.add_scalar(name.replace("@", "_at_"), value, step)


def _finite(value: float | None) -> float | None:
  return float(value) if value is not None and math.isfinite(value) else None


def _drop_after(path: pathlib.Path, step: int) -> None:
  if not path.exists():
    return
  kept = []
  for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
    try:
      if json.loads(line)["step"] > step:
        continue
    except json.JSONDecodeError:
      break
    kept.append(line if line.endswith("\n") else line + "\n")
  replacement = path.with_suffix(".tmp")
  replacement.write_text("".join(kept), encoding="utf-8")
  replacement.replace(path)
