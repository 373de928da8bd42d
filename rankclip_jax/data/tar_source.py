"""Pictures and captions in tars as img2dataset and webdataset write them."""

import concurrent.futures
import functools
import itertools
import json
import os
import pathlib
import zlib
from collections.abc import Callable, Sequence

import numpy as np
from absl import logging

from rankclip_jax.data import files
from rankclip_jax.data.offsets import Offsets
from rankclip_jax.data.source import BadExample, Example, Loss, Reason, Shard
from rankclip_jax.data.tar_index import BLOCK, JSON, PICTURE, TEXT, TarIndex
from rankclip_jax.data.tar_indices import open_indices, some

Version = tuple[int, str]
_MakeBad = Callable[[Reason, str], BadExample]

_THREADS = 16  # for what waits for disks and networks
# Picture and caption are read at once where what lies between is no more, in bytes.
_GAP = 1 << 16


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
    self._samples = Offsets(
      (len(tar) for _, tar in self._shards), f"{self._spec} has samples"
    )
    self.losses: tuple[Loss, ...] = tuple(
      index.loss for index in indices.values() if index.loss
    )
    if strict:
      self._check()
    if not len(self):
      lost = some([f"{loss.shard}: {loss.detail}" for loss in self.losses])
      raise ValueError(f"There is no sample in {self._spec}; {lost or 'give it some.'}")
    if self.losses:
      shown = some([f"{loss.shard}: {loss.detail}" for loss in self.losses])
      logging.warning(
        "%d of %d tars are damaged: %s", len(self.losses), len(paths), shown
      )
    logging.info("Found %d samples in %d tars of %s", len(self), len(paths), self._spec)

  def __len__(self) -> int:
    return len(self._samples)

  @property
  def shards(self) -> list[Shard]:
    """The files, see `source.identity_of`."""
    return [
      Shard(
        path, len(tar), tar.version[0], zlib.crc32(np.ascontiguousarray(tar.members).data)
      )
      for path, tar in self._shards
    ]

  def __getitem__(self, index: int, /) -> Example:
    """Reads picture and captions.

    Raises:
      BadExample: if one of them is missing or empty, the sample was cut off, or the
        captions are no text.
      ValueError: if the tar has changed.
    """
    shard, row = self._samples.locate(index)
    path, tar = self._shards[shard]
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
        f"{some(faults)}. Repair the tars, or take these samples out."
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
