"""Signals that reach all processes of a job, left to the one that decides."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from multiprocessing import resource_tracker

_OTHERS_DECIDE = {signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2}


def end_with_parent() -> None:
  """For a process that another one started, and which would outlive it if that is killed.

  It would wait for work for ever, and may pass over the signals that would end it.
  """
  if parent := multiprocessing.parent_process():

    def wait() -> None:
      parent.join()
      os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


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
