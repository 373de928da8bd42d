"""Ctrl-C, which reaches every process of a terminal, left to the one that decides."""

import contextlib
import signal
from collections.abc import Iterator
from multiprocessing import resource_tracker


@contextlib.contextmanager
def blocked() -> Iterator[None]:
  """Processes and threads that are started within never see Ctrl-C.

  They inherit the mask. This process may see it at any time: its other threads do.
  """
  resource_tracker.ensure_running()  # which would lift the mask when it starts
  before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
  try:
    yield
  finally:
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
