"""Signals by which schedulers and people end a run, remembered until it asks."""

import logging
import signal
import threading
from typing import Any

from rankclip_jax.together import of_all

# Slurm's --signal sends whichever the user names; SIGUSR1 is the usual one.
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

log = logging.getLogger(__name__)


class Stopped(Exception):
  """A run ends early because a signal asked for it."""


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
    """Raises `Stopped` on every process once the signal has come to any of them."""
    if of_all(self.received).any():
      raise Stopped

  def _remember(self, number, frame) -> None:
    del frame
    if self.received and number == signal.SIGINT:
      raise KeyboardInterrupt  # a second Ctrl-C means now
    if self._said and not self.received:
      log.warning("%s", self._said)
    self.received = True
