"""What a training source is: random access to pictures with captions."""

import dataclasses
import hashlib
import posixpath
from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np

Reason = Literal[
  "missing picture",  # named by an index or a row, but not there
  "empty picture",  # zero bytes
  "undecodable picture",  # damaged, cut short, or no picture at all
  "too large picture",  # more pixels than `decoding.MAX_PIXELS`
  "missing caption",
  "empty caption",  # also one of which cleaning leaves nothing
  "undecodable caption",  # not UTF-8, or JSON that is none
  "malformed row",  # fields too many or too few, quotes that do not close
  "truncated shard",  # what a shard lost where it was cut off
]


@dataclasses.dataclass(frozen=True)
class Example:
  """One picture with its captions.

  Attributes:
    key: a stable name, which error messages quote, e.g. "1F600".
    image: uint8 [height, width, 3], or the bytes of an encoded picture (JPEG, PNG, ...).
    captions: at least one; the first is the main caption.
    shard: the file it came from; "" where there is none.
  """

  key: str
  image: np.ndarray | bytes
  captions: tuple[str, ...]
  shard: str = ""


class BadExample(ValueError):
  """An example that cannot be used. Training replaces it, evaluation stops.

  Attributes:
    key: of the example, within its shard.
    reason: one of a few words, by which bad examples are counted.
    shard: the file that should hold it; "" where there is none.
  """

  def __init__(self, message: str, *, key: str, reason: Reason, shard: str = ""):
    super().__init__(message)
    self.key, self.reason, self.shard = key, reason, shard

  def __reduce__(self):
    fields = {"key": self.key, "reason": self.reason, "shard": self.shard}
    return _rebuilt, (str(self), fields)


def _rebuilt(message: str, fields: dict) -> BadExample:
  return BadExample(message, **fields)


class Source(Protocol):
  """Random access to examples (grain's RandomAccessDataSource protocol).

  `source[index]` is called from several threads at once, and a source may be pickled to
  other processes. It raises `BadExample` for an example that cannot be used; every index
  below the length counts, good or bad, so that positions do not move when data rots.
  """

  def __len__(self) -> int: ...

  def __getitem__(self, index: int, /) -> Example: ...


@dataclasses.dataclass(frozen=True)
class Shard:
  """A file of a source, in the order of its examples.

  Attributes:
    path: where it lies.
    examples: how many indices point into it.
    bytes: its size.
    contents: a checksum of what is known of them without reading the file again, such
      as where its examples begin; 0 where nothing is.
  """

  path: str
  examples: int
  bytes: int
  contents: int = 0


@dataclasses.dataclass(frozen=True)
class Loss:
  """Examples that a shard should have and no index can point to.

  Attributes:
    shard: the file.
    reason: why they are lost.
    detail: what was found, for people.
    count: how many, where that is known (a stats file beside the shard), else 0; see
      `bad_examples.check_lost`.
  """

  shard: str
  reason: Reason
  detail: str
  count: int = 0


def losses_of(source: Source) -> Sequence[Loss]:
  """What `source` noticed to be missing when it was opened (its `losses`, if any)."""
  return getattr(source, "losses", ())


def shards_of(source: Source) -> Sequence[Shard]:
  """The files of `source`, if it has any (its `shards`)."""
  return getattr(source, "shards", ())


def whole_of(source: Source) -> Source:
  """What `source` was drawn from (its `whole`, see `subset.Subset`), or itself."""
  return getattr(source, "whole", source)


def identity_of(source: Source, *, in_parts: bool = False) -> dict[str, int | str]:
  """By what a resumed run knows that every index still means the same example.

  Names, lengths, sizes and checksums of files in their order; not their folders or dates,
  so that data may move. Of a subset also how it was drawn.

  Args:
    source: of the examples.
    in_parts: whether it matters which files make a part of a mixture.
  """
  shards = shards_of(source)
  facts = [(posixpath.basename(s.path), s.examples, s.bytes, s.contents) for s in shards]
  lines = ["\t".join(map(str, each)) + "\n" for each in facts]
  if in_parts:
    lines += [f"{len(part)}\n" for part in getattr(source, "parts", (source,))]
  if (whole := whole_of(source)) is not source:
    seed = getattr(source, "seed", None)
    lines.append(f"{len(source)} of {len(whole)} by {seed}\n")
  digest = hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()
  return {"examples": len(source), "shards": len(shards), "digest": digest}
