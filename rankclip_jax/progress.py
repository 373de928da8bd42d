"""What a person watches: a live bar on a terminal, a line now and then elsewhere."""

import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import (
  BarColumn,
  MofNCompleteColumn,
  Progress,
  TextColumn,
  TimeRemainingColumn,
)

_SHOWN = ("loss", "contrastive_loss", "cross_modal_loss", "in_modal_loss")
_SECONDS_BETWEEN_LINES = 10.0


class TrainingProgress:
  """Step, terms of the loss, examples a second and time left; use as a context."""

  def __init__(self, num_steps: int, *, start: int = 0, quiet: bool = False):
    self._console = Console(soft_wrap=True, quiet=quiet)
    self._num_steps, self._start = num_steps, start
    self._began = self._last_line = time.monotonic()
    self._bar = Progress(
      TextColumn("training"),
      BarColumn(bar_width=20),
      MofNCompleteColumn(),
      TextColumn("{task.fields[terms]}"),
      TimeRemainingColumn(elapsed_when_finished=True),
      console=self._console,
      disable=not self._console.is_terminal,
    )
    self._task = self._bar.add_task("", total=num_steps, completed=start, terms="")

  def __enter__(self) -> "TrainingProgress":
    self._bar.start()
    return self

  def __exit__(self, *_) -> None:
    self._bar.stop()

  def update(self, step: int, values: Mapping[str, float]) -> None:
    """Shows the values after `step` steps."""
    terms = describe(values)
    self._bar.update(self._task, completed=step, terms=terms)
    now = time.monotonic()
    due = now - self._last_line >= _SECONDS_BETWEEN_LINES or step == self._num_steps
    if not self._console.is_terminal and due:
      self._last_line = now
      per_step = (now - self._began) / max(step - self._start, 1)
      left = per_step * (self._num_steps - step)
      self._console.print(f"step {step}/{self._num_steps}  {terms}  {left:.0f} s left")

  def restart_clock(self) -> None:
    """Keeps what has passed out of the time that is left."""
    self._began = time.monotonic()

  def say(self, message: str) -> None:
    """Prints a line above the bar."""
    self._bar.console.print(message, highlight=False)


def describe(values: Mapping[str, float]) -> str:
  """`loss 5.21 contrastive 5.02 ... 812 examples/s`."""
  names = [n for n in _SHOWN if f"train/{n}" in values]
  parts = [f"{n.removesuffix('_loss')} {values[f'train/{n}']:.3f}" for n in names]
  if "examples_per_second" in values:
    parts.append(f"{values['examples_per_second']:.0f} examples/s")
  return "  ".join(parts)
