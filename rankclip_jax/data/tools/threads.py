"""Many threads, results in order, and no more of them in memory than needed."""

import collections
import concurrent.futures
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

In = TypeVar("In")
Out = TypeVar("Out")

# Results made ahead of the one that is waited for, for each thread.
_AHEAD = 4


def in_order(
  function: Callable[[In], Out], items: Iterable[In], threads: int
) -> Iterator[Out]:
  """What `function` makes of the items, in their order, made by several threads.

  `items` may be endless: only a few are taken ahead. An exception is raised in its place,
  and ends it all.
  """
  items = iter(items)
  with concurrent.futures.ThreadPoolExecutor(threads) as pool:
    waiting = collections.deque(
      pool.submit(function, item) for item in itertools.islice(items, _AHEAD * threads)
    )
    try:
      while waiting:
        yield waiting.popleft().result()
        waiting.extend(pool.submit(function, i) for i in itertools.islice(items, 1))
    finally:
      pool.shutdown(wait=False, cancel_futures=True)


def default_count() -> int:
  """Of threads for work that is half reading and half decoding."""
  return max(4, 2 * cores())


def cores() -> int:
  """Cores that this process may use."""
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1
