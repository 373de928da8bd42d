"""Batches for training and evaluation, on any number of processes.

The step number alone is the position in the training data. A global batch is the same
set of rows however many processes share it, so a run may stop on one host and continue
on eight, and nothing but the step is needed to resume.
"""

import concurrent.futures
import itertools
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import grain
import numpy as np

from rankclip_jax.data import interrupts
from rankclip_jax.data.order import Order
from rankclip_jax.data.rows import Batch, Rows, Same
from rankclip_jax.data.source import BadExample, Source
from rankclip_jax.data.tokenizer import Tokenizer
from rankclip_jax.data.views import View

# Rows that a thread makes in one go: few enough to share a batch among many threads,
# enough for handing them out to cost nothing.
_PIECE_ROWS = 16
_BATCHES_AT_ONCE = 2


def steps_per_epoch(num_examples: int, global_batch: int) -> int:
  """Returns how many whole global batches an epoch has; its remainder is dropped.

  Raises:
    ValueError: if there is not even one.
  """
  if not 1 <= global_batch <= num_examples:
    raise ValueError(
      f"an epoch of {num_examples} examples has no batch of {global_batch}: choose a"
      f" global batch from 1 to {num_examples}"
    )
  return num_examples // global_batch


def train_batches(
  source: Source,
  *,
  image_size: int,
  tokenizer: Tokenizer,
  augment_scale: tuple[float, float] | None,
  flip: bool = False,
  fast: bool = True,
  global_batch: int,
  num_steps: int,
  seed: int,
  weights: Sequence[float] = (),
  same: Same = "none",
  on_bad: Callable[[BadExample], None] | None = None,
  rows: Sequence[int] | None = None,
  start_step: int = 0,
  num_threads: int = 2,
  num_workers: int = 0,
  prefetch: int = 4,
) -> Iterator[Batch]:
  """Iterates over this process's rows of the batches of steps start_step..num_steps-1.

  Every epoch is a fresh permutation by (seed, epoch). Crop and caption of an example
  depend on (seed, epoch, example) only, wherever it stands in whichever batch. With
  `weights` there are no epochs of the data, see `order.Order`.

  Args:
    source: read by `num_threads` threads at once.
    image_size, augment_scale, flip, fast: of the `views.View`.
    tokenizer: maps captions to ids.
    global_batch: rows of a batch over all processes.
    num_steps: the step at which training ends.
    seed: from 0 to 2**32 - 1.
    weights: in what proportion the parts of an `order.Concatenated` are drawn.
    same: what makes two rows of a batch no negatives of each other: the same picture
      (its bytes), the same caption (its ids), either, or nothing.
    on_bad: told of every bad example, which is then replaced by another one of its part,
      the same on any number of processes; None raises.
    rows: which of a global batch are this process's, None being all; as many on every
      process, and each on one.
    start_step: the step to start at; nothing is read in order to get there.
    num_threads: background threads; 0 makes each batch when it is asked for.
    num_workers: processes that read, with `num_threads` each; 0 is this one alone.
    prefetch: batches made ahead.

  Returns:
    An iterator of {"image": uint8 [local_batch, size, size, 3], "tokens": int32
    [local_batch, length], "id": int32 [local_batch], "replaced": int32 [local_batch]},
    the id being the index in `source`, and `replaced` how many bad examples the row
    would have had; with `same` also {"same": int32 [local_batch, kinds]}, whose rows
    show the same where they agree in any kind. Its threads end when it is dropped.

  Raises:
    ValueError: if numbers do not fit; from the iterator, with the key of the example,
      if it cannot be used and `on_bad` is None, or too many in a row cannot.
  """
  own = _own_rows(global_batch, rows)
  epoch_rows = steps_per_epoch(len(source), global_batch) * global_batch
  if not 0 <= start_step <= num_steps:
    raise ValueError(f"start_step must be from 0 to {num_steps=}, got {start_step}")
  if not 0 <= seed < 2**32:
    raise ValueError(f"seed must be from 0 to 2**32 - 1, got {seed}")
  order = Order(source, epoch_rows=epoch_rows, seed=seed, weights=weights)
  view = View(image_size, augment_scale, flip, fast)
  maker = Rows(source, order, view, tokenizer, seed, same, on_bad)

  share = _Share(maker, global_batch, own, num_threads)
  # What grain's own threads do is wait for a batch: two overlap the end of one with the
  # beginning of the next.
  threads = min(num_threads, prefetch, _BATCHES_AT_ONCE)
  read = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
  dataset = grain.MapDataset.range(start_step, num_steps).map(share).to_iter_dataset(read)
  if not num_workers:
    return iter(dataset)
  buffers = -(-prefetch // num_workers)
  workers = grain.MultiprocessingOptions(num_workers, per_worker_buffer_size=buffers)
  return _without_interrupts(dataset.mp_prefetch(workers, _begin_worker))


def _begin_worker(index: int, count: int) -> None:
  del index, count
  interrupts.end_with_parent()


def _without_interrupts(dataset: Iterable[Batch]) -> Iterator[Batch]:
  """Starts workers that signals pass over: the run decides what becomes of them.

  Slurm and terminals send them to every process of a job. Grain ends its workers by other
  means.
  """
  with interrupts.blocked(signal.SIGTERM):
    batches = iter(dataset)
    first = next(batches, None)
  if first is not None:
    yield first
    yield from batches


class _Share:
  """This process's rows of the batch of a step, made by several threads together.

  A batch a thread, as grain would do it, makes the first one of a large batch late and
  keeps as many large batches in memory as there are threads.
  """

  def __init__(self, rows: Rows, global_batch: int, own: Sequence[int], threads: int):
    self._rows, self._threads = rows, threads
    self._global, self._own = global_batch, own
    pieces = -(-len(own) // _PIECE_ROWS)
    bounds = np.linspace(0, len(own), pieces + 1).astype(int).tolist()
    self._pieces = [range(*pair) for pair in itertools.pairwise(bounds)]
    self._lock, self._pool = threading.Lock(), None

  def __call__(self, step: int) -> Batch:
    first = step * self._global
    batch = self._rows.blank(len(self._own))
    positions = lambda piece: [first + self._own[row] for row in piece]
    fill = lambda piece: self._rows.fill(batch, piece, positions(piece))
    # Takes every result, so that an error in any piece is one of the batch.
    list((self._workers().map if self._threads else map)(fill, self._pieces))
    return batch

  def _workers(self) -> concurrent.futures.ThreadPoolExecutor:
    with self._lock:
      if self._pool is None:
        self._pool = concurrent.futures.ThreadPoolExecutor(self._threads, "data")
      return self._pool

  def __getstate__(self):
    return {**self.__dict__, "_lock": None, "_pool": None}

  def __setstate__(self, state):
    self.__dict__.update(state, _lock=threading.Lock())


def eval_batches(
  count: int,
  *,
  batch_size: int,
  load: Callable[[int], Mapping[str, np.ndarray]],
  rows: Sequence[int] | None = None,
) -> Iterator[Batch]:
  """Iterates over this process's rows of batches that hold every index exactly once.

  All processes get equally many batches of equal shape, since their collectives must
  match. The last batch is filled up with rows that repeat the last example (a blank
  row could turn into NaNs) and are masked out.

  Args:
    count: the number of examples.
    batch_size: rows of a batch over all processes.
    load: maps an index below `count` to the arrays of that example.
    rows: which of a batch are this process's, None being all; as many on every process,
      and each on one.

  Returns:
    An iterator of the stacked arrays, with "index": int32 [local_batch] and "mask":
    bool [local_batch], false where a row is padding.

  Raises:
    ValueError: if `count` is 0 or `rows` are not some of a batch.
  """
  own = np.array(_own_rows(batch_size, rows), np.int32)
  if count < 1:
    raise ValueError(f"there must be an example to evaluate, got {count=}")

  def batch(start: int) -> Batch:
    index = np.minimum(start + own, count - 1)
    examples = [load(int(i)) for i in index]
    stacked = {name: np.stack([e[name] for e in examples]) for name in examples[0]}
    return stacked | {"index": index, "mask": start + own < count}

  return (batch(start) for start in range(0, count, batch_size))


def _own_rows(batch: int, rows: Sequence[int] | None) -> list[int]:
  """Returns a process's rows of a batch, having checked that they are some of it."""
  if batch < 1:
    raise ValueError(f"a batch must have at least 1 row, got {batch}")
  own = list(range(batch) if rows is None else rows)
  if not own or len(set(own)) < len(own) or not 0 <= min(own) <= max(own) < batch:
    raise ValueError(
      f"rows must be some of 0 to {batch - 1}, each once, got {str(own)[:80]}"
    )
  return own
