"""Training's input as the loop sees it: batches, their cost, and what was wrong."""

import concurrent.futures
import os
import time
from collections.abc import Callable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from rankclip_jax.data.bad_examples import Allowance
from rankclip_jax.data.rows import Batch
from rankclip_jax.wishes import Wishes, any_of

# The share of its time that a run may wait for data, over so many steps, before it is
# told what to change.
_TOLERATED = 0.2
_WINDOW = 50


class Feed:
  """Batches one after the other.

  The next one is asked for, and sent to the devices, while they work on the last one;
  a wait is the time that they have nothing to do.

  With several processes, one whose data fails may not leave: the others would wait for
  it within the step. It hands out `blank` rows that say so, and once the numbers of that
  step are here, one step late and before anything is saved, all raise together.

  Args:
    batches: of `pipeline.train_batches`.
    blank: a batch of this process's shape.
    allowance: of bad examples, over all processes.
    wishes: of this process, which go with every batch.
    say: told once if the input is what a run waits for.
    num_threads, num_workers: that make the batches now, for the advice.
  """

  def __init__(
    self,
    batches: Iterator[Batch],
    blank: Batch,
    allowance: Allowance,
    wishes: Wishes,
    say: Callable[[str], None],
    *,
    num_threads: int,
    num_workers: int,
  ):
    self._batches, self._blank, self._allowance = batches, blank, allowance
    self._wishes = wishes
    self._say, self._threads, self._workers = say, num_threads, num_workers
    self._failure: Exception | None = None
    self._watcher = concurrent.futures.ThreadPoolExecutor(1, "watch")
    self._ready: concurrent.futures.Future[float] | None = None
    self._waits: list[float] = []
    self._seconds = 0.0  # that the waits are a part of
    self._left: float | None = None  # when the last batch was handed out
    self._warned = False

  def next(self) -> tuple[Batch, np.ndarray, float]:
    """What goes to the devices, the examples' ids, and seconds the devices waited.

    Of the batch, "replaced" and "wishes" are for `counts`.

    Raises:
      ValueError: if this is the only process, and an example cannot be used.
    """
    began = time.perf_counter()
    batch = self._next()
    waited = self._idle_since(began)
    self._watch(waited)
    ids = batch.pop("id")
    return {**batch, "wishes": self._wishes.rows(len(ids))}, ids, waited

  def given(self, numbers: Mapping[str, Array]) -> None:
    """Tells what the devices are now to compute; they are busy until it is there."""
    self._ready = self._watcher.submit(_when_ready, numbers)

  def check(self, values: dict[str, float]) -> None:
    """Judges what `counts` found in a step; takes what is no metric out of `values`.

    Raises:
      ValueError: if a process could not read its data, or too many examples are bad.
    """
    failed = int(values.pop("failed_process"))
    self._wishes.heard(values.pop("wishes"))
    if self._failure:
      raise self._failure
    if failed >= 0:
      raise ValueError(
        f"Process {failed} could not read its data; its own message says why. All "
        "processes stop; no checkpoint was written since."
      )
    rows = len(self._blank["id"]) * jax.process_count()
    self._allowance.count(rows, int(values["replaced_examples"]))

  def pause(self) -> None:
    """Keeps what the loop does besides steps out of the share of waits."""
    self._left = None

  def _next(self) -> Batch:
    try:
      if not self._failure:
        return next(self._batches)
    except Exception as error:
      failure = _explained(error)
      if jax.process_count() == 1:
        raise failure from error
      self._failure = failure
    failed = np.full_like(self._blank["replaced"], -1 - jax.process_index())
    return {**self._blank, "replaced": failed}

  def _idle_since(self, began: float) -> float:
    """Seconds since `began`, or since the devices finished, if that was later."""
    now = time.perf_counter()
    if self._ready is None:
      return now - began
    return max(now - max(began, self._ready.result()), 0) if self._ready.done() else 0.0

  def _watch(self, waited: float) -> None:
    now = time.perf_counter()
    if self._left is not None and not self._warned:
      self._waits.append(waited)
      self._seconds += now - self._left
    self._left = now
    if len(self._waits) < _WINDOW:
      return
    share = sum(self._waits) / self._seconds
    if share > _TOLERATED:
      self._warned = True
      self._say(advice(share, self._threads, self._workers, os.cpu_count() or 1))
    self._waits, self._seconds = [], 0.0


@jax.jit
def counts(
  replaced: Int[Array, " batch"], wishes: Int[Array, " batch"]
) -> dict[str, Int[Array, ""]]:
  """What `Feed.check` needs to know of a global batch, the same on all processes."""
  return {
    "wishes": any_of(wishes),
    "replaced_examples": jnp.sum(jnp.maximum(replaced, 0)),
    "failed_process": jnp.max(-1 - jnp.minimum(replaced, 0)),
  }


def _explained(error: Exception) -> Exception:
  """What to do where grain finds a worker process gone, which is a RuntimeError."""
  if type(error) is not RuntimeError:
    return error
  return ValueError(
    f"A process that reads data ended ({error}); if the machine's memory was full, lower "
    "--config.data.num_workers or --config.data.prefetch. The same command goes on."
  )


def _when_ready(numbers: Mapping[str, Array]) -> float:
  jax.block_until_ready(numbers)
  return time.perf_counter()


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
