"""Numbers of a run: JSON lines are the truth, TensorBoard is a mirror."""

import json
import math
import pathlib
import time
from collections.abc import Mapping

import tensorboardX

FILE = "metrics.jsonl"


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
      str(workdir / "tensorboard"), purge_step=step + 1 if step else None
    )

  def write(self, step: int, values: Mapping[str, float | None]) -> None:
    """Appends the values after `step` steps. What is not finite is written as null."""
    finite = {k: _finite(v) for k, v in values.items()}
    line = {"step": step, "time": round(time.time(), 3), **finite}
    self._file.write(json.dumps(line) + "\n")
    self._file.flush()
    for name, value in finite.items():
      if value is not None:
        # TensorBoard knows no "@" in names.
        self._board.add_scalar(name.replace("@", "_at_"), value, step)

  def close(self) -> None:
    self._file.close()
    self._board.close()


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
