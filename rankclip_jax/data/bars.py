"""Bars on terminals, for whoever waits for a source."""

import contextlib
from collections.abc import Callable, Iterator

import rich.console
import rich.progress

Show = Callable[[int], object]  # told how much more is done


@contextlib.contextmanager
def bar(what: str, total: int, *, shown: bool) -> Iterator[Show]:
  """A function that moves a bar on; if it is to be `shown`, it is, on terminals."""
  console = rich.console.Console(stderr=True)
  hidden = not (shown and console.is_terminal)
  with rich.progress.Progress(console=console, disable=hidden, transient=True) as bars:
    task = bars.add_task(what, total=total)
    yield lambda step: bars.advance(task, step)
