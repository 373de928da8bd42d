"""Where the samples of a tar lie: read off its headers once, kept in a small file.

What is one sample follows webdataset: the key is the folder and the name up to its first
dot, the rest is the kind (`a/b.jpg` and `a/b.txt` are sample `a/b`; `b.seg.png` is no
picture). Members that follow each other with one key are one sample, of which the first
picture (text, JSON) counts. Beyond webdataset, members of one key also find each other
from afar, as in a tar that holds all pictures first; unless the sample has that kind
already: then they are another sample of the same key. `__meta__/` is left out.
"""

import array
import dataclasses
import io
import json
import re
import tarfile
import zlib
from typing import IO, Any, NamedTuple, cast

import numpy as np

from rankclip_jax.data import files
from rankclip_jax.data.source import Loss

# Columns of `TarIndex.members`: the first block of each kind; the next one is its size.
PICTURE, TEXT, JSON = 0, 2, 4
BLOCK = 512  # bytes; members begin at multiples of it

_KINDS = dict.fromkeys(
  (b"jpg", b"jpeg", b"png", b"webp", b"gif", b"bmp", b"tif", b"tiff", b"ppm"), PICTURE
) | {b"txt": TEXT, b"json": JSON}
_META = re.compile(rb"__[^/]*__($|/)")
_LARGEST = 2**32 - 1  # bytes of a member, and blocks of a tar
# Headers are read through a window of so many bytes, which is moved over what is larger.
# A disk reads as far ahead anyway; a request to a bucket costs as much as megabytes.
_WINDOW, _REMOTE_WINDOW = 1 << 16, 1 << 22
# More zeros than any program ends a tar with. A download that lays out the whole file
# first, and breaks off, leaves as many as it did not get.
_END_BYTES = 1 << 20
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd")
# Only this record, which webdataset and Python's tarfile write for a time with fractions.
_MTIME = re.compile(rb"[1-9]\d* mtime=[\d.]+\n")
_MAGIC = b"rankclip_jax tar index, format 1, "


@dataclasses.dataclass(frozen=True, eq=False)
class TarIndex:
  """The samples of one tar, in 28 bytes each and their keys.

  Attributes:
    version: size and stamp of the tar, as `files.version` gave them.
    members: uint32 [samples, 6]: for picture, text and JSON the first block and the size
      in bytes. Where the block is 0, there is no such member.
    key_ends: uint32 [samples], where each key ends in `keys`.
    keys: uint8, all keys without anything between.
    incomplete: the sample that was cut off; -1 where none was.
    loss: what the tar lost, or None.
  """

  version: tuple[int, str]
  members: np.ndarray
  key_ends: np.ndarray
  keys: np.ndarray
  incomplete: int = -1
  loss: Loss | None = None

  def __len__(self) -> int:
    return len(self.members)

  def key(self, row: int) -> str:
    """The key of a sample; what in it is not UTF-8 is spelled `\\xff`."""
    start = self.key_ends[row - 1] if row else 0
    return bytes(self.keys[start : self.key_ends[row]]).decode(errors="backslashreplace")


def build(path: str) -> TarIndex:
  """Reads the headers of a tar, over the data of its members.

  A damaged tar gives its samples up to the damage; the one that was cut off is marked,
  and the `Loss` says at which byte and, if img2dataset's NAME_stats.json lies beside, how
  many samples are gone. A tar without its end mark is whole if its last sample has the
  kinds that most have and the stats expect no more. An end mark outweighs the stats:
  someone may have taken samples out.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: if it is compressed, of 2 TiB or more, or cannot be read.
  """
  version = files.version(path)
  if version[0] > _LARGEST * BLOCK:
    raise ValueError(f"{path} has {version[0]} bytes, over 2 TiB: write smaller tars.")
  samples = _Samples()
  try:
    with _opened(path) as file:
      ending = _walk(file, version[0], samples)
      file.seek(0)
      start = file.read(8)
  except OSError as error:
    raise ValueError(f"{path} cannot be read as a tar: {error}.") from error
  if not samples.keys and start.startswith(_COMPRESSED):
    raise ValueError(
      f"{path} is compressed, so that no sample can be read without all before it: "
      "decompress it; pictures hardly take more room then."
    )
  incomplete, loss = -1, None
  if ending.fault or not ending.marked:
    incomplete = ending.sample
    if incomplete < 0 and not ending.marked:
      incomplete = samples.cut_off(damaged=bool(ending.fault))
    loss = _loss(path, ending, len(samples.keys), incomplete)
  return TarIndex(
    version,
    np.array(samples.members, np.uint32).reshape(-1, 6),
    np.cumsum([len(key) for key in samples.keys], dtype=np.uint32),
    np.frombuffer(b"".join(samples.keys), np.uint8),
    incomplete,
    loss,
  )


def _opened(path: str) -> IO[bytes]:
  if not files.is_remote(path):
    return open(path, "rb", buffering=_WINDOW)
  system, name = files.filesystem(path)
  raw = system.open(name, "rb", block_size=_REMOTE_WINDOW, cache_type="readahead")
  return io.BufferedReader(raw, _WINDOW)


class _Samples:
  """Members as they come, put together to samples."""

  def __init__(self):
    self.members = array.array("I")
    self.keys: list[bytes] = []
    self._rows: dict[bytes, int] = {}
    self._last = -1

  def add(self, name: bytes, offset: int, size: int, *, readable: bool = True) -> int:
    """Takes a member with its data's place; returns its sample, -1 if it belongs to none.

    Args:
      name: with folders.
      offset: of its data in bytes.
      size: of its data in bytes.
      readable: whether the data lie there as they are, as those of sparse files do not.
    """
    slash = name.rfind(b"/") + 1
    dot = name.find(b".", slash)
    if dot <= slash or (name.startswith(b"__") and _META.match(name)):
      return -1
    key = name[:dot]
    kind = _KINDS.get(name[dot + 1 :].lower()) if readable and size <= _LARGEST else None
    row = self._rows.get(key, -1)
    if row >= 0 and kind is None:
      return row
    if row < 0 or (row != self._last and self.members[6 * row + cast(int, kind)]):
      row = self._rows[key] = len(self.keys)
      self.keys.append(key)
      self.members.extend((0,) * 6)
    self._last = row
    if kind is not None and not self.members[6 * row + kind]:
      self.members[6 * row + kind] = offset // BLOCK
      self.members[6 * row + kind + 1] = size
    return row

  def cut_off(self, *, damaged: bool) -> int:
    """The last sample if it lacks a kind that it should have, else -1.

    Args:
      damaged: something did follow, so that a sample with no others should have all.
    """
    if self._last < 0:
      return -1
    has = np.array(self.members, np.uint32).reshape(-1, 6)[:, ::2] > 0
    others = np.delete(has, self._last, axis=0)
    usual = others.mean(axis=0) > 0.5 if len(others) else np.full(3, damaged)
    return self._last if (usual & ~has[self._last]).any() else -1


class _Ending(NamedTuple):
  """Where a tar ends; what is wrong there, if anything; in which sample that is."""

  byte: int
  fault: str = ""
  sample: int = -1
  marked: bool = False  # by blocks of zeros, as it should be


class _Member(NamedTuple):
  name: bytes  # empty if it is no file
  start: int
  size: int
  readable: bool
  following: int  # the byte of the next header


def _walk(file: IO[bytes], size: int, samples: _Samples) -> _Ending:
  """Goes from header to header and adds what they describe."""
  if not size:
    return _Ending(0, "it has no bytes")
  # An empty archive, put aside for the file: the constructor would read a header.
  nothing = io.BytesIO(bytes(2 * BLOCK))
  tar = tarfile.TarFile(fileobj=nothing, encoding="utf-8", errors="surrogateescape")
  tar.fileobj = cast(Any, file)
  at = 0
  while at < size:
    try:
      member = _member(tar, file, at)
    except OSError:
      raise
    except Exception as error:  # tarfile's own, and those of int, bytes and recursion
      if _content(file, at, min(at + BLOCK, size)) < 0:
        return _at_end_mark(file, at, size)
      return _Ending(at, f"there is no whole header at byte {at} ({error})")
    if member.size < 0 or member.following <= at:
      return _Ending(at, f"a header with impossible numbers is at byte {at}")
    name, start, length, readable, at = member
    sample = samples.add(name, start, length, readable=readable)
    if readable and start + length > size:
      shown = name.decode(errors="backslashreplace")
      return _Ending(size, f"it is cut off at byte {size}, within {shown!r}", sample)
  # Data end with the block.
  return _Ending(size, f"it is cut off at byte {size}" if at > size else "")


def _at_end_mark(file: IO[bytes], at: int, size: int) -> _Ending:
  if (found := _content(file, at, size)) >= 0:
    fault = f"something follows its end, at byte {found}; joined tars must be taken apart"
    return _Ending(found, fault, marked=True)
  return _Ending(at, marked=size - at <= _END_BYTES)


def _content(file: IO[bytes], at: int, size: int) -> int:
  """The first byte from `at` on that is not zero, -1 if there is none."""
  file.seek(at)
  while at < size and (piece := file.read(min(size - at, 1 << 20))):
    if rest := piece.lstrip(b"\0"):
      return at + len(piece) - len(rest)
    at += len(piece)
  return -1


def _member(tar: tarfile.TarFile, file: IO[bytes], at: int) -> _Member:
  """Reads the header at a byte: here if it is plain, as most are, else by tarfile.

  tarfile takes four times as long for a plain header, and seven times for one with the
  extended header that img2dataset writes, for times with fractions.
  """
  file.seek(at)
  if not tar.pax_headers:
    start = at + BLOCK
    plain = _plain(file.read(BLOCK))
    if plain and plain[0] and _MTIME.fullmatch(file.read(BLOCK)[: plain[2]]):
      start += 2 * BLOCK
      plain = _plain(file.read(BLOCK))
    if plain and not plain[0]:
      _, name, size = plain
      return _Member(name, start, size, True, start + -(-size // BLOCK) * BLOCK)
    file.seek(at)
  info = tarfile.TarInfo.fromtarfile(tar)
  # As webdataset does: folders and links are left out.
  name = info.name.encode("utf-8", "surrogateescape") if info.isreg() else b""
  readable = info.isreg() and not info.issparse()
  return _Member(name, info.offset_data, info.size, readable, tar.offset)


def _plain(block: bytes) -> tuple[bool, bytes, int] | None:
  """Whether it extends the next header, name and size, if that is all a header says."""
  size, checksum = block[124:135], block[148:156].rstrip(b"\0 ")
  if (
    len(block) < BLOCK
    or block[156] not in b"0\0x"
    or block[345]  # the first part of a long name
    or block[135] not in b"\0 "
    or not (size.isdigit() and checksum.isdigit())
  ):
    return None
  # Adler's first sum is that of all bytes, modulo 65521: ten times as fast as sum().
  total = zlib.adler32(block, 0) - zlib.adler32(block[148:156], 0) & 0xFFFF
  name = block[:100].split(b"\0", 1)[0]
  try:
    if total != int(checksum, 8) - 8 * ord(" ") or name.endswith(b"/"):
      return None
    return block[156] == ord("x"), name, int(size, 8)
  except ValueError:  # an 8 or a 9
    return None


def _loss(path: str, ending: _Ending, found: int, incomplete: int) -> Loss | None:
  """What the stats or the tar itself say is gone."""
  expected = _successes(path)
  gone = max(0, expected - found)
  complete = not ending.marked and 0 < expected <= found
  if incomplete < 0 and not gone and (complete or not ending.fault):
    return None
  detail = ending.fault or f"it ends at byte {ending.byte} without an end mark"
  if gone:
    detail += f"; {found} of {expected} samples were found"
  return Loss(path, "truncated shard", detail, gone)


def _successes(path: str) -> int:
  """How many samples img2dataset wrote to the tar; 0 where that is not known."""
  try:
    stats = json.loads(files.read(path.removesuffix(".tar") + "_stats.json"))
    return stats["successes"] if isinstance(stats["successes"], int) else 0
  except (OSError, ValueError, LookupError, TypeError, RecursionError):
    return 0


def to_bytes(index: TarIndex) -> bytes:
  """A line to know the file by, with the rest's checksum; a line of JSON; the arrays."""
  loss = index.loss and (index.loss.detail, index.loss.count)
  facts = {
    "size": index.version[0],
    "stamp": index.version[1],
    "samples": len(index),
    "incomplete": index.incomplete,
    "loss": loss,
  }
  rest = json.dumps(facts).encode() + b"\n"
  rest += index.members.astype("<u4").tobytes() + index.key_ends.astype("<u4").tobytes()
  rest += index.keys.tobytes()
  return _MAGIC + b"%08x\n" % zlib.crc32(rest) + rest


def from_bytes(data: bytes, path: str, version: tuple[int, str]) -> TarIndex:
  """The index in a file's bytes, whose arrays it shares.

  Raises:
    ValueError, LookupError or TypeError: if it is damaged, or of another version.
  """
  begin = data.index(b"\n") + 1
  end = data.index(b"\n", begin) + 1
  facts = json.loads(data[begin:end])
  if (facts["size"], facts["stamp"]) != version:
    raise ValueError(f"{path} has changed since it was indexed.")
  if data[:begin] != _MAGIC + b"%08x\n" % zlib.crc32(memoryview(data)[begin:]):
    raise ValueError("The index is damaged.")
  samples = facts["samples"]
  members = np.frombuffer(data, "<u4", 6 * samples, end).reshape(samples, 6)
  key_ends = np.frombuffer(data, "<u4", samples, end + members.nbytes)
  keys = np.frombuffer(data, np.uint8, -1, end + members.nbytes + key_ends.nbytes)
  loss = facts["loss"] and Loss(path, "truncated shard", *facts["loss"])
  return TarIndex(version, members, key_ends, keys, facts["incomplete"], loss)
