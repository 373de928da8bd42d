"""Examples that training could not use: written down once each, counted, and bounded."""

import collections
import contextlib
import fcntl
import json
import logging
import os
import pathlib
import statistics
import threading
from collections.abc import Iterable, Iterator, Mapping

from rankclip_jax.data.source import (
  BadExample,
  Loss,
  Source,
  losses_of,
  shards_of,
  whole_of,
)

log = logging.getLogger(__name__)

# The share of bad examples is taken over at least so many, so that one bad picture among
# the first ten does not stop a run.
_FEWEST = 1000


class BadExamples:
  """A JSON-lines file with one line for every bad example that was met.

  Lines have shard, key, reason and detail; what a shard lost as a whole has a count too.
  Called from many threads, and from processes of one host that each hold a copy: whoever
  has something new locks the file and reads what the others wrote.
  """

  def __init__(self, path: pathlib.Path):
    """Goes on with the file, if there is one. Its folder must exist."""
    self.path = path
    self._lock = threading.Lock()
    self._known: set[tuple] = set()
    self._read = 0  # bytes of the file
    self._told = False  # that it cannot be written to
    if path.exists() and (whole := path.read_bytes()) and not whole.endswith(b"\n"):
      with path.open("ab") as file:
        file.write(b"\n")  # or the torn line would take the next with it

  def __call__(self, bad: BadExample) -> None:
    """Notes an example, unless it was met before."""
    self._add(
      {"shard": bad.shard, "key": bad.key, "reason": bad.reason, "detail": str(bad)}
    )

  def lost(self, losses: Iterable[Loss]) -> None:
    """Notes what shards lost as a whole."""
    for loss in losses:
      line = {"shard": loss.shard, "key": "", "reason": loss.reason}
      self._add(line | {"detail": loss.detail, "count": loss.count})

  def lines(self) -> Iterator[dict]:
    """What the file has by now; a line that a crash cut short is passed over."""
    if self.path.exists():
      yield from _parsed(self.path.read_bytes())

  def summary(self) -> str:
    """One line with counts by reason and the worst shards; "" if there is nothing.

    Of all files beside this one: a run has one for every process.
    """
    of_run = sorted(self.path.parent.glob(f"{self.path.name.partition('.')[0]}*.jsonl"))
    found = (line for path in of_run for line in _parsed(path.read_bytes()))
    lines = list({(x.get("shard"), x.get("key")): x for x in found}.values())
    if not lines:
      return ""
    reasons = collections.Counter(x.get("reason") for x in lines)
    shards = collections.Counter(x.get("shard") for x in lines if x.get("shard"))
    parts = ", ".join(f"{n} {reason}" for reason, n in reasons.most_common())
    worst = ", ".join(f"{n} in {shard}" for shard, n in shards.most_common(3))
    return (
      f"{len(lines)} bad examples or shards were met ({parts}"
      + (f"; {worst}" if worst else "")
      + f"); all are in {', '.join(path.name for path in of_run)}."
    )

  def _add(self, line: dict) -> None:
    name = line["shard"], line["key"]
    with self._lock:
      if name in self._known:
        return
      try:
        self._write(name, line)
      except OSError as error:  # a full disk; the count in the metrics is not lost
        self._known.add(name)
        if not self._told:
          self._told = True
          log.warning("%s cannot be written to: %s.", self.path, error.strerror)

  def _write(self, name: tuple, line: dict) -> None:
    with self.path.open("a+b") as file:
      with contextlib.suppress(OSError):  # not every network file system has locks
        fcntl.flock(file, fcntl.LOCK_EX)  # let go when the file closes
      file.seek(self._read)
      self._known |= {(x.get("shard"), x.get("key")) for x in _parsed(file.read())}
      if name not in self._known:
        self._known.add(name)
        file.write((json.dumps(line) + "\n").encode())
      self._read = file.tell()

  def __getstate__(self):
    return {"path": self.path}

  def __setstate__(self, state):
    self.__init__(**state)


def _parsed(data: bytes) -> Iterator[dict]:
  for text in data.splitlines():
    with contextlib.suppress(ValueError):  # no JSON, or no UTF-8
      if isinstance(line := json.loads(text), dict):
        yield line


def count_lost(source: Source) -> int:
  """How many examples the shards of `source` have lost.

  Where nothing says how many examples a damaged shard had, it is taken to have had as
  many as the whole ones of its kind have, in the middle.
  """
  losses, shards = losses_of(source), shards_of(source)
  damaged = {loss.shard for loss in losses}
  there = {shard.path: shard.examples for shard in shards}
  usual = {}
  for kind in {_kind(path) for path in damaged}:
    alike = [shard for shard in shards if _kind(shard.path) == kind]
    whole = [shard.examples for shard in alike if shard.path not in damaged]
    most = [max((shard.examples for shard in alike), default=0)]
    usual[kind] = int(statistics.median(whole or most))
  guessed = lambda shard: max(usual[_kind(shard)] - there.get(shard, 0), 1)
  return sum(loss.count or guessed(loss.shard) for loss in losses)


def check_lost(source: Source, most: float) -> None:
  """Refuses data of which shards have lost too much; see `count_lost`.

  Args:
    source: of the examples.
    most: the share that may be bad.

  Raises:
    ValueError: naming both numbers and the first shard.
  """
  # What a shard lost is a share of all examples, not of a subset of them.
  losses, examples, lost = losses_of(source), len(whole_of(source)), count_lost(source)
  if lost > most * max(lost + examples, _FEWEST):
    about = "" if all(loss.count for loss in losses) else "About "
    raise ValueError(
      f"{about}{lost} examples were lost with {len(losses)} shards, {examples} are "
      f"there, and data.max_bad_fraction={most} allows {most:.1%}; {losses[0].shard}: "
      f"{losses[0].detail}. Get the shards again, or raise the fraction."
    )


def _kind(path: str) -> str:
  return os.path.splitext(path)[1]


class Allowance:
  """Stops a run whose data is worse than the config allows.

  Args:
    most: the share of examples that may be bad.
    where: what to tell the user to look at.
    so_far: of the run that this one goes on with.
  """

  def __init__(self, most: float, where: str, so_far: Mapping[str, int] | None = None):
    self._most, self._where = most, where
    self._read, self._bad = (so_far or {}).get("read", 0), (so_far or {}).get("bad", 0)

  @property
  def so_far(self) -> dict[str, int]:
    """How many examples were read, and how many of them were bad."""
    return {"read": self._read, "bad": self._bad}

  def count(self, read: int, bad: int) -> None:
    """Counts a batch: `read` examples in it, `bad` ones that it could not use.

    Raises:
      ValueError: if more than the share `most` of all that was read is bad.
    """
    self._read += read + bad
    self._bad += bad
    if self._bad > self._most * max(self._read, _FEWEST):
      raise ValueError(
        f"{self._bad} of {self._read} examples could not be used, and "
        f"data.max_bad_fraction={self._most} allows {self._most:.1%}; {self._where} "
        "names each with the reason. Mend the data (python -m rankclip_jax.data check), "
        "or raise the fraction."
      )
