"""Several files as one sequence: which of them has what a number means."""

import bisect
import itertools
import operator
from collections.abc import Iterable


class Offsets:
  """Where in several files the rows are that are counted through all of them."""

  def __init__(self, counts: Iterable[int], whose: str):
    """Adds them up.

    Args:
      counts: rows of each file, of one at least.
      whose: how errors begin: "a.csv has rows".
    """
    self._ends, self._whose = list(itertools.accumulate(counts)), whose

  def __len__(self) -> int:
    return self._ends[-1]

  def locate(self, index: int) -> tuple[int, int]:
    """Number of the file, and of the row within it.

    Raises:
      IndexError: if there is no such row; none is counted from the end.
    """
    place = operator.index(index)
    if not 0 <= place < len(self):
      raise IndexError(f"{self._whose} 0 to {len(self) - 1}, got {index}")
    file = bisect.bisect_right(self._ends, place)
    return file, place - (self._ends[file - 1] if file else 0)
