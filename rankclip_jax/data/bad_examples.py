"""Examples that training could not use: written down once each, counted, and bounded."""

import collections
import contextlib
import json
import os
import pathlib
import threading
from collections.abc import Iterable, Iterator, Sequence

from rankclip_jax.data.source import BadExample, Loss

# The share of bad examples is taken over at least so many, so that one bad picture among
# the first ten does not stop a run.
_FEWEST = 1000


class BadExamples:
  """A JSON-lines file with one line for every bad example that was met.

  Lines have shard, key, reason and detail; what a shard lost as a whole has a count too.
  Called from many threads, and from processes that each hold a copy: a line is appended
  by one write.
  """

  def __init__(self, path: pathlib.Path):
    """Goes on with the file, if there is one. Its folder must exist."""
    self.path = path
    self._lock = threading.Lock()
    self._known = {(line.get("shard"), line.get("key")) for line in self.lines()}
    if path.exists() and (whole := path.read_bytes()) and not whole.endswith(b"\n"):
      path.write_bytes(whole + b"\n")  # or the torn line would take the next with it

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
    if not self.path.exists():
      return
    for text in self.path.read_bytes().splitlines():
      with contextlib.suppress(ValueError):  # no JSON, or no UTF-8
        if isinstance(line := json.loads(text), dict):
          yield line

  def summary(self) -> str:
    """One line with counts by reason and the worst shards; "" if there is nothing."""
    lines = list({(x.get("shard"), x.get("key")): x for x in self.lines()}.values())
    if not lines:
      return ""
    reasons = collections.Counter(x.get("reason") for x in lines)
    shards = collections.Counter(x.get("shard") for x in lines if x.get("shard"))
    parts = ", ".join(f"{n} {reason}" for reason, n in reasons.most_common())
    worst = ", ".join(f"{n} in {shard}" for shard, n in shards.most_common(3))
    return (
      f"{len(lines)} bad examples or shards were met ({parts}"
      + (f"; {worst}" if worst else "")
      + f"); all are in {self.path.name}."
    )

  def _add(self, line: dict) -> None:
    with self._lock:
      if (line["shard"], line["key"]) in self._known:
        return
      self._known.add((line["shard"], line["key"]))
    data = (json.dumps(line) + "\n").encode()
    number = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
      os.write(number, data)
    finally:
      os.close(number)

  def __getstate__(self):
    return {"path": self.path}

  def __setstate__(self, state):
    self.__init__(**state)


def check_lost(losses: Sequence[Loss], examples: int, most: float) -> None:
  """Refuses data of which shards are known to have lost too much.

  Args:
    losses: of the source; of those whose count is not known, nothing can be said.
    examples: that are there.
    most: the share that may be bad.

  Raises:
    ValueError: naming both numbers and the first shard.
  """
  lost = sum(loss.count for loss in losses)
  if lost > most * max(lost + examples, _FEWEST):
    raise ValueError(
      f"{lost} examples were lost with {len(losses)} shards, {examples} are there, and "
      f"data.max_bad_fraction={most} allows {most:.1%}; {losses[0].shard}: "
      f"{losses[0].detail}. Get the shards again, or raise the fraction."
    )


class Allowance:
  """Stops a run whose data is worse than the config allows.

  Args:
    most: the share of examples that may be bad.
    where: what to tell the user to look at.
  """

  def __init__(self, most: float, where: str):
    self._most, self._where = most, where
    self._read = self._bad = 0

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
