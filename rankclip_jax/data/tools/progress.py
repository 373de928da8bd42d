"""What a person watches while a tool works; results go elsewhere."""

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

_SECONDS_BETWEEN_LINES = 10.0


class Progress:
  """A bar on standard error if it is a terminal, else a line now and then; a context."""

  def __init__(self, what: str, total: int):
    self._what, self._total = what, total
    self._console = Console(stderr=True, soft_wrap=True, markup=False, highlight=False)
    self._began = self._last_line = time.monotonic()
    self._first: int | None = None
    self._bar = Bar(
      TextColumn("{task.description}"),
      BarColumn(bar_width=30),
      MofNCompleteColumn(),
      TextColumn("{task.fields[speed]}"),
      TimeRemainingColumn(elapsed_when_finished=True),
      console=self._console,
      disable=not self._console.is_terminal,
    )
    self._task = self._bar.add_task(what, total=total, speed="")

  def __enter__(self) -> "Progress":
    self._bar.start()
    return self

  def __exit__(self, *_) -> None:
    self._bar.stop()

  def update(self, done: int) -> None:
    """Shows that so many are done; the first call says what was done before."""
    now = time.monotonic()
    if self._first is None:
      self._first, self._began = done, now
    speed = (done - self._first) / max(now - self._began, 1e-9)
    text = f"{speed:,.0f}/s" if speed else ""
    self._bar.update(self._task, completed=done, speed=text)
    if not self._console.is_terminal and now - self._last_line >= _SECONDS_BETWEEN_LINES:
      self._last_line = now
      left = f", {text}, {(self._total - done) / speed:,.0f} s left" if speed else ""
      self._console.print(f"{self._what}: {done:,} of {self._total:,}{left}")
