"""What a compiled program sends between devices: each collective, how often, how much.

Bytes are what one device has to receive, with g devices in a group, whatever way the
devices really go about it:

  all-gather           result (g - 1) / g
  reduce-scatter       operand (g - 1) / g
  all-reduce           2 operand (g - 1) / g, as a reduce-scatter and an all-gather
  all-to-all           operand (g - 1) / g
  collective-permute   operand
"""

import dataclasses
import re
from collections.abc import Iterable

from aot import hlo

_BITS = re.compile(r"[a-z]+?(\d+)")
_MODULE = re.compile(r"(replica_count|num_partitions)=(\d+)")
_GROUPS = re.compile(
  r"replica_groups=(\{\}|\{\{[\d,]*\}|\[\d+,\d+\]"
  # A mesh may say in which order it takes the devices.
  r"|mesh\[[^\]]*\](?:, device_ids=\(.*?\))? *\{[^}]*\})"
)
_AXIS = re.compile(r"'([^']+)'=(\d+)")
_OVER = re.compile(r"'([^']+)'([^,}]*)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_LOOP = re.compile(r"\b(condition|body)=%?([\w.-]+)")
_SCATTERED = re.compile(r"\bdimensions=\{(\d+)\}")
_SOURCE = re.compile(r'op_name="([^"]*)"')
# TPUs cut one gather into steps, each of which repeats the instruction.
_CHAIN = re.compile(r'chain_id="(\d+)"')
# What TPUs' compiler calls a fusion of an all-reduce with the slice of it that is kept.
_SLICED = "all-reduce-scatter"


@dataclasses.dataclass(frozen=True)
class Exchange:
  """A collective.

  Attributes:
    kind: "all-gather", "reduce-scatter" and so on; not "all-gather-start".
    arrays: before they are scattered, or after they are gathered: the larger side.
    group: how many devices take part in one exchange.
    times: it happens in one call of the program, loops counted.
    source: the operation of JAX that it comes from, if XLA remembers.
    text: of the instruction.
  """

  kind: str
  arrays: tuple[hlo.Shape, ...]
  group: int
  times: int
  source: str
  text: str

  @property
  def elements(self) -> int:
    """Of all arrays, every time."""
    return self.times * sum(x.elements for x in self.arrays)

  def received(self, shape: hlo.Shape) -> float:
    """Bytes of one of the arrays that a device receives, every time."""
    size = self.times * shape.elements * bytes_of(shape.dtype)
    if self.kind in ("collective-permute", "collective-broadcast"):
      return size
    share = (self.group - 1) / self.group
    return size * share * (2 if self.kind == "all-reduce" else 1)


def bytes_of(dtype: str) -> float:
  """Of one element of a type as HLO writes it."""
  bits = _BITS.match(dtype)
  return 1 if bits is None else int(bits[1]) / 8  # pred has no number


def exchanges(text: str) -> list[Exchange]:
  """All collectives of a program; a group of one device exchanges nothing.

  Raises:
    ValueError: for groups, or the trips of a loop around a collective, that cannot be
      read.
  """
  rows = list(hlo.lines(text))
  if not rows:
    raise ValueError(f"This is not the text of a program: {text[:80]!r}.")
  header = dict(_MODULE.findall(text[: text.index("\n")]))
  devices = int(header.get("replica_count", 1)) * int(header.get("num_partitions", 1))
  times = _times(rows, entry=_entry(text))
  found: dict[tuple, Exchange] = {}
  for row in rows:
    if kind := hlo.COLLECTIVE.fullmatch(row.opcode):
      one = _read(row, kind[1], bool(kind[2]), devices, times.get(row.computation, 0))
      chain = _CHAIN.search(row.rest)
      key = (one.kind, chain[1], one.arrays) if chain else (row.computation, row.name)
      other = found.get(key)
      # Steps of a chain may lie in a loop; the whole of it happens as often as its start.
      if other is None or one.times < other.times:
        found[key] = one
  return [x for x in found.values() if x.group > 1]


def _read(row: hlo.Line, kind: str, started: bool, devices: int, times: int | None):
  if times is None:
    raise ValueError(
      f"Cannot tell how often a loop runs around {row.name!r} in {row.computation!r}; "
      "aot/exchange.py must learn this form of its condition."
    )
  group = devices if kind == "collective-permute" else group_size(row.rest, devices)
  parts = _parts(row.result)
  # An all-reduce starts with its results, everything else with its operands before them.
  result = parts[1] if started and kind != "all-reduce" else row.result
  arrays = hlo.shapes_of(result)
  if kind == "reduce-scatter":
    axis = _SCATTERED.search(row.rest)
    arrays = tuple(_widened(x, int(axis[1]) if axis else 0, group) for x in arrays)
  if kind == "all-reduce" and row.computation.startswith(_SLICED):
    kind = "reduce-scatter"
  source = _SOURCE.search(row.rest)
  text = f"{row.name} = {row.result} {row.rest}"
  return Exchange(kind, arrays, group, times, source[1] if source else "", text[:400])


def group_size(rest: str, devices: int) -> int:
  """How many devices take part in one exchange.

  Args:
    rest: of the instruction, with "replica_groups": "{}" for all devices, lists of them,
      "[groups,devices]<=[...]", or the axes of a mesh.
    devices: of the program.

  Raises:
    ValueError: if there are none, or of another form.
  """
  groups = _GROUPS.search(rest)
  if groups is None:
    raise ValueError(f"Cannot read the groups of {rest[:200]!r}; aot/exchange.py must.")
  if groups[1] == "{}":
    return devices
  if groups[1].startswith("{{"):
    return groups[1].count(",") + 1
  if groups[1].startswith("["):
    return int(groups[1][1:-1].split(",")[1])
  mesh, _, over = groups[1].rpartition("{")
  sizes, size = dict(_AXIS.findall(mesh)), 1
  for name, part in _OVER.findall(over):
    if name not in sizes or part:
      raise ValueError(f"Cannot read the axes of {groups[1]!r}; aot/exchange.py must.")
    size *= int(sizes[name])
  return size


def _widened(shape: hlo.Shape, axis: int, group: int) -> hlo.Shape:
  """What a device gave to a reduce-scatter of which it keeps `shape`."""
  sizes = list(shape.sizes)
  sizes[axis] *= group
  return hlo.Shape(shape.dtype, tuple(sizes))


def _parts(result: str) -> list[str]:
  """The elements of a tuple's type."""
  parts, depth = [""], 0
  for c in result.removeprefix("(").removesuffix(")"):
    depth += (c in "([{") - (c in ")]}")
    if c == "," and depth == 0:
      parts.append("")
    else:
      parts[-1] += c
  return parts


def _entry(text: str) -> str:
  entry = re.search(r"^ENTRY %?([\w.-]+)", text, re.MULTILINE)
  if entry is None:
    raise ValueError("This program has no ENTRY.")
  return entry[1]


def _times(rows: Iterable[hlo.Line], entry: str) -> dict[str, int | None]:
  """How often each computation runs; None where a loop's trips cannot be told."""
  calls: dict[str, list[tuple[str, int | None]]] = {}
  inside: dict[str, list[hlo.Line]] = {}
  for row in rows:
    inside.setdefault(row.computation, []).append(row)
  for row in (row for found in inside.values() for row in found):
    trips: int | None = 1
    if row.opcode == "while":
      trips = _trips(row, inside)
    calls.setdefault(row.computation, []).extend((name, trips) for name in row.called)
  times: dict[str, int | None] = {}

  def visit(computation: str, count: int | None) -> None:
    before = times.get(computation, 0)
    times[computation] = None if before is None or count is None else before + count
    for name, trips in calls.get(computation, ()):
      visit(name, None if count is None or trips is None else count * trips)

  visit(entry, 1)
  return times


def _trips(loop: hlo.Line, inside: dict[str, list[hlo.Line]]) -> int | None:
  """Of a loop: as XLA says, or from a condition "i < constant" of a count from 0."""
  if known := _TRIPS.search(loop.rest):
    return int(known[1])
  condition = inside.get(dict(_LOOP.findall(loop.rest)).get("condition", ""), [])
  limits = [
    x.rest for x in condition if x.opcode == "constant" and x.result.startswith("s32")
  ]
  compared = [x for x in condition if x.opcode == "compare" and "direction=LT" in x.rest]
  if len(limits) != 1 or len(compared) != 1:
    return None
  value = re.match(r"\s*constant\((\d+)\)", limits[0])
  return int(value[1]) if value else None
