"""Captures of XLA's profiler: of chosen steps, and of the next ones on a signal."""

import contextlib
import logging
import pathlib
import signal
import threading
from collections.abc import Callable, Collection
from typing import Any, Self

import jax

DIRECTORY = "profile"
SIGNAL = signal.SIGUSR2

log = logging.getLogger(__name__)


class Captures(contextlib.AbstractContextManager):
  """Starts and ends captures between steps; a context, in which SIGUSR2 asks for one.

  Every process writes its own, because a profile needs no agreement: those of chosen
  steps all of them, on a signal whoever got it. Nothing that goes wrong with a profile
  ends a run.

  Args:
    folder: below which each capture has `step_<first>/process_<index>`.
    steps: after which a capture begins.
    num_steps: that each lasts.
    say: told where a capture lies.
  """

  def __init__(
    self,
    folder: pathlib.Path,
    steps: Collection[int],
    num_steps: int,
    say: Callable[[str], None] = log.warning,
  ):
    self._folder, self._steps, self._num_steps = folder, frozenset(steps), num_steps
    self._say = say
    self._asked = False
    self._previous: Any = None
    self._running: tuple[int, pathlib.Path] | None = None  # until which step, and where

  def __enter__(self) -> Self:
    if threading.current_thread() is threading.main_thread():
      self._previous = signal.signal(SIGNAL, self._ask)
    return self

  def __exit__(self, *_) -> None:
    if self._previous is not None:
      signal.signal(SIGNAL, self._previous)
    self._stop()

  def between(self, step: int, state: Any) -> bool:
    """After `step` steps, and before the next; `state` is what the last one computes.

    Returns:
      Whether a capture began or ended, which takes time that is no step's.
    """
    ends = bool(self._running) and step >= self._running[0]
    if ends:
      jax.block_until_ready(state)  # or the capture would end before the device does
      self._stop()
    begins = not self._running and (self._asked or step in self._steps)
    if begins:
      self._start(step)
    return ends or begins

  def _start(self, step: int) -> None:
    self._asked = False
    path = self._folder / f"step_{step}" / f"process_{jax.process_index()}"
    try:
      jax.profiler.start_trace(path)
    except Exception as error:  # of several libraries; the run is worth more
      self._say(f"No profile: {error}")
      return
    self._running = step + self._num_steps, path

  def _stop(self) -> None:
    if not self._running:
      return
    (_, path), self._running = self._running, None
    try:
      jax.profiler.stop_trace()
    except Exception as error:
      self._say(f"No profile: {error}")
      return
    self._say(f"Profile: tensorboard --logdir {path} (with tensorboard-plugin-profile).")

  def _ask(self, number, frame) -> None:
    del number, frame
    self._asked = not self._running
