"""Pictures and captions in tars as img2dataset and webdataset write them."""

import bisect
import concurrent.futures
import functools
import hashlib
import itertools
import json
import multiprocessing
import operator
import os
import pathlib
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import cast

from absl import logging
from rich.console import Console
from rich.progress import Progress

from rankclip_jax.data import files, tar_index
from rankclip_jax.data.source import BadExample, Example, Loss, Reason
from rankclip_jax.data.tar_index import BLOCK, JSON, PICTURE, TEXT, TarIndex

Version = tuple[int, str]
_MakeBad = Callable[[Reason, str], BadExample]

# A process takes as long to start as a few tars to index.
_TARS_A_PROCESS = 4
_THREADS = 16  # for what waits for disks and networks
# Picture and caption are read at once where what lies between is no more, in bytes.
_GAP = 1 << 16
_SHOWN = 5  # examples in a message


class TarSource:
  """Tars of pictures and captions as a `Source`, read at random.

  What is a sample, see `tar_index`. Its key is the key in the tar, its shard the tar's
  path. All samples keep their places, those without a picture or a caption too; what a
  damaged tar lost as a whole is in `losses`.

  An index of each tar is made once, and kept beside it as NAME.tar.index. In memory it
  takes 28 bytes a sample and its key.

  The tars must stay as they are. A local one is looked at with every read, and a change
  of its size or time is an error; one elsewhere only when it is opened, and where it has
  become too short.

  Attributes:
    losses: what tars lost.
  """

  def __init__(
    self,
    spec: str | os.PathLike[str],
    *,
    strict: bool = False,
    caption_key: str = "",
    cache: pathlib.Path | None = None,
    workers: int | None = None,
  ):
    """Reads the tars' indices, and first makes those that are missing or stale.

    Args:
      spec: tars as in `files.expand`: one, several with `::`, braces, globs. One that is
        named twice counts twice.
      strict: read all captions now, and refuse bad samples and losses.
      caption_key: the key in the samples' JSON whose value, a string or a list of
        strings, is the caption; "" for the `.txt` and, where there is none, "caption" in
        the JSON.
      cache: a folder for indices that cannot be written beside the tars.
      workers: processes that index local tars, threads for others; None is as many as
        there are cores and work for.

    Raises:
      ValueError: if a tar is missing, compressed or cannot be read, or there is no sample
        in all of them; if `strict`, for bad samples and losses, by tar and key.
    """
    self._spec, self._caption_key = os.fspath(spec), caption_key
    paths = files.expand(self._spec)
    indices = open_indices(paths, cache=cache, workers=workers)
    self._shards = [(path, indices[path]) for path in paths]
    self._ends = list(itertools.accumulate(len(index) for _, index in self._shards))
    self.losses: tuple[Loss, ...] = tuple(
      index.loss for index in indices.values() if index.loss
    )
    if strict:
      self._check()
    if not len(self):
      lost = _some([f"{loss.shard}: {loss.detail}" for loss in self.losses])
      raise ValueError(f"There is no sample in {self._spec}; {lost or 'give it some.'}")
    if self.losses:
      shown = _some([f"{loss.shard}: {loss.detail}" for loss in self.losses])
      logging.warning(
        "%d of %d tars are damaged: %s", len(self.losses), len(paths), shown
      )
    logging.info("Found %d samples in %d tars of %s", len(self), len(paths), self._spec)

  def __len__(self) -> int:
    return self._ends[-1]

  def __getitem__(self, index: int, /) -> Example:
    """Reads picture and captions.

    Raises:
      BadExample: if one of them is missing or empty, the sample was cut off, or the
        captions are no text.
      ValueError: if the tar has changed.
    """
    place = operator.index(index)
    if not 0 <= place < len(self):
      raise IndexError(f"{self._spec} has samples 0 to {len(self) - 1}, got {index}")
    shard = bisect.bisect_right(self._ends, place)
    path, tar = self._shards[shard]
    row = place - (self._ends[shard] - len(tar))
    picture, captions = self._read(path, tar, row, with_picture=True)
    return Example(tar.key(row), picture, captions, path)

  def _read(
    self, path: str, tar: TarIndex, row: int, *, with_picture: bool
  ) -> tuple[bytes, tuple[str, ...]]:
    """The picture (b"" without) and the captions of a sample."""
    members = tar.members[row].tolist()
    bad = functools.partial(_bad, path, tar.key(row))
    if row == tar.incomplete:
      raise bad("truncated shard", "the tar is cut off within it")
    if not members[PICTURE]:
      raise bad("missing picture", "it has no picture of a known kind")
    if not members[PICTURE + 1]:
      raise bad("empty picture", "its picture has no bytes")
    kind = TEXT if members[TEXT] and not self._caption_key else JSON
    if not members[kind]:
      wanted = ".json" if self._caption_key else ".txt or .json"
      raise bad("missing caption", f"it has no {wanted} with a caption")
    kinds = (PICTURE, kind) if with_picture else (kind,)
    spans = [(members[column] * BLOCK, members[column + 1]) for column in kinds]
    *picture, text = _read_spans(path, tar.version, spans)
    decode = _plain_caption if kind == TEXT else _json_captions
    captions = decode(text, self._caption_key or "caption", bad)
    return b"".join(picture), captions

  def _check(self) -> None:
    """Reads all captions.

    Raises:
      ValueError: if there is a bad sample, or a loss.
    """

    def fault(path: str, tar: TarIndex, row: int) -> str | None:
      try:
        self._read(path, tar, row, with_picture=False)
      except BadExample as bad:
        return str(bad)

    faults = [f"{loss.shard}: {loss.detail}" for loss in self.losses]
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
      for path, tar in self._shards:
        apply = pool.map if files.is_remote(path) else map
        rows = range(len(tar))
        found = apply(fault, itertools.repeat(path), itertools.repeat(tar), rows)
        faults += [one for one in found if one]
    if faults:
      raise ValueError(
        f"{self._spec} must be whole, and has {len(faults)} faults: "
        f"{_some(faults)}. Repair the tars, or take these samples out."
      )


def _bad(path: str, key: str, reason: Reason, detail: str) -> BadExample:
  message = f"{path}, sample {key!r}: {detail}"
  return BadExample(message, key=key, reason=reason, shard=path)


def _read_spans(
  path: str, version: Version, spans: Sequence[tuple[int, int]]
) -> list[bytes]:
  """The bytes of members, by start and size.

  Raises:
    ValueError: if the tar has changed.
  """
  start, end = min(at for at, _ in spans), max(at + size for at, size in spans)
  try:
    changed = not files.is_remote(path) and files.version(path) != version
    if end - start - sum(size for _, size in spans) <= _GAP:
      whole = files.read(path, start, end - start)
      pieces = [whole[at - start : at - start + size] for at, size in spans]
    else:
      pieces = [files.read(path, at, size) for at, size in spans]
  except FileNotFoundError as error:
    raise ValueError(f"{path} is gone since it was opened; put it back.") from error
  if changed or [len(piece) for piece in pieces] != [size for _, size in spans]:
    raise ValueError(f"{path} has changed since it was opened; start again.")
  return pieces


def _plain_caption(data: bytes, key: str, bad: _MakeBad) -> tuple[str]:
  del key
  try:
    text = data.decode("utf-8-sig")
  except UnicodeDecodeError as error:
    raise bad("undecodable caption", f"its .txt is not UTF-8 ({error})") from error
  if not text.strip():
    raise bad("empty caption", "its .txt is empty")
  return (text,)


def _json_captions(data: bytes, key: str, bad: _MakeBad) -> tuple[str, ...]:
  try:
    facts = json.loads(data)
    value = facts.get(key) if isinstance(facts, dict) else facts
    captions = value if isinstance(value, list) else [value or ""]
    if not isinstance(facts, dict) or not isinstance(value, str | list | None):
      raise TypeError(f"{key!r} must be a string or strings")
    "".join(captions).encode()  # Strings, and no halves of characters.
  except (ValueError, TypeError, RecursionError) as error:
    raise bad("undecodable caption", f"its .json cannot be used: {error}") from error
  if value is None:
    raise bad("missing caption", f"its .json has no {key!r}")
  captions = tuple(caption for caption in captions if caption.strip())
  if not captions:
    raise bad("empty caption", f"{key!r} in its .json is empty")
  return captions


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
      f"{len(absent)} of {len(unique)} tars cannot be opened: {_some(absent)}. Put them "
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
  for place in _places(path, cache):
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
  for place in _places(path, cache):
    temporary = place.with_name(f".{place.name}.{uuid.uuid4().hex}")
    try:
      place.parent.mkdir(parents=True, exist_ok=True)
      try:
        temporary.write_bytes(data)
        os.replace(temporary, place)
      finally:
        temporary.unlink(missing_ok=True)
      return True
    except OSError:
      continue
  return False


def _places(path: str, cache: pathlib.Path | None) -> list[pathlib.Path]:
  """Files that may hold the index, the first choice first."""
  remote = files.is_remote(path)
  places = [] if remote else [pathlib.Path(path + ".index")]
  if cache is not None:
    # Tars of many folders are called 00000.tar.
    whole = os.fsencode(path if remote else os.path.abspath(path))
    name = f"{os.path.basename(path)}.{hashlib.sha256(whole).hexdigest()[:16]}.index"
    places.append(cache / name)
  return places


def _some(faults: list[str]) -> str:
  more = "; ..." if len(faults) > _SHOWN else ""
  return "; ".join(faults[:_SHOWN]) + more
