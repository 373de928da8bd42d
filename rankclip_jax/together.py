"""Several processes that fail together, so that none waits for one that has left."""

import contextlib
from collections.abc import Callable, Iterator
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from rankclip_jax.stopping import Stopped

_T = TypeVar("_T")

# What a process has met in common work.
_FINE, _STOPPED, _FAILED = range(3)


def together(work: Callable[[], _T]) -> _T:
  """What `work` returns; if it fails on any process, all of them fail and none waits.

  `work` itself must not wait for other processes.

  Raises:
    Exception: what `work` raises here.
    Stopped: on all of them, if it is raised on any and fails on none.
    ValueError: naming the process, where it fails elsewhere.
  """
  result, error = None, None
  try:
    result = work()
  except Exception as caught:
    error = caught
  met = of_all(_met(error))
  if error is not None and not isinstance(error, Stopped):
    raise error
  if failed := np.flatnonzero(met == _FAILED).tolist():
    raise ValueError(f"Process {failed[0]} failed; its own message says why. All stop.")
  if (met == _STOPPED).any():
    raise Stopped
  return result  # pyright: ignore[reportReturnType]


def _met(error: Exception | None) -> int:
  if error is None:
    return _FINE
  return _STOPPED if isinstance(error, Stopped) else _FAILED


def by_first(work: Callable[[], _T]) -> _T | None:
  """Work of process 0, and there its result; if it fails there, all fail."""
  return together(lambda: work() if jax.process_index() == 0 else None)


@contextlib.contextmanager
def of_first(context: contextlib.AbstractContextManager) -> Iterator[None]:
  """A context that process 0 enters and leaves; if entering fails, all fail."""
  with contextlib.ExitStack() as stack:
    by_first(lambda: stack.enter_context(context))
    yield


def of_all(own: int) -> np.ndarray:
  """What every process passes, a number of at most 31 bits or a flag, [processes]."""
  if jax.process_count() == 1:
    return np.array([own])
  return np.reshape(multihost_utils.process_allgather(np.array(own)), -1)


def stop_if_any(told: bool) -> None:
  """Raises `Stopped` on every process if any of them was told to stop."""
  if of_all(told).any():
    raise Stopped


def digests_of_all(digest: str) -> list[str]:
  """The digest, in hexadecimal and equally long, of every process."""
  if jax.process_count() == 1:
    return [digest]
  own = np.frombuffer(bytes.fromhex(digest), np.uint8)
  everyone = np.reshape(multihost_utils.process_allgather(own), (-1, len(own)))
  return [each.tobytes().hex() for each in everyone]


def check_same(digest: str, what: str) -> None:
  """Refuses to go on where processes differ in what `digest`, in hexadecimal, is of.

  Raises:
    ValueError: on all of them, naming the first that differs from process 0.
  """
  first, *others = digests_of_all(digest)
  if differ := [i for i, other in enumerate(others, 1) if other != first]:
    raise ValueError(
      f"Process {differ[0]} has other {what} than process 0; give all of them the same."
    )
