"""Training's input as the loop sees it: batches, their cost, and what was wrong."""

import os
import time
from collections.abc import Callable, Iterator

import numpy as np

from rankclip_jax.data.bad_examples import Allowance

# The share of its time that a run may wait for data, over so many steps, before it is
# told what to change.
_TOLERATED = 0.2
_WINDOW = 50

Batch = dict[str, np.ndarray]


class Feed:
  """Batches one after the other.

  The next one is asked for, and sent to the devices, while they work on the last one, so
  a wait here costs only what exceeds a step.

  Args:
    batches: of `pipeline.train_batches`.
    allowance: of bad examples.
    say: told once if the input is what a run waits for.
    num_threads, num_workers: that make the batches now, for the advice.
  """

  def __init__(
    self,
    batches: Iterator[Batch],
    allowance: Allowance,
    say: Callable[[str], None],
    *,
    num_threads: int,
    num_workers: int,
  ):
    self._batches, self._allowance, self._say = batches, allowance, say
    self._threads, self._workers = num_threads, num_workers
    self._waits: list[float] = []
    self._warned = False
    self._began = time.perf_counter()

  def next(self) -> tuple[Batch, np.ndarray, dict[str, float]]:
    """What goes to the devices, the examples' ids, and numbers of the host.

    Raises:
      ValueError: if an example cannot be used, or too many cannot.
    """
    began = time.perf_counter()
    batch = next(self._batches)
    waited = time.perf_counter() - began
    ids, bad = batch.pop("id"), int(batch.pop("replaced").sum())
    self._allowance.count(len(ids), bad)
    self._watch(waited)
    return batch, ids, {"data_wait_seconds": waited, "replaced_examples": float(bad)}

  def _watch(self, waited: float) -> None:
    self._waits.append(waited)
    if len(self._waits) < _WINDOW or self._warned:
      return
    now = time.perf_counter()
    share = sum(self._waits) / (now - self._began)
    if share > _TOLERATED:
      self._warned = True
      self._say(advice(share, self._threads, self._workers, os.cpu_count() or 1))
    self._waits, self._began = [], now


def advice(share: float, threads: int, workers: int, cores: int) -> str:
  """What to change if a run waits for its data for `share` of its time."""
  readers = threads * max(workers, 1)
  now = f"{threads} threads" + (f" in each of {workers} workers" if workers else "")
  if readers < cores:
    more = (
      f"this host has {cores} cores, the loader {now}: raise --config.data.num_threads "
      f"to {cores}, or give it processes with --config.data.num_workers"
    )
  else:
    more = (
      f"all {cores} cores of this host read already ({now}): store smaller pictures "
      "(python -m rankclip_jax.data reshard --size=256), or use fewer devices a host"
    )
  return (
    f"The devices wait for data {share:.0%} of the time; {more}. "
    "python -m rankclip_jax.data bench says where the time goes."
  )
