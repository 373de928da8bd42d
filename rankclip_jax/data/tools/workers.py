"""The processes that write the shards of a `reshard`.

They import this module, and nothing of the command line: that would take seconds each.
"""

import concurrent.futures
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool

from rankclip_jax.data import interrupts
from rankclip_jax.data.source import Source
from rankclip_jax.data.tools import shards
from rankclip_jax.data.tools.progress import Progress
from rankclip_jax.data.tools.shards import Plan
from rankclip_jax.data.tools.threads import cores

_SECONDS_BETWEEN_LOOKS = 0.2


def run(source: Source, plan: Plan, count: int) -> None:
  """Writes the shards of the plan that are not complete.

  Args:
    source: of the examples.
    plan: of the shards.
    count: processes at most; 1 is this one alone.

  Raises:
    ValueError: if a worker was killed.
    OSError: if something cannot be read or written.
    KeyboardInterrupt: with how far it came.
  """
  todo = [shard for shard in range(len(plan)) if plan.stats(shard) is None]
  before = plan.examples - sum(len(plan.rows(shard)) for shard in todo)
  count = max(min(count, len(todo)), 1)
  num_threads = max(-(-2 * cores() // count), 1)
  with Progress("resharding", plan.examples) as progress:
    progress.update(before)
    try:
      if count == 1:
        done = iter(range(before + 1, plan.examples + 1))
        for shard in todo:
          tick = lambda: progress.update(next(done))
          shards.write(source, plan, shard, num_threads=num_threads, tick=tick)
      else:
        show = lambda done: progress.update(before + done)
        _by_processes(source, plan, todo, count, num_threads, show)
    except KeyboardInterrupt as error:
      complete = sum(plan.stats(shard) is not None for shard in range(len(plan)))
      raise KeyboardInterrupt(
        f"Stopped with {complete} of {len(plan)} shards complete; the same command goes "
        "on."
      ) from error


def _by_processes(
  source: Source,
  plan: Plan,
  todo: Sequence[int],
  count: int,
  num_threads: int,
  show: Callable[[int], None],
) -> None:
  context = multiprocessing.get_context("spawn")  # Threads are running.
  done, stop = context.Value("q", 0), context.Event()
  executor = concurrent.futures.ProcessPoolExecutor(
    count, context, _begin, (source, plan, num_threads, done, stop)
  )
  waiting = set()
  try:
    with interrupts.blocked():
      waiting = {executor.submit(_write, shard) for shard in todo}
    while waiting:
      finished, waiting = concurrent.futures.wait(
        waiting, _SECONDS_BETWEEN_LOOKS, concurrent.futures.FIRST_EXCEPTION
      )
      show(done.value)
      for future in finished:
        future.result()
  except BrokenProcessPool as error:
    raise ValueError(
      "A worker was ended from outside, perhaps because memory ran out; complete shards "
      "are kept, and the same command goes on, with fewer --workers if need be."
    ) from error
  finally:
    if waiting:  # Others are at work, and would go on to the end of their shards.
      stop.set()
    executor.shutdown(cancel_futures=True)


_work: tuple[Source, Plan, int, Callable[[], None]]


def _begin(source: Source, plan: Plan, num_threads: int, done, stop) -> None:
  """Prepares a worker: what it works on, and when it ends early."""
  global _work
  interrupts.end_with_parent()

  def tick() -> None:
    if stop.is_set():
      raise shards.Stopped
    with done.get_lock():
      done.value += 1

  _work = source, plan, num_threads, tick


def _write(shard: int) -> None:
  source, plan, num_threads, tick = _work
  shards.write(source, plan, shard, num_threads=num_threads, tick=tick)
