"""Signals by which schedulers and people end a run, remembered until it asks.

This must be quick to import: `main` asks for it before all else.
"""

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, NoReturn

# sysexits' EX_TEMPFAIL, "try again": a scheduler should start the same command again.
EXIT_STOPPED = 75

# Slurm's --signal sends whichever the user names; SIGUSR1 is the usual one.
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

_place: int | None = None  # of this process among several
_patience = 0.0  # of process 0, in seconds

log = logging.getLogger(__name__)


class Stopped(Exception):
  """A run ends early because a signal asked for it."""


def leave_when_told() -> None:
  """From now on SIGTERM and SIGUSR1 end this process with code 75, and SIGUSR2 does not.

  For the time in which there is nothing to save. The first process of a container, too,
  hears only the signals that it asks for.
  """
  for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, _leave)
  # It asks the loop for a profile, and must not end what is no loop, or not one yet.
  signal.signal(signal.SIGUSR2, signal.SIG_IGN)


def _leave(number, frame) -> None:
  del frame
  name = signal.Signals(number).name
  with contextlib.suppress(OSError):  # of a full disk, which must not change the code
    print(f"{name} came when nothing was left to save.", file=sys.stderr, flush=True)
  if _place is not None:
    leave_others(EXIT_STOPPED)
  sys.exit(EXIT_STOPPED)


def joined(index: int, patience: float) -> None:
  """Notes that this process is one of several from now on.

  Args:
    index: its place among them.
    patience: seconds that process 0 leaves later than it is told, see `leave_others`.
  """
  global _place, _patience
  _place, _patience = index, patience


def leave_others(code: int) -> NoReturn:
  """`leave_now`, where other processes may be told to leave a little later.

  An orderly end would wait for them, and they for this one. JAX's coordination service is
  process 0's, and without it the others are ended with 134: it stays until they have
  heard their own signals.
  """
  if _place == 0:
    time.sleep(_patience)
  leave_now(code)


def leave_now(code: int) -> NoReturn:
  """Ends this process without waiting for its threads, or for other processes."""
  for stream in (sys.stdout, sys.stderr):
    with contextlib.suppress(OSError, ValueError):  # a full disk, a closed one
      stream.flush()
  os._exit(code)


class Left:
  """Threads that may stay behind when the process ends, because nothing can end them.

  Attributes:
    any: whether there are some.
    with_others: whether other processes come to the same end; then they are waited for.
  """

  any = with_others = False

  @classmethod
  def behind(cls, *, with_others: bool) -> None:
    """Notes some."""
    cls.any, cls.with_others = True, cls.with_others or with_others


@contextlib.contextmanager
def keeping_handlers() -> Iterator[None]:
  """Puts the handlers of this module's signals back after something that sets its own.

  JAX's runtime sets one for SIGTERM, for its preemption sync point.
  """
  before = {number: signal.getsignal(number) for number in _SIGNALS}
  try:
    yield
  finally:
    if threading.current_thread() is threading.main_thread():
      for number, handler in before.items():
        signal.signal(number, handler)


class StopSignal:
  """SIGTERM, SIGINT and SIGUSR1, remembered until the loop asks. Use as a context.

  Args:
    said: what is logged when the first arrives; "" is nothing.
  """

  def __init__(self, said: str = ""):
    self.received = False
    self._said = said
    self._previous: dict[int, Any] = {}

  def __enter__(self) -> "StopSignal":
    if threading.current_thread() is threading.main_thread():
      for number in _SIGNALS:
        self._previous[number] = signal.signal(number, self._remember)
    return self

  def __exit__(self, *_) -> None:
    for number, handler in self._previous.items():
      signal.signal(number, handler)

  def check(self) -> None:
    """Raises `Stopped` once one has come."""
    if self.received:
      raise Stopped

  def _remember(self, number, frame) -> None:
    del frame
    if self.received and number == signal.SIGINT:
      raise KeyboardInterrupt  # a second Ctrl-C means now
    if self._said and not self.received:
      log.warning("%s", self._said)
    self.received = True
