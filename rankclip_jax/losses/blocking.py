"""How the work of `blocked` is cut: how many rows at once, and by which sort."""

import dataclasses
from typing import Literal, NamedTuple, get_args

from rankclip_jax.losses import native, order
from rankclip_jax.losses import objective as objectives

MIB = 2**20
# What the compilers for H100s and TPUs allot, and on CPUs with the kernel: see tests/aot.
CHUNK_FLOATS = 13  # a chunk's similarities, gradients, keys: for each of its C x N pairs
BATCH_FLOATS = 5  # gathered embeddings and their gradients: for each of N x D numbers
CPU_CHUNK_FLOATS = 30  # the former, where XLA sorts on a CPU
# More rows than this make nothing faster.
MOST_ROWS, CPU_MOST_ROWS = 512, 128
# XLA's radix sort on GPUs takes keys of less than 2 GiB, at 4 bytes each.
MOST_PAIRS = 2**29 - 1
# Below this the kernel saves milliseconds a step, for 5 s of compiling it once.
NATIVE_LENGTH = 512

Order = Literal["auto", "packed", "payload", "short", "exact", "native"]


@dataclasses.dataclass(frozen=True)
class Blocking:
  """How the work is cut. None of it changes the loss beyond the resolution of an order.

  Attributes:
    chunk_rows: rows taken at once; None is as many as fit into `memory_mib`.
    memory_mib: what the temporaries of a chunk may take.
    order: a backend of `order`, or "native", the CPU kernel; "auto" is the kernel where
      there is one, and else `order.default`.
  """

  chunk_rows: int | None = None
  memory_mib: int = 256
  order: Order = "auto"


AUTOMATIC = Blocking()


class Blocks(NamedTuple):
  """A `Blocking` resolved for one objective, shape and platform.

  Attributes:
    rows: taken at once.
    order: how they are sorted.
    gathers: see `order.arrange`.
    predicted_bytes: about what the operation takes beside its arguments and results.
  """

  rows: int
  order: order.Backend | native.Backend
  gathers: bool
  predicted_bytes: int


def choose(
  blocking: Blocking,
  objective: objectives.Objective,
  *,
  rows: int,
  length: int,
  dim: int,
  platform: str,
) -> Blocks:
  """Chunk rows and order for `rows` of a global batch of `length` on a device.

  Raises:
    ValueError: for an order that there is not, whose index bits do not fit, or that this
      platform or objective does not have, and for a chunk or a budget of nothing.
  """
  backend = _order(blocking.order, objective, length, platform)
  slow = platform == "cpu" and backend != "native"
  chunk_floats = CPU_CHUNK_FLOATS if slow else CHUNK_FLOATS
  chunk = blocking.chunk_rows
  if blocking.memory_mib < 1:
    raise ValueError(f"memory_mib must be at least 1, got {blocking.memory_mib}.")
  if chunk is None:
    most = CPU_MOST_ROWS if platform == "cpu" else MOST_ROWS
    fit = blocking.memory_mib * MIB // (4 * chunk_floats * length)
    chunk = _rows_within(min(fit, MOST_PAIRS // length, most, rows), rows)
  elif chunk < 1:
    raise ValueError(f"chunk_rows must be at least 1, got {chunk}; None chooses it.")
  chunk = min(chunk, rows)
  floats = chunk_floats * chunk * length + BATCH_FLOATS * length * dim
  return Blocks(chunk, backend, platform != "tpu", 4 * floats)


def _order(
  wanted: Order, objective: objectives.Objective, length: int, platform: str
) -> order.Backend | native.Backend:
  """`auto` resolved, and the others checked."""
  whole = objective.top_k is None or objective.top_k >= length
  sorts = objective.ranks and whole  # else no backend has anything to do
  has_kernel = platform == "cpu" and sorts and objective.eps is None
  if wanted == "auto":
    if has_kernel and length >= NATIVE_LENGTH and native.available():
      return "native"
    return order.default(length)

  def refuse(reason: str) -> ValueError:
    able = [x for x in order.LONGEST if not sorts or length <= order.LONGEST[x]]
    able += ["native"] if has_kernel and native.available() else []
    names = " or ".join(f'"{name}"' for name in ("auto", *able))
    return ValueError(f"{reason}; use order={names}.")

  if wanted not in get_args(Order):
    names = ", ".join(get_args(Order))
    raise ValueError(f"Unknown order {wanted!r}; there are {names}.")
  elif wanted == "native":
    if platform != "cpu":
      raise refuse(f'order="native" is a CPU kernel, got {platform}')
    if objective.ranks and not has_kernel:
      raise refuse('order="native" can rank neither by eps nor the top_k alone')
  elif sorts and length > order.LONGEST[wanted]:
    raise refuse(
      f'order="{wanted}" has index bits for lists of {order.LONGEST[wanted]}, got a '
      f"global batch of {length}"
    )
  return wanted


def _rows_within(most: int, rows: int) -> int:
  """At most so many rows, at least one, and preferably a divisor of `rows`."""
  most = max(most, 1)
  divisor = next(n for n in range(most, 0, -1) if rows % n == 0)
  return divisor if 2 * divisor >= most else most
