"""A source of what a test gives it."""

import os
import time
from collections.abc import Sequence

from rankclip_jax.data.source import BadExample, Example, Loss, Reason


class Stub:
  """Good and bad examples by index, and losses."""

  def __init__(
    self, outcomes: Sequence[Example | Exception], losses: Sequence[Loss] = ()
  ):
    self.outcomes, self.losses = list(outcomes), tuple(losses)

  def __len__(self) -> int:
    return len(self.outcomes)

  def __getitem__(self, index: int, /) -> Example:
    found = self.outcomes[index]
    if isinstance(found, Exception):
      raise found
    return found


class Slow:
  """Examples that take their time and leave a byte in a file each; the first is an error
  of the disk."""

  def __init__(self, example: Example, count: int, trace: str):
    self.example, self.count, self.trace = example, count, trace

  def __len__(self) -> int:
    return self.count

  def __getitem__(self, index: int, /) -> Example:
    if index == 0:
      raise OSError("the disk is gone")
    time.sleep(0.05)
    number = os.open(self.trace, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(number, b".")
    os.close(number)
    return self.example


def bad(key: str, reason: Reason, shard: str = "a.tar") -> BadExample:
  """An example that cannot be used."""
  return BadExample(f"{key} cannot be used", key=key, reason=reason, shard=shard)
