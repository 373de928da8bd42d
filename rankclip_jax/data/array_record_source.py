"""Pictures and captions in ArrayRecord files of serialized `tf.train.Example`s."""

import functools
import hashlib
import operator
import os
import pathlib
import resource
import uuid
from collections.abc import Sequence
from concurrent import futures
from typing import Any

from absl import logging

from rankclip_jax.data import files, records
from rankclip_jax.data.offsets import Offsets
from rankclip_jax.data.source import BadExample, Example, Loss, Reason, Shard

IMAGE = ("image", "jpg", "image/encoded")
CAPTION = ("caption", "captions", "text", "title", "image/caption")
KEY = ("key", "image/key")

_THREADS = 8
_LOOKED_AT = 10  # records, for a feature that no record has
_MOST_READERS = 4096


class ArrayRecordSource:
  """ArrayRecord files as a `Source`: `records.write_array_record` makes such.

  A record is a serialized `tf.train.Example` with an encoded picture in `image`, `jpg` or
  `image/encoded`; one caption or several in `caption`, `captions`, `text`, `title` or
  `image/caption`; and a `key`, without which it is FILE#POSITION. An example's shard is
  its file.

  ArrayRecord keeps its index at the end. Of a file that was cut off, nothing can be read:
  it is in `losses`. Damage in the middle costs the records that it hits. In memory are
  about 30 bytes a record.

  The files must stay as they are: a change is an error.

  Attributes:
    losses: files that cannot be read.
  """

  def __init__(
    self,
    spec: str | os.PathLike[str],
    *,
    strict: bool = False,
    caption_key: str = "",
    image_key: str = "",
    cache: pathlib.Path | None = None,
  ):
    """Opens the files.

    Args:
      spec: files as in `files.expand`: one, several with `::`, braces, globs.
      strict: read all records now, and refuse bad ones and losses.
      caption_key: the feature that holds captions; "" is a known name.
      image_key: the feature that holds the picture; "" is a known name.
      cache: a folder for copies of files that are not local, which array_record does not
        read. They are made once, and need as much space as the files.

    Raises:
      ValueError: if a file is missing, none can be read, or none of the first records has
        such features; if `strict`, for bad records and losses.
    """
    self._spec, self._strict = os.fspath(spec), strict
    self._image = (image_key,) if image_key else IMAGE
    self._caption = (caption_key,) if caption_key else CAPTION
    names = files.expand(self._spec)
    paths = local_copies(names, cache)
    counts = self._counts(names, paths)
    self.losses = tuple(
      Loss(name, "truncated shard", "it is cut off, or no ArrayRecord")
      for name, count in zip(names, counts, strict=True)
      if count is None
    )
    self._shards = Shards(paths, [count or 0 for count in counts], names=names)
    lost = "; ".join(f"{loss.shard}: {loss.detail}" for loss in self.losses[:5])
    if strict and self.losses:
      raise ValueError(f"{lost}; write the file again, or take it out.")
    if not len(self):
      raise ValueError(f"There is no record in {self._spec}; {lost or 'give it some.'}")
    self._look()
    if strict:
      records.check_every(self, self._spec)
    if lost:
      logging.warning("%d of %d files are lost: %s", len(self.losses), len(names), lost)
    logging.info("Found %d records in %d files of %s", len(self), len(names), self._spec)

  def __len__(self) -> int:
    return len(self._shards)

  @property
  def shards(self) -> list[Shard]:
    """The files, see `source.identity_of`."""
    return self._shards.shards()

  def __getitem__(self, index: int, /) -> Example:
    """Reads a record.

    Raises:
      BadExample: if it is damaged or no `tf.train.Example`, or picture or captions are
        missing, empty, or no text.
      ValueError: if the file has changed.
    """
    shard, position = self._shards.locate(operator.index(index))
    name = self._shards.names[shard]
    fields, place = self._fields(shard, position), f"{name}#{position}"
    keys = fields.first_of(KEY)
    key = records.as_text(keys[0]) if keys else place
    where = f"{name}, record {position}" + (f", key {key!r}" if keys else "")

    def bad(reason: Reason, detail: str) -> BadExample:
      return BadExample(f"{where}: {detail}", key=key, reason=reason, shard=name)

    pictures = fields.first_of(self._image)
    if not pictures:
      has = f"expected {' or '.join(self._image)}, got {', '.join(fields.names())}"
      raise bad("missing picture", f"it has no picture: {has}.")
    if len(pictures) > 1 or not isinstance(pictures[0], bytes):
      raise bad("malformed row", f"expected one picture, got {len(pictures)} values.")
    if not pictures[0]:
      raise bad("empty picture", "its picture has no bytes; take it out.")
    values = fields.first_of(self._caption)
    if values and not isinstance(values[0], bytes):
      raise bad("malformed row", f"expected captions, got the numbers {values[:5]}.")
    captions = records.captions_of(
      values, where, key=key, shard=name, strict=self._strict
    )
    return Example(key, pictures[0], captions, name)

  def _fields(self, shard: int, position: int) -> records.Fields:
    record, name = self._shards.read(shard, position), self._shards.names[shard]
    try:
      return records.Fields(record)
    except ValueError as error:
      raise BadExample(
        f"{name}, record {position}: {error}; write the file again, or take it out.",
        key=f"{name}#{position}",
        reason="malformed row",
        shard=name,
      ) from error

  def _counts(self, names: Sequence[str], paths: Sequence[str]) -> list[int | None]:
    for name, path in zip(names, paths, strict=True):
      if not os.path.isfile(path):
        raise ValueError(f"There is no file {name}; give ArrayRecord files.")
    return records.count_all(paths)

  def _look(self) -> None:
    """Refuses names of features that none of the first records has."""
    found = set()
    for index in range(min(_LOOKED_AT, len(self))):
      try:
        fields = self._fields(*self._shards.locate(index))
      except BadExample:
        continue
      found.update(fields.names())
    for what, names in (("picture", self._image), ("captions", self._caption)):
      if found and not found.intersection(names):
        raise ValueError(
          f"{self._spec}: expected the {what} in {' or '.join(names)}, got records with "
          f"{', '.join(sorted(found))}; say which (caption_key, image_key)."
        )


def local_copies(paths: Sequence[str], cache: pathlib.Path | None) -> list[str]:
  """The local files among them, and for others copies in `cache`, made if needed.

  Raises:
    ValueError: if one elsewhere is missing, or there is no `cache` for it.
  """
  with futures.ThreadPoolExecutor(_THREADS) as pool:
    copies = [pool.submit(_local_copy, path, cache) for path in paths]
    remote = any(map(files.is_remote, paths))
    shown = records.track(copies, "Copying") if remote else copies
    return [copy.result() for copy in shown]


def _local_copy(path: str, cache: pathlib.Path | None) -> str:
  if not files.is_remote(path):
    return path
  if cache is None:
    raise ValueError(
      f"{path}: array_record reads local files only; give a folder for copies (cache), "
      "copy the files, or mount the bucket (gcsfuse)."
    )
  try:
    version = files.version(path)
  except FileNotFoundError as error:
    raise ValueError(f"There is no file {path}; give ArrayRecord files.") from error
  digest = hashlib.sha256(repr((path, version)).encode()).hexdigest()[:16]
  copy = cache / f"{digest}-{os.path.basename(path)}"
  if not (copy.is_file() and copy.stat().st_size == version[0]):
    cache.mkdir(parents=True, exist_ok=True)
    temporary = copy.with_name(f"{copy.name}.{uuid.uuid4().hex}.tmp")
    try:
      system, name = files.filesystem(path)
      system.get_file(name, str(temporary))
      os.replace(temporary, copy)
    finally:
      temporary.unlink(missing_ok=True)
  return str(copy)


_Version = tuple[int, int, int]


def _version(path: str) -> _Version | None:
  """What tells that a local file changed, or is another; None if there is none."""
  try:
    stat = os.stat(path)
  except FileNotFoundError:
    return None
  return stat.st_size, stat.st_mtime_ns, stat.st_ino


def _most_readers() -> int:
  """Half of the files that a process may have open; an open reader holds one."""
  limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
  unlimited = limit == resource.RLIM_INFINITY
  return _MOST_READERS if unlimited else min(_MOST_READERS, max(limit // 2, 1))


@functools.lru_cache(maxsize=_most_readers())
def _reader(path: str, version: _Version) -> Any:
  """An open reader, which many threads may use; it closes when nobody holds it."""
  del version  # Not one of a file that has since been replaced.
  return records.open_reader(path)


class Shards:
  """Records of local ArrayRecord files by one number. Thread-safe, and picklable.

  array_record's own data source reads with `read([i])`, which copies the shard's index,
  and so takes longer the more records a shard has: 0.1 ms with 10,000 of them, 0.8 ms
  with 100,000. Reading a range does not.
  """

  def __init__(
    self,
    paths: Sequence[str],
    counts: Sequence[int],
    *,
    skips: Sequence[int] | None = None,
    names: Sequence[str] | None = None,
  ):
    """Remembers the files, opens none.

    Args:
      paths: local files.
      counts: how many records of each to use.
      skips: after how many; by default from the first on.
      names: what errors call the files; by default their paths.
    """
    self.names = list(names or paths)
    self._paths = list(paths)
    self._skips = list(skips or [0] * len(paths))
    self._counts, self._records = list(counts), Offsets(counts, "there are records")
    self._versions = [_version(path) for path in paths]
    most = _reader.cache_info().maxsize or 0
    if len(paths) > most:
      logging.warning(
        "Of %d files only %d stay open; each read from others opens one, in about 1 ms. "
        "Raise the limit of open files: ulimit -n %d",
        *(len(paths), most, 2 * len(paths)),
      )

  def __len__(self) -> int:
    return len(self._records)

  def shards(self) -> list[Shard]:
    """The files; one that is used from some record on says so in its name."""
    return [
      Shard(f"{name}[{skip}:]" if skip else name, count, version[0] if version else 0)
      for name, skip, count, version in zip(
        self.names, self._skips, self._counts, self._versions, strict=True
      )
    ]

  def locate(self, index: int) -> tuple[int, int]:
    """Number of the shard and the record's position in it.

    Raises:
      IndexError: if there is no such record.
    """
    shard, row = self._records.locate(index)
    return shard, self._skips[shard] + row

  def read(self, shard: int, position: int) -> bytes:
    """A record.

    Raises:
      BadExample: if it cannot be read.
      ValueError: if the file has changed since the start.
    """
    path = self._paths[shard]
    version = _version(path)
    if version is None:
      raise self._lost(shard, position, "there is no such file")
    if version != self._versions[shard]:
      raise ValueError(
        f"{self.names[shard]} has changed since it was opened; start again."
      )
    reader = _reader(path, version)
    if not reader.ok():
      raise self._lost(shard, position, "it is cut off, or no ArrayRecord")
    try:
      (record,) = reader.read(position, position + 1)
    except IndexError as error:
      detail = f"it has only {reader.num_records()} records"
      raise self._lost(shard, position, detail) from error
    except (RuntimeError, ValueError) as error:  # Damage, or nothing where it was.
      raise self._lost(shard, position, str(error)) from error
    return record

  def damaged(self) -> list[str]:
    """Files that lack records as a whole, each with what is the matter."""
    found = []
    for shard, count in enumerate(records.count_all(self._paths)):
      needed = self._skips[shard] + self._counts[shard]
      if count is None:
        found.append(f"{self.names[shard]}: it is missing, cut off, or no ArrayRecord")
      elif count < needed:
        found.append(f"{self.names[shard]}: expected {needed} records, got {count}")
    return found

  def _lost(self, shard: int, position: int, detail: str) -> BadExample:
    name = self.names[shard]
    return BadExample(
      f"{name}, record {position}: cannot be read ({detail}); write the file again.",
      key=f"{name}#{position}",
      reason="truncated shard",
      shard=name,
    )
