"""Pictures and captions in parquet files: the pictures themselves, or their paths."""

import concurrent.futures
import contextlib
import glob
import os
import pathlib
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from absl import logging

from rankclip_jax.data import bars, files, index_files, picture_files
from rankclip_jax.data.offsets import Offsets
from rankclip_jax.data.parquet_footer import Footer, read_footer
from rankclip_jax.data.recent import Recent
from rankclip_jax.data.source import BadExample, Example, Loss, Reason, Shard

_KEPT_GROUPS = 2**30  # bytes
_KEPT_FOOTERS = 2**26  # bytes, as they are in the files
# To read so many bytes takes 10 ms, several times as long as to decode a picture.
_SLOW_READ = 2**23
_CACHED_FROM = 2**14  # bytes of a footer; a smaller one is read in a millisecond or two
_FORMAT = 1  # of the index
_THREADS = 8  # that open files
_SHOWN_FROM = 100, 100_000  # files and rows from which one looks at a bar


class ParquetSource:
  """Parquet files of pictures and captions as a `Source`.

  Pictures are bytes in a column `image`, `jpg` or `image_bytes`, or in the struct of
  bytes and path that Hugging Face's datasets have there; or else they are files, named as
  in a CSV in a column `filepath`, `image_path`, `path` or `image`. Captions are strings,
  or lists of strings, in `caption`, `title` or `text`. Other columns are not read.

  A row's key is the path by which it names its picture, otherwise its file and number.

  A row group is read whole for one of its rows; those read last are kept, up to 1 GiB.
  Where there is more, and in large row groups, shuffled reading is slow by nature, and a
  warning says so: reshard, or write row groups of about 100 pictures.

  Attributes:
    losses: files of which nothing can be read.
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
    """Reads the files' footers; of remote files, and of large footers, keeps an index.

    Args:
      spec: files as in `files.expand`, and folders, of which all `*.parquet` are read.
      strict: checks captions and paths now, and refuses damaged files; else such rows are
        `BadExample`s when they are drawn, and a damaged file is one of the `losses`.
      caption_key: the column with the captions; "" for `caption`, `title` or `text`.
      image_key: the column with the pictures, or their paths; "" for a known name.
      cache: a folder for the index of files beside which nothing can be written.

    Raises:
      ValueError: if a file is missing or has not the columns, there are no rows, or no
        file can be read; if `strict`, also, with the row's number, if it has no caption
        or no picture, or names a local picture that is missing or empty, and if a file or
        a row group's captions cannot be read.
    """
    self._spec = os.fspath(spec)
    paths = _paths(self._spec)
    shown = len(paths) >= _SHOWN_FROM[0]
    with (
      concurrent.futures.ThreadPoolExecutor(_THREADS) as pool,
      bars.bar("opening", len(paths), shown=shown) as show,
    ):
      found = []
      opened = lambda path: _opened(path, image_key, caption_key, cache)
      for file in pool.map(opened, paths):
        found.append(file)
        show(1)
    self._files = [file for file in found if isinstance(file, _File)]
    self.losses = tuple(loss for loss in found if isinstance(loss, Loss))
    if self.losses and (strict or not self._files):
      loss = self.losses[0]
      raise ValueError(f"{loss.shard} cannot be read ({loss.detail}); fetch it again.")
    self._rows = Offsets(map(len, self._files), f"{self._spec} has rows")
    if not len(self):
      raise ValueError(f"{self._spec} has no rows; give it some.")
    self._kept = _Kept()
    self._warn_if_slow()
    if strict:
      shown = len(self) >= _SHOWN_FROM[1]
      with bars.bar("checking", len(self), shown=shown) as show:
        for file in self._files:
          file.check(self._kept, show)
    logging.info("Found %d pairs in %s", len(self), self._spec)

  def __len__(self) -> int:
    return len(self._rows)

  @property
  def shards(self) -> list[Shard]:
    """The files, see `source.identity_of`."""
    return [file.shard for file in self._files]

  def __getitem__(self, index: int, /) -> Example:
    """Reads the picture's bytes, and with them those of its whole row group.

    Raises:
      BadExample: if there is no caption or no picture, or the row group is damaged.
      ValueError: if the file has changed.
    """
    file, row = self._rows.locate(index)
    return self._files[file].example(row, self._kept)

  def _warn_if_slow(self) -> None:
    sizes = np.concatenate([file.sizes for file in self._files])
    rows = np.concatenate([np.diff(file.ends, prepend=0) for file in self._files])
    fresh = 1 - _KEPT_GROUPS / max(sizes.sum(), _KEPT_GROUPS)
    a_row = fresh * (sizes * rows).sum() / rows.sum()
    if a_row >= _SLOW_READ:
      logging.warning(
        "%s has row groups of up to %.0f MiB, and shuffled reading goes through %.0f MiB "
        "for every example: write smaller row groups, or reshard the data once (python "
        "-m rankclip_jax.data reshard).",
        self._spec,
        sizes.max() / 2**20,
        a_row / 2**20,
      )


class _File:
  """One file: where its row groups end, how large they are, and what is in a row.

  Attributes:
    ends: int64 [groups], in rows.
    sizes: int64 [groups], bytes of the columns that are read.
  """

  def __init__(
    self, path: str, image_key: str, caption_key: str, cache: pathlib.Path | None
  ):
    self._path, self._image_key, self._caption_key = path, image_key, caption_key
    self._version = files.version(path)
    facts = (_FORMAT, *self._version, caption_key, *filter(None, [image_key]))
    index = index_files.load(path, facts, cache)
    if index is None:
      footer = self._footer()[0]
      index = footer.row_groups()
      if files.is_remote(path) or footer.metadata.serialized_size >= _CACHED_FROM:
        index_files.save(path, facts, cache, index)
    rows, sizes = index.reshape(2, -1).astype(np.int64)
    self.ends, self.sizes = np.cumsum(rows), np.array(sizes)

  def __len__(self) -> int:
    return int(self.ends[-1]) if len(self.ends) else 0

  @property
  def shard(self) -> Shard:
    contents = zlib.crc32(self.sizes.data, zlib.crc32(self.ends.data))
    return Shard(self._path, len(self), self._version[0], contents)

  def example(self, row: int, kept: "_Kept") -> Example:
    """One row as an example."""
    number = int(np.searchsorted(self.ends, row, side="right"))
    group = kept.groups.get((self._path, number), lambda: self._group(number, kept))
    if isinstance(group, str):
      message = f"row group {number} cannot be read ({group}); fetch the file again."
      raise self._bad(row, "truncated shard", message)
    at = row - self._first(number)
    captions = self._captions(group.captions[at], row)
    data, name = self._picture(group.pictures[at], row)
    if data is not None:
      return Example(f"{self._path}:{row + 1}", data, captions, self._path)
    data = picture_files.read(name, self._path, f"{self._path}, row {row + 1}")
    return Example(name, data, captions, self._path)

  def check(self, kept: "_Kept", show: bars.Show) -> None:
    """Raises ValueError for the first row without a caption or a picture, if any."""
    footer = kept.footers.get(self._path, self._footer)
    for number, end in enumerate(self.ends.tolist()):
      pictures = footer.kind == "path" or footer.null_pictures(number)
      columns = footer.columns() if pictures else [footer.caption]
      group = self._read(footer, number, columns)
      if isinstance(group, str):
        raise ValueError(f"{self._path}: row group {number} cannot be read ({group}).")
      for row, captions in enumerate(group[footer.caption], self._first(number)):
        self._captions(captions, row, strict=True)
      for row, picture in enumerate(group[footer.picture] if pictures else ()):
        row += self._first(number)
        data, name = self._picture(picture, row)
        fault = picture_files.fault(name, self._path) if data is None else ""
        if fault:
          raise ValueError(f"{self._path}, row {row + 1}: {fault}")
      show(end - self._first(number))

  def _first(self, number: int) -> int:
    """The first row of a group."""
    return int(self.ends[number - 1]) if number else 0

  def _footer(self) -> tuple[Footer, int]:
    """What the file says of itself, and how long that is."""
    with _open(self._path) as file:
      footer = read_footer(
        file, self._path, image_key=self._image_key, caption_key=self._caption_key
      )
      return footer, file.metadata.serialized_size

  def _group(self, number: int, kept: "_Kept") -> "tuple[_Group | str, int]":
    """A row group, or what is wrong with it; and how many bytes it has."""
    if files.version(self._path) != self._version:
      raise ValueError(f"{self._path} has changed since it was opened; start again.")
    footer = kept.footers.get(self._path, self._footer)
    group = self._read(footer, number, footer.columns())
    if isinstance(group, str):
      return group, len(group)
    return _Group(group[footer.picture], group[footer.caption]), group.nbytes

  def _read(self, footer: Footer, number: int, columns: list[str]) -> Any:
    """Columns of a row group, or what is wrong with it."""
    try:
      with _open(self._path, footer.metadata) as file:
        # The rows of a batch are read by several threads already.
        group = file.read_row_group(number, columns=columns, use_threads=False)
    except Exception as error:
      if not _is_damage(error):
        raise
      return _line(error)
    rows = int(self.ends[number]) - self._first(number)
    return group if group.num_rows == rows else f"{group.num_rows} of {rows} rows"

  def _captions(self, value: Any, row: int, *, strict: bool = False) -> tuple[str, ...]:
    try:
      value = value.as_py()
      texts = [
        text.decode() if isinstance(text, bytes) else text
        for text in (value if isinstance(value, list) else [value])
      ]
    except UnicodeDecodeError as error:
      message = f"{error}; write captions in UTF-8."
      raise self._bad(row, "undecodable caption", message) from error
    captions = tuple(text for text in texts if text is not None and text.strip())
    if not captions or (strict and len(captions) < len(texts)):
      nothing = not texts or texts == [None]
      raise self._bad(
        row,
        "missing caption" if nothing else "empty caption",
        f"expected a caption, got {value!r}; take it out.",
      )
    return captions

  def _picture(self, value: Any, row: int) -> tuple[bytes | None, str]:
    """Bytes of a picture, or its path."""
    try:
      found = value.as_py()
    except UnicodeDecodeError as error:
      raise self._bad(row, "missing picture", f"{error}, in its path.") from error
    if isinstance(found, dict):
      found = found.get("path") if found["bytes"] is None else found["bytes"]
    if isinstance(found, bytes):
      if not found:
        raise self._bad(row, "empty picture", "the picture is empty; take the row out.")
      return found, ""
    if not (found and found.strip()):
      message = f"expected a picture, got {found!r}; take the row out."
      raise self._bad(row, "missing picture", message)
    return None, found

  def _bad(self, row: int, reason: Reason, message: str) -> BadExample:
    where = f"{self._path}, row {row + 1}"
    return BadExample(
      f"{where}: {message}", key=f"row {row + 1}", reason=reason, shard=self._path
    )


class _Group(NamedTuple):
  pictures: Any
  captions: Any


class _Kept:
  """What a process keeps of files. Other processes begin with nothing."""

  def __init__(self):
    self.groups, self.footers = Recent(_KEPT_GROUPS), Recent(_KEPT_FOOTERS)

  def __reduce__(self):
    return _Kept, ()


def _paths(spec: str) -> list[str]:
  """The files that a spec names, and those of its folders."""
  found = []
  for path in files.expand(spec):
    if files.is_remote(path):
      system, name = files.filesystem(path)
      folder = not path.endswith(".parquet") and system.isdir(name)
    else:
      folder = os.path.isdir(path)
    name = path if files.is_remote(path) else glob.escape(path)
    found += files.expand(f"{name.rstrip('/')}/*.parquet") if folder else [path]
  return found


def _opened(
  path: str, image_key: str, caption_key: str, cache: pathlib.Path | None
) -> _File | Loss:
  """A file, or what is wrong with it."""
  try:
    return _File(path, image_key, caption_key, cache)
  except FileNotFoundError as error:
    message = f"There is no file {path}; give parquet files, or a folder of them."
    raise ValueError(message) from error
  except Exception as error:
    if not _is_damage(error):
      raise
    return Loss(path, "truncated shard", _line(error))


@contextlib.contextmanager
def _open(path: str, metadata: Any = None) -> Iterator[pq.ParquetFile]:
  """A file for one reader: pyarrow's are not for several threads."""
  with contextlib.ExitStack() as stack:
    source = path
    if files.is_remote(path):
      system, name = files.filesystem(path)
      source = stack.enter_context(system.open(name, "rb", cache_type="none"))
    file = pq.ParquetFile(source, metadata=metadata, page_checksum_verification=True)
    yield stack.enter_context(file)


def _is_damage(error: BaseException) -> bool:
  """Whether it is the file that is wrong, and not the disk, the network or a driver.

  Arrow's own input errors have no number, and are of no subclass.
  """
  damage = (pa.ArrowInvalid, pa.ArrowNotImplementedError, UnicodeDecodeError)
  return isinstance(error, damage) or (type(error) is OSError and error.errno is None)


def _line(error: BaseException) -> str:
  """What an error says, without Arrow's line breaks."""
  return " ".join(str(error).split())
