"""Work that processes share by rows, and what they know of each other."""

import jax
import numpy as np
from jax.experimental import multihost_utils

from rankclip_jax.together import of_all


def own(count: int) -> range:
  """The rows of this process, of `count` in all."""
  return range(count)[jax.process_index() * _most(count) :][: _most(count)]


def joined(part: np.ndarray, count: int) -> np.ndarray:
  """The parts of all processes, one after the other.

  Args:
    part: what this process made of its `own(count)`, [rows, ...].
    count: of all rows.
  """
  if jax.process_count() == 1:
    return part
  padding = [(0, _most(count) - len(part))] + [(0, 0)] * (part.ndim - 1)
  parts = multihost_utils.process_allgather(np.pad(part, padding))
  return np.reshape(parts, (-1, *part.shape[1:]))[:count]


def everywhere(flag: bool) -> bool:
  """Whether all processes say so."""
  return bool(of_all(flag).all())


def of_first(value: int) -> int:
  """What process 0 says."""
  return int(of_all(value)[0])


def _most(count: int) -> int:
  """Rows of every process but the last ones."""
  return -(-count // jax.process_count())
