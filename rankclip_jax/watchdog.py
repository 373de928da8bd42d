"""Says where every thread stands when a run has not moved for a set time."""

import contextlib
import datetime
import faulthandler
import logging
import pathlib
import threading
import time
from typing import Self

log = logging.getLogger(__name__)


class Watchdog(contextlib.AbstractContextManager):
  """Writes the stacks of all threads whenever nothing was `done` for too long; a context.

  It ends nothing: a first step that compiles for an hour is no fault. Whatever hangs with
  several processes because one of them is gone is ended by JAX's own heartbeats.

  Args:
    path: where stacks are appended.
    seconds: without a sign of progress; 0 is off.
    say: told, in one line, where the stacks are.
  """

  def __init__(self, path: pathlib.Path, seconds: float, say=log.warning):
    self._path, self._seconds, self.say = path, seconds, say
    self._doing = "starting"
    self._since = self._told = time.monotonic()
    self._ended = threading.Event()
    self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

  def __enter__(self) -> Self:
    if self._seconds:
      self._thread.start()
    return self

  def __exit__(self, *_) -> None:
    self._ended.set()
    if self._seconds:
      self._thread.join()

  def doing(self, what: str) -> None:
    """A sign of progress: something ended, and `what` begins."""
    self._doing = what
    self._since = self._told = time.monotonic()

  def _watch(self) -> None:
    while not self._ended.wait(min(self._seconds / 4, 5.0)):
      now = time.monotonic()
      if now - self._told >= self._seconds:
        self._told = now
        self._dump(now - self._since)

  def _dump(self, seconds: float) -> None:
    what = f"{self._doing} has taken {seconds:.0f} s so far"
    try:
      with self._path.open("a", encoding="utf-8") as file:
        now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        file.write(f"{now}: {what}.\n")
        file.flush()
        faulthandler.dump_traceback(file, all_threads=True)
        file.write("\n")
    except OSError as error:
      self.say(f"{what}; stacks could not be written ({error.strerror}).")
      return
    self.say(f"{what}; where every thread stands is in {self._path}.")
