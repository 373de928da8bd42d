"""Reading optimised HLO, the text of a compiled program: buffers, sorts, collectives."""

import collections
import dataclasses
import math
import re
from collections.abc import Iterable, Iterator

_SHAPE = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\]")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.-]+) = ")
_COMPUTATION = re.compile(r"(?:ENTRY )?%?([\w.-]+) \(.*\{$")
_OPCODE = re.compile(r"\s*([\w-]+)\(")
_TARGET = re.compile(r'custom_call_target="([^"]+)"')
_CALLED = re.compile(r"\b(?:calls|to_apply|body|condition)=%?([\w.-]+)")
# The two halves of an asynchronous one are "-start" and "-done".
COLLECTIVE = re.compile(
  r"(all-gather|all-reduce|reduce-scatter|all-to-all|ragged-all-to-all"
  r"|collective-permute|collective-broadcast)(-start)?"
)
# What XLA's sort rewriter calls CUB's radix sort, by version.
CUB_SORTS = ("xla.gpu.ext.cub_sort_", "__cub$DeviceRadixSort")


@dataclasses.dataclass(frozen=True)
class Shape:
  """An array's element type and sizes, one device's share."""

  dtype: str
  sizes: tuple[int, ...]

  @property
  def elements(self) -> int:
    return math.prod(self.sizes)

  @property
  def scratch(self) -> bool:
    """A list of bytes: the working memory of a library's call."""
    return self.dtype in ("s8", "u8") and len(self.sizes) == 1

  def __str__(self) -> str:
    return f"{self.dtype}[{','.join(map(str, self.sizes))}]"


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of HLO.

  Attributes:
    name, opcode: as in "%name = f32[2] opcode(...)".
    target: a custom call's, else empty.
    shapes: of the result; a tuple's are all listed.
    fused: inside a fusion, where only the fusion's own result takes memory.
    looped: inside a loop, where it happens many times.
  """

  name: str
  opcode: str
  target: str
  shapes: tuple[Shape, ...]
  fused: bool
  looped: bool

  @property
  def elements(self) -> int:
    """Of the largest array of the result, scratch left aside."""
    arrays = [shape.elements for shape in self.shapes if not shape.scratch]
    return max(arrays, default=0)

  def __str__(self) -> str:
    shapes = ", ".join(map(str, self.shapes))
    return f"{self.name} = {self.target or self.opcode} -> {shapes}"


@dataclasses.dataclass(frozen=True)
class Line:
  """One line of HLO as it is written.

  Attributes:
    computation: that it is part of.
    name, opcode: as in "%name = f32[2] opcode(...)".
    result: its type.
    rest: from the opcode on.
  """

  computation: str
  name: str
  opcode: str
  result: str
  rest: str

  @property
  def called(self) -> list[str]:
    """Computations that it calls."""
    return _CALLED.findall(self.rest)


def instructions(text: str) -> list[Instruction]:
  """Every instruction of every computation of a program.

  Raises:
    ValueError: if nothing can be read, so that no check passes for lack of a program.
  """
  rows = list(lines(text))
  if not rows:
    raise ValueError(f"This is not the text of a program: {text[:80]!r}.")
  called: dict[str, dict[str, set[str]]] = {"fusion": {}, "while": {}, "other": {}}
  for row in rows:
    by = row.opcode if row.opcode in called else "other"
    called[by].setdefault(row.computation, set()).update(row.called)
  fused, looped = _inside("fusion", called), _inside("while", called)
  return [
    Instruction(
      name=row.name,
      opcode=row.opcode,
      target=target[1] if (target := _TARGET.search(row.rest)) else "",
      shapes=shapes_of(row.result),
      fused=row.computation in fused,
      looped=row.computation in looped,
    )
    for row in rows
  ]


def lines(text: str) -> Iterator[Line]:
  """A program line by line, unread.

  Raises:
    ValueError: for an instruction of unknown form.
  """
  computation = ""
  for line in text.splitlines():
    if header := _COMPUTATION.match(line):
      computation = header[1]
    elif start := _INSTRUCTION.match(line):
      result, rest = _split_type(line[start.end() :])
      opcode = _OPCODE.match(rest)
      if opcode is None:
        raise ValueError(
          f"Cannot read this line of HLO, {line!r}; aot/hlo.py must learn its form."
        )
      yield Line(computation, start[1], opcode[1], result, rest)


def _inside(kind: str, called: dict[str, dict[str, set[str]]]) -> set[str]:
  """Computations that instructions of a kind call, and all that these call."""
  found = set()
  new = set().union(*called[kind].values())
  while new:
    found |= new
    calls = (by.get(name, set()) for by in called.values() for name in new)
    new = set().union(*calls) - found
  return found


def buffers(program: Iterable[Instruction], at_least: int) -> list[Instruction]:
  """What holds an array of `at_least` elements in memory, largest first."""
  large = [x for x in program if not x.fused and x.elements >= at_least]
  return sorted(large, key=lambda x: -x.elements)


def slow_sorts(program: Iterable[Instruction], at_least: int) -> list[Instruction]:
  """Sorts of `at_least` elements that XLA compares its way through."""
  return [x for x in program if x.opcode == "sort" and x.elements >= at_least]


def cub_sorts(program: Iterable[Instruction], at_least: int) -> list[Instruction]:
  """Sorts of `at_least` elements that became calls of CUB's radix sort."""
  return [x for x in program if x.target.startswith(CUB_SORTS) and x.elements >= at_least]


def collectives(program: Iterable[Instruction]) -> dict[str, list[Instruction]]:
  """What devices exchange, by kind."""
  found = collections.defaultdict(list)
  for x in program:
    if kind := COLLECTIVE.fullmatch(x.opcode):
      found[kind[1]].append(x)
  return dict(found)


def _split_type(text: str) -> tuple[str, str]:
  """The result's type, which is balanced or has no blank, and what follows it."""
  if not text.startswith("("):
    result, _, rest = text.partition(" ")
    return result, rest
  depth = 0
  for i, c in enumerate(text):
    depth += (c == "(") - (c == ")")
    if depth == 0:
      return text[: i + 1], text[i + 1 :]
  return text, ""


def shapes_of(result: str) -> tuple[Shape, ...]:
  """All arrays of a type, which may be a tuple."""
  return tuple(
    Shape(dtype, tuple(int(n) for n in sizes.split(",") if n))
    for dtype, sizes in _SHAPE.findall(result)
  )
