"""Indices of many tars: those that are kept, and the others made, stored and shown."""

import concurrent.futures
import contextlib
import multiprocessing
import os
import pathlib
import time
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import cast

from absl import logging
from rich.console import Console
from rich.progress import Progress

from rankclip_jax.data import files, index_files, interrupts, tar_index
from rankclip_jax.data.tar_index import TarIndex

# A process takes as long to start as a few tars to index.
_TARS_A_PROCESS = 4
_THREADS = 16  # for what waits for disks and networks
_SHOWN = 5  # of what is in a message


def open_indices(
  paths: Sequence[str], *, cache: pathlib.Path | None = None, workers: int | None = None
) -> dict[str, TarIndex]:
  """The indices of tars, made and stored where there is none, or one of another version.

  Args:
    paths: of the tars; one that is named twice has one index.
    cache: a folder for indices that cannot be written beside the tars.
    workers: see `TarSource`.

  Raises:
    ValueError: if a tar is missing, compressed or cannot be read.
  """
  unique = list(dict.fromkeys(paths))
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    found = dict(zip(unique, pool.map(lambda p: _cached(p, cache), unique), strict=True))
  if absent := [str(error) for error in found.values() if isinstance(error, OSError)]:
    raise ValueError(
      f"{len(absent)} of {len(unique)} tars cannot be opened: {some(absent)}. Put them "
      "there, or take them out of the list."
    )
  todo = [path for path, index in found.items() if index is None]
  if todo:
    found |= _indexed(todo, cache, workers)
  return cast(dict[str, TarIndex], found)


def _cached(path: str, cache: pathlib.Path | None) -> TarIndex | OSError | None:
  try:
    version = files.version(path)
  except OSError as error:
    return error
  for place in index_files.places(path, cache):
    try:
      return tar_index.from_bytes(place.read_bytes(), path, version)
    except (OSError, ValueError, LookupError, TypeError):
      continue  # None yet, stale or damaged: it will be written anew.
  return None


def _indexed(
  paths: list[str], cache: pathlib.Path | None, workers: int | None
) -> dict[str, TarIndex]:
  """Makes and stores indices, and shows it."""
  began = time.monotonic()
  indices, homeless = {}, []
  console = Console(stderr=True)
  with Progress(console=console, disable=not console.is_terminal) as bar:
    task = bar.add_task("indexing tars", total=len(paths))
    for path, index, stored in _in_parallel(paths, cache, workers):
      indices[path] = index
      if not stored:
        homeless.append(path)
      bar.advance(task)
  if homeless:
    logging.warning(
      "%d indices could be written neither beside their tars nor to a cache folder (%s), "
      "and will be made again next time",
      len(homeless),
      homeless[0],
    )
  samples, seconds = sum(map(len, indices.values())), time.monotonic() - began
  logging.info("Indexed %d tars (%d samples) in %.1f s", len(paths), samples, seconds)
  return indices


def _in_parallel(
  paths: list[str], cache: pathlib.Path | None, workers: int | None
) -> Iterator[tuple[str, TarIndex, bool]]:
  """Results of `_build_and_store` as they come: by threads for what is elsewhere (it
  waits), by processes for what is here (it computes), not at all for a few."""
  remote = any(map(files.is_remote, paths))
  if workers is None:
    workers = _THREADS if remote else min(_cores(), len(paths) // _TARS_A_PROCESS)
  if min(workers, len(paths)) < 2:
    yield from (_build_and_store(path, cache) for path in paths)
    return
  if remote:
    executor = concurrent.futures.ThreadPoolExecutor(workers)
  else:  # not forked: threads of JAX may be running
    spawn = multiprocessing.get_context("spawn")
    executor = concurrent.futures.ProcessPoolExecutor(workers, mp_context=spawn)
  try:
    with interrupts.blocked():
      futures = [executor.submit(_build_and_store, path, cache) for path in paths]
    for future in concurrent.futures.as_completed(futures):
      yield future.result()
  except BrokenProcessPool as error:
    raise ValueError(
      "The processes that index tars ended early. Where a script opens the source, it "
      'must do so under `if __name__ == "__main__":`, or with workers=1.'
    ) from error
  finally:
    executor.shutdown(cancel_futures=True)


def _cores() -> int:
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def _build_and_store(path: str, cache: pathlib.Path | None) -> tuple[str, TarIndex, bool]:
  index = tar_index.build(path)
  return path, index, _store(index, path, cache)


def _store(index: TarIndex, path: str, cache: pathlib.Path | None) -> bool:
  """Writes NAME.tar.index beside the tar, else to `cache`, or returns False."""
  data = tar_index.to_bytes(index)
  for place in index_files.places(path, cache):
    with contextlib.suppress(OSError):
      index_files.write(place, data)
      return True
  return False


def some(faults: list[str]) -> str:
  """The first faults of many, for a message."""
  more = "; ..." if len(faults) > _SHOWN else ""
  return "; ".join(faults[:_SHOWN]) + more
