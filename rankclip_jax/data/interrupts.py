"""Signals that reach all processes of a job, left to the one that decides."""

import contextlib
import signal
from collections.abc import Iterator
from multiprocessing import resource_tracker

_OTHERS_DECIDE = {signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2}


@contextlib.contextmanager
def blocked(*more: signal.Signals) -> Iterator[None]:
  """Processes and threads that are started within never see Ctrl-C, nor SIGUSR1 and 2.

  They inherit the mask. This process may see it at any time: its other threads do.

  Args:
    more: such signals; SIGTERM only of processes that are ended otherwise, since it is
      what multiprocessing ends its own by.
  """
  resource_tracker.ensure_running()  # which would lift the mask when it starts
  before = signal.pthread_sigmask(signal.SIG_BLOCK, _OTHERS_DECIDE | set(more))
  try:
    yield
  finally:
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
