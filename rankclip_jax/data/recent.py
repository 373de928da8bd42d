"""What was loaded last, up to a number of bytes."""

import collections
import concurrent.futures
import threading
from collections.abc import Callable, Hashable
from typing import Any


class Recent:
  """What was loaded last, up to a number of bytes, once for all threads that want it."""

  def __init__(self, limit: int):
    self._limit, self._lock = limit, threading.Lock()
    self._held = collections.OrderedDict[Hashable, concurrent.futures.Future]()
    self._sizes: dict[Hashable, int] = {}  # of those that are there by now
    self._total = 0

  def get(self, key: Hashable, load: Callable[[], tuple[Any, int]]) -> Any:
    """What `load` returned for `key`, with its size; the others wait for the first."""
    with self._lock:
      future = self._held.get(key)
      first = future is None
      if future is None:
        future = self._held[key] = concurrent.futures.Future()
      self._held.move_to_end(key)
    if first:
      try:
        value, size = load()
      except BaseException as error:
        with self._lock:
          del self._held[key]
        future.set_exception(error)
        raise
      future.set_result(value)
      self._count(key, size)
    return future.result()

  def _count(self, key: Hashable, size: int) -> None:
    """Takes in what was loaded, and forgets what was not wanted for longest."""
    with self._lock:
      self._sizes[key] = size
      self._total += size
      while self._total > self._limit and len(self._sizes) > 1:
        oldest = next(k for k in self._held if k in self._sizes and k != key)
        del self._held[oldest]
        self._total -= self._sizes.pop(oldest)
