"""The numbers of the step that is still running: read one step late."""

import contextlib
import json
import math
import pathlib
import time
from collections.abc import Callable, Mapping

import jax
import numpy as np
from jaxtyping import Array

from rankclip_jax import metrics
from rankclip_jax.utilisation import Rates, memory


class NonFiniteError(ArithmeticError):
  """A loss or a gradient became infinite or NaN."""


class Pending:
  """The numbers of the step that is still running, and what to do once they are here."""

  def __init__(
    self,
    workdir: pathlib.Path,
    writer: metrics.MetricsLog | None,
    every_steps: int,
    rates: Rates,
    check: Callable[[dict[str, float]], None] = lambda values: None,
  ):
    self._workdir, self._writer, self._every = workdir, writer, every_steps
    self._rates = rates
    self._check = check
    self._step = 0
    self._ids: np.ndarray | None = None
    self._numbers: Mapping[str, Array] = {}
    self._host: Mapping[str, float] = {}
    self._last_read = time.perf_counter()

  def push(self, step, numbers, *, ids, host) -> None:
    """Holds the numbers after `step` steps until the next `read`."""
    self._step, self._numbers, self._ids = step, numbers, ids
    self._host = host

  def read(self) -> tuple[int, dict[str, float]] | None:
    """Waits for the pending numbers, writes them, and returns step and numbers.

    Raises:
      NonFiniteError: if the loss, a gradient or an update is not finite; the example
        ids of the batch are in `workdir/nonfinite.<process>.json`.
      ValueError: if `check` refuses the numbers.
    """
    if not self._numbers:
      return None
    values = {k: float(v) for k, v in jax.device_get(self._numbers).items()}
    now = time.perf_counter()
    seconds, self._last_read = now - self._last_read, now
    self._numbers = {}
    self._check(values)
    if not all(math.isfinite(v) for v in values.values()):
      self._refuse(values)
    values |= {**self._host, "step_seconds": seconds, **self._rates.of(seconds)}
    if self._writer and self._step % self._every == 0:
      self._writer.write(self._step, values | memory())
    return self._step, values

  def restart_clock(self) -> None:
    """Keeps time spent outside of steps out of the next step's seconds."""
    self._last_read = time.perf_counter()

  def _refuse(self, values: Mapping[str, float]) -> None:
    ids = [] if self._ids is None else self._ids.tolist()
    bad = {k: str(v) for k, v in values.items() if not math.isfinite(v)}
    path = self._workdir / f"nonfinite.{jax.process_index()}.json"
    found = json.dumps({"step": self._step, "example_ids": ids, **bad}) + "\n"
    with contextlib.suppress(OSError):  # of a full disk, which is not what to tell
      path.write_text(found, encoding="utf-8")
    raise NonFiniteError(
      f"Step {self._step} gave {bad}. No checkpoint was written since; the last good one "
      f"is untouched. The batch's example ids are {ids[:8]}... (all {len(ids)} in "
      f"{path.name}). Lower optim.learning_rate, set optim.clip_norm=1, or look at these "
      "examples."
    )
