"""What a sample of a source holds, counted: what is bad, pictures, captions, repeats."""

import array
import collections
import dataclasses
import hashlib
import io
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from rankclip_jax.data import decoding
from rankclip_jax.data.source import BadExample, Example, Source
from rankclip_jax.data.tokenizer import Tokenizer
from rankclip_jax.data.tools import threads

# Captions are counted up to so many tokens; longer ones are as long as this.
LONGEST = 4096
# Examples that a thread looks at in one go.
_PIECE = 16
_START_AND_END = 2
_QUANTILES = {"min": 0, "1%": 1, "5%": 5, "50%": 50, "95%": 95, "99%": 99, "max": 100}
_FREQUENT = 5


@dataclasses.dataclass(frozen=True)
class Facts:
  """What is kept of an example that can be used.

  Attributes:
    form: "JPEG" and other names of Pillow's; "pixels" if the source has decoded it.
    mode: Pillow's name of the colours it is stored in.
    height, width: in pixels.
    size: in bytes.
    digest: of the bytes.
    lengths: of the captions, in tokens with start and end.
    captions: their digests.
    read, decode: seconds.
  """

  form: str
  mode: str
  height: int
  width: int
  size: int
  digest: int
  lengths: tuple[int, ...]
  captions: tuple[int, ...]
  read: float
  decode: float


def sample(source: Source, examples: int, seed: int) -> np.ndarray:
  """Indices of so many examples (all, if there are no more), drawn by seed, ascending."""
  count = len(source)
  if examples >= count:
    return np.arange(count)
  rng = np.random.default_rng(seed)
  return np.sort(rng.choice(count, examples, replace=False, shuffle=False))


def looks(
  source: Source, indices: Sequence[int] | np.ndarray, num_threads: int
) -> Iterator[tuple[int, str, Facts | BadExample]]:
  """Reads and decodes examples by many threads: index, shard and what was found."""
  tokenizer = Tokenizer(LONGEST)

  def piece(start: int) -> list[tuple[int, str, Facts | BadExample]]:
    found = []
    for index in indices[start : start + _PIECE]:
      try:
        found.append((int(index), *_look(source, int(index), tokenizer)))
      except BadExample as bad:
        found.append((int(index), bad.shard, bad))
    return found

  for found in threads.in_order(piece, range(0, len(indices), _PIECE), num_threads):
    yield from found


def _look(source: Source, index: int, tokenizer: Tokenizer) -> tuple[str, Facts]:
  """Shard and facts of an example; raises BadExample where training would."""
  began = time.perf_counter()
  example = source[index]
  read = time.perf_counter()
  height, width, _ = decoding.exact(example).shape
  decoded = time.perf_counter()
  if isinstance(example.image, bytes):
    data = example.image
    with Image.open(io.BytesIO(data)) as picture:
      form, mode = picture.format or "?", picture.mode
  else:
    data, form, mode = example.image.tobytes(), "pixels", "RGB"
  # The end of the text has the highest id.
  lengths = tuple((tokenizer(example.captions).argmax(axis=1) + 1).tolist())
  if max(lengths, default=0) <= _START_AND_END:
    raise _no_caption(example)
  return example.shard, Facts(
    form=form,
    mode=mode,
    height=height,
    width=width,
    size=len(data),
    digest=_digest(data),
    lengths=lengths,
    captions=tuple(
      _digest(caption.encode(errors="surrogatepass")) for caption in example.captions
    ),
    read=read - began,
    decode=decoded - read,
  )


def _no_caption(example: Example) -> BadExample:
  reason = "empty caption" if example.captions else "missing caption"
  return BadExample(
    f"Example {example.key!r} has {reason.replace('empty', 'an empty')}, got "
    f"{example.captions!r:.200}; give it one, or take it out.",
    key=example.key,
    reason=reason,
    shard=example.shard,
  )


def _digest(data: bytes) -> int:
  """64 bits: of 10 million different ones, any two agree with a chance of 3 in 10^6."""
  return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest())


class Survey:
  """Counts what `looks` finds, in some 100 bytes an example."""

  def __init__(self):
    self.read = 0
    self._bad_by_reason = collections.Counter()
    self._bad_by_shard = collections.Counter()
    self._read_by_shard = collections.Counter()
    self._forms, self._modes = collections.Counter(), collections.Counter()
    self._columns = {
      name: array.array("d" if name in ("read", "decode") else "Q")
      for name in ("height", "width", "size", "digest", "read", "decode")
    }
    # Of captions: length, digest, and whose it is.
    self._lengths, self._texts = array.array("H"), array.array("Q")
    self._owners, self._per_example = array.array("Q"), array.array("H")

  def add(self, index: int, shard: str, found: Facts | BadExample) -> None:
    """Counts one more."""
    self.read += 1
    self._read_by_shard[shard] += 1
    if isinstance(found, BadExample):
      self._bad_by_reason[found.reason] += 1
      self._bad_by_shard[shard] += 1
      return
    self._forms[found.form] += 1
    self._modes[found.mode] += 1
    for name, column in self._columns.items():
      column.append(getattr(found, name))
    self._per_example.append(len(found.lengths))
    self._lengths.extend(found.lengths)
    # A caption that an example has twice is no repeat of another example's.
    self._texts.extend(found.captions)
    self._owners.extend([index] * len(found.captions))

  @property
  def bad(self) -> int:
    """How many of those read cannot be used."""
    return self._bad_by_reason.total()

  def lengths(self) -> np.ndarray:
    """Of all captions, in tokens with start and end."""
    return np.array(self._lengths, np.int64)

  def bad_numbers(self) -> dict[str, Any]:
    """Counts of what cannot be used, by reason and by shard, the worst first."""
    return {
      "count": self.bad,
      "fraction": _share(self.bad, self.read),
      "by_reason": dict(self._bad_by_reason.most_common()),
      "by_shard": {
        shard: {"bad": bad, "read": self._read_by_shard[shard]}
        for shard, bad in self._bad_by_shard.most_common()
      },
    }

  def shards(self) -> int:
    """How many have an example in the sample."""
    return len(self._read_by_shard)

  def picture_numbers(self) -> dict[str, Any]:
    """Formats, sizes, repeats and times."""
    columns = {name: np.array(column) for name, column in self._columns.items()}
    return {
      "count": len(columns["size"]),
      "formats": dict(self._forms.most_common()),
      "modes": dict(self._modes.most_common()),
      "width": _spread(columns["width"]),
      "height": _spread(columns["height"]),
      "short_side": _spread(np.minimum(columns["width"], columns["height"])),
      "bytes": _spread(columns["size"]),
      "duplicates": _repeats(columns["digest"]),
      "read_seconds": _spread(columns["read"]),
      "decode_seconds": _spread(columns["decode"]),
    }

  def caption_numbers(
    self, context_length: int, text_of: Callable[[int, int], str]
  ) -> dict[str, Any]:
    """Lengths, repeats, and which repeat most.

    Args:
      context_length: tokens that a model reads.
      text_of: the caption of an example that has a digest, for the few shown.
    """
    lengths, texts = self.lengths(), np.array(self._texts)
    owners = np.array(self._owners)
    pairs = np.unique(np.stack([texts, owners], axis=1), axis=0)
    values, first, counts = np.unique(pairs[:, 0], return_index=True, return_counts=True)
    most = [i for i in np.argsort(-counts, kind="stable")[:_FREQUENT] if counts[i] > 1]
    used, numbers = np.unique(lengths, return_counts=True)
    return {
      "count": len(lengths),
      "per_example": _spread(np.array(self._per_example)),
      "tokens": _spread(lengths),
      "tokens_counts": dict(zip(used.tolist(), numbers.tolist(), strict=True)),
      "context_length": context_length,
      "truncated": _counted(int((lengths > context_length).sum()), len(lengths)),
      "empty": _counted(int((lengths <= _START_AND_END).sum()), len(lengths)),
      "duplicates": _counted(len(pairs) - len(values), len(pairs)),
      "most_frequent": [
        {
          "caption": text_of(int(pairs[first[i], 1]), int(values[i])),
          "count": int(counts[i]),
        }
        for i in most
      ],
    }


def caption_with(source: Source, index: int, digest: int) -> str:
  """The caption of an example that `Survey` knows by its digest."""
  texts = source[index].captions
  return next(t for t in texts if _digest(t.encode(errors="surrogatepass")) == digest)


def _spread(values: np.ndarray) -> dict[str, float | None]:
  if not len(values):
    return dict.fromkeys([*_QUANTILES, "mean"])
  found = np.percentile(values, list(_QUANTILES.values()))
  spread = dict(zip(_QUANTILES, found.tolist(), strict=True))
  return spread | {"mean": float(values.mean())}


def _repeats(digests: np.ndarray) -> dict[str, float]:
  return _counted(len(digests) - len(np.unique(digests)), len(digests))


def _counted(count: int, of: int) -> dict[str, float]:
  return {"count": count, "fraction": _share(count, of)}


def _share(count: int, of: int) -> float:
  return count / of if of else 0.0
