"""One shard of a `reshard`: what is in it, and how it is written, all or nothing."""

import collections
import contextlib
import dataclasses
import io
import itertools
import json
import os
import pathlib
import tarfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

from rankclip_jax.data import records
from rankclip_jax.data.source import BadExample, Example, Source
from rankclip_jax.data.tokenizer import clean
from rankclip_jax.data.tools import shrinking, threads

Kind = Literal["array_record", "tar"]


class Stopped(Exception):
  """What ends a shard before its time; nothing of it stays."""


@dataclasses.dataclass(frozen=True)
class Plan:
  """What is written, in which pieces. Shard k has the examples from k * per_shard on.

  Attributes:
    output: the folder.
    kind: of the files.
    size: pixels of the short side of pictures that are larger.
    quality: of JPEGs that are written.
    per_shard: examples of a shard, bad ones included, which are left out.
    examples: of the source.
  """

  output: pathlib.Path
  kind: Kind
  size: int
  quality: int
  per_shard: int
  examples: int

  def __len__(self) -> int:
    return -(-self.examples // self.per_shard)

  def rows(self, shard: int) -> range:
    """The indices in the source of a shard's examples."""
    start = shard * self.per_shard
    return range(start, min(start + self.per_shard, self.examples))

  def name(self, shard: int) -> str:
    """Of a shard, such that names sort as shards do."""
    return f"{shard:0{max(5, len(str(len(self) - 1)))}d}"

  def path(self, shard: int) -> pathlib.Path:
    """Of a shard's file, which is not there if none of its examples can be used."""
    return self.output / f"{self.name(shard)}.{self.kind}"

  def key(self, index: int) -> str:
    """What img2dataset calls a sample: the shard, and the place in it."""
    shard, row = divmod(index, self.per_shard)
    return f"{self.name(shard)}{row:0{max(4, len(str(self.per_shard - 1)))}d}"

  def stats(self, shard: int) -> dict[str, Any] | None:
    """What was noted of a shard when it was complete; None before."""
    try:
      stats = json.loads(self._stats(shard).read_text())
      size = self.path(shard).stat().st_size if stats["successes"] else 0
      return stats if stats["bytes"] == size else None
    except (OSError, ValueError, LookupError, TypeError):
      return None

  def note(self, shard: int, stats: dict[str, Any]) -> None:
    """Writes what is noted, in one go."""
    path = self._stats(shard)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(stats, indent=2) + "\n")
    os.replace(temporary, path)

  def _stats(self, shard: int) -> pathlib.Path:
    return self.output / f"{self.name(shard)}_stats.json"


@dataclasses.dataclass(frozen=True)
class Small:
  """An example that is ready to be written, and what is noted of it in a tar.

  Attributes:
    index: in the source.
    example: with a small JPEG.
    height, width: of it, in pixels.
  """

  index: int
  example: Example
  height: int
  width: int


def write(
  source: Source,
  plan: Plan,
  shard: int,
  *,
  num_threads: int,
  tick: Callable[[], None] = lambda: None,
) -> None:
  """Writes a shard of the plan, and what is to be noted of it.

  Args:
    source: of the examples.
    plan: of all shards.
    shard: which one.
    num_threads: that read, shrink and encode.
    tick: called after every example; may raise `Stopped`.

  Raises:
    OSError: if something cannot be read or written.
  """
  bad: list[dict[str, Any]] = []
  good = _good(source, plan, plan.rows(shard), num_threads, bad, tick)
  path = plan.path(shard)
  count = 0
  if (first := next(good, None)) is None:
    path.unlink(missing_ok=True)
  else:
    samples = itertools.chain([first], good)
    if plan.kind == "tar":
      count = write_tar(path, samples, plan.key)
    else:
      count = records.write_array_record(path, (small.example for small in samples))
  reasons = collections.Counter(line["reason"] for line in bad)
  plan.note(
    shard,
    {
      "count": len(plan.rows(shard)),
      "successes": count,
      "bytes": path.stat().st_size if count else 0,
      "status_dict": {"success": count, **reasons},
      "bad_examples": bad,
    },
  )


def _good(
  source: Source,
  plan: Plan,
  rows: range,
  num_threads: int,
  bad: list[dict[str, Any]],
  tick: Callable[[], None],
) -> Iterator[Small]:
  """The examples that can be used, in order; the others become lines of `bad`."""

  def small(index: int) -> Small | BadExample:
    try:
      return _small(source[index], index, plan)
    except BadExample as error:
      return error

  made = threads.in_order(small, rows, num_threads)
  for index, one in zip(rows, made, strict=True):
    tick()
    if isinstance(one, Small):
      yield one
      continue
    line = {"shard": one.shard, "key": one.key, "reason": one.reason}
    bad.append({"index": index, **line, "detail": str(one)})


def _small(example: Example, index: int, plan: Plan) -> Small:
  captions = tuple(caption for caption in example.captions if clean(caption))
  where = {"key": example.key, "shard": example.shard}
  if not captions:
    reason = "empty caption" if example.captions else "missing caption"
    message = f"Example {example.key!r} has no caption; give it one, or take it out."
    raise BadExample(message, reason=reason, **where)
  try:
    "".join(captions).encode()
  except UnicodeEncodeError as error:
    message = f"A caption of {example.key!r} is no text ({error})."
    raise BadExample(message, reason="undecodable caption", **where) from error
  picture, height, width = shrinking.shrunk(example, plan.size, plan.quality)
  key = example.key.encode(errors="backslashreplace").decode()
  return Small(index, Example(key, picture, captions, example.shard), height, width)


def write_tar(
  path: pathlib.Path, samples: Iterable[Small], key_of: Callable[[int], str]
) -> int:
  """Writes a tar as img2dataset does: KEY.jpg, KEY.txt and KEY.json of each sample.

  The text is the first caption. The JSON has all of them as a list, if there are several,
  and the key that the example had: two of one key would become one sample.

  Args:
    path: of the tar, which is there when it is whole.
    samples: in their order.
    key_of: what names the sample of an index.

  Returns:
    The number of samples.
  """
  temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
  count = 0
  try:
    with tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
      for small in samples:
        key, captions = key_of(small.index), small.example.captions
        facts = {
          "caption": captions[0] if len(captions) == 1 else captions,
          "key": key,
          "status": "success",
          "width": small.width,
          "height": small.height,
          "source_key": small.example.key,
        }
        assert isinstance(small.example.image, bytes)
        _add(tar, f"{key}.jpg", small.example.image)
        _add(tar, f"{key}.txt", captions[0].encode())
        _add(tar, f"{key}.json", json.dumps(facts, ensure_ascii=False).encode())
        count += 1
    os.replace(temporary, path)
  finally:
    with contextlib.suppress(FileNotFoundError):
      temporary.unlink()
  return count


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
  info = tarfile.TarInfo(name)  # of time 0, so that equal data makes equal files
  info.size = len(data)
  tar.addfile(info, io.BytesIO(data))
