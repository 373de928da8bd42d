"""Time and peak memory of RankCLIP's whole objective, forward and backward, by N.

    python benchmarks/loss.py --sizes 1024 2048 4096 --json loss.json --plot loss.png
    python benchmarks/loss.py --from-json loss.json more.json --plot loss.png --markdown

Every contender of `contenders.py` runs in a process of its own on the same cores, and
must find the same loss. They take turns, one run each, so that what else the machine does
hits all of them; the best run counts. A contender that would need more memory than there
is does not run: the table says how much that is.

Peak memory is measured in a second process that runs twice: its high-water mark above
what it held just before, with libraries loaded, inputs made and programs compiled. There
malloc gives every array back at once, for what it would keep depends on chance. Linux
only.
"""

import argparse
import contextlib
import dataclasses
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import contenders, figures, machine

FIT_FROM = 1024  # smaller batches measure overheads
KEPT = 0.7  # of the available memory, for a contender's estimated need
MEMORY_RUNS = 2
# glibc's malloc gives every array above this size back as soon as it is free.
NOTHING_KEPT = {"MALLOC_MMAP_THRESHOLD_": "65536"}
LOSS_RTOL = 1e-4
Table = list[tuple[str, ...]]  # lines of cells, the head first


@dataclasses.dataclass(frozen=True)
class Row:
  """One contender at one size; `seconds` is None where it did not run.

  Attributes:
    seconds, runs: the best of so many runs.
    peak, planned: bytes measured, and those that `blocked.choose` has announced.
    needs: estimated bytes, where they are more than there are.
  """

  size: int
  contender: str
  device: str = "cpu"
  loss: float | None = None
  seconds: float | None = None
  runs: int = 0
  peak: int | None = None
  planned: int | None = None
  compile_seconds: float | None = None
  needs: int | None = None
  failed: str | None = None


class Child:
  """A contender in its own process, which runs once for every line that it is sent."""

  def __init__(self, name: str, size: int, args: argparse.Namespace, **environment: str):
    options = [f"--child={name}", f"--sizes={size}", f"--cores={args.cores}"]
    options.append(f"--memory-mib={args.memory_mib}")
    platform = {"cpu": "cpu", "gpu": "cuda"}[args.platform]
    env = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    env |= {"JAX_PLATFORMS": platform, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    env |= environment
    command = [sys.executable, __file__, *options]
    pipe = subprocess.PIPE
    self.process = subprocess.Popen(command, env=env, stdin=pipe, stdout=pipe, text=True)
    self.row = Row(size, name)
    self.spent = 0.0
    self._take()

  def run(self, patience: float) -> None:
    """Once more, unless its runs have taken `patience` seconds already."""
    if self.row.failed is None and self.spent < patience:
      assert self.process.stdin is not None
      self.process.stdin.write("run\n")
      self.process.stdin.flush()
      self._take()

  def _take(self) -> None:
    """The answer of the process into `row`."""
    assert self.process.stdout is not None
    answer = self.process.stdout.readline()
    if not answer.startswith("{"):
      failed = f"died with exit code {self.process.wait()}"
      self.row = dataclasses.replace(self.row, failed=failed, seconds=None, peak=None)
      return
    values = json.loads(answer)
    if "seconds" in values:
      self.spent += values["seconds"]
      values["seconds"] = min(values["seconds"], self.row.seconds or math.inf)
      values["runs"] = self.row.runs + 1
    self.row = dataclasses.replace(self.row, **values)

  def __enter__(self) -> "Child":
    return self

  def __exit__(self, *_) -> None:
    with contextlib.suppress(BrokenPipeError):
      self.process.communicate()


def serve(name: str, size: int, memory_mib: int, cores: int) -> None:
  """The child: prepares, then runs once a line of its input, in bytes and seconds."""
  os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
  ready = contenders.CONTENDERS[name](size, memory_mib)
  say = lambda **values: print(json.dumps(values), flush=True)
  say(
    device=ready.device,
    compile_seconds=ready.compile_seconds,
    planned=ready.planned_bytes,
  )
  memory = machine.PeakMemory(ready.device)
  for _ in sys.stdin:
    began = time.perf_counter()
    loss = ready.run()
    seconds = time.perf_counter() - began
    say(loss=loss, seconds=seconds, peak=memory.bytes())


def compare(size: int, done: Sequence[Row], args: argparse.Namespace) -> Iterator[Row]:
  """All contenders at one size.

  Raises:
    RuntimeError: if they do not find the same loss.
  """
  # On a GPU, whose memory no process gives back, one after another.
  names = list(args.contenders)
  groups = [names] if args.platform == "cpu" else [[name] for name in names]
  rows = {}
  for group in groups:
    with contextlib.ExitStack() as stack:
      children = []
      for name in group:
        needs = needed_bytes(name, size, done)
        if args.platform == "cpu" and needs > KEPT * machine.available_bytes():
          rows[name] = Row(size, name, needs=needs)
        else:
          children.append(stack.enter_context(Child(name, size, args)))
      for _ in range(args.repeats):
        for child in children:
          child.run(args.patience)
      rows |= {child.row.contender: child.row for child in children}
  for name in [name for name, row in rows.items() if row.seconds is not None]:
    with Child(name, size, args, **NOTHING_KEPT) as child:
      for _ in range(MEMORY_RUNS):
        child.run(math.inf)
    rows[name] = dataclasses.replace(rows[name], peak=child.row.peak)
  losses = {name: row.loss for name, row in rows.items() if row.loss is not None}
  if losses and not np.allclose([*losses.values()], max(losses.values()), rtol=LOSS_RTOL):
    raise RuntimeError(f"At size {size} contenders find different losses: {losses}")
  yield from (rows[name] for name in names)


def needed_bytes(name: str, size: int, done: Sequence[Row]) -> int:
  """What a naive contender will take, by its largest size so far; 0 for the others."""
  if name not in contenders.NAIVE_FLOATS:
    return 0
  measured = [(r.size, r.peak) for r in done if r.contender == name and r.peak]
  if measured:
    known, peak = max(measured)
    return round(peak * (size / known) ** 2)
  return 4 * contenders.NAIVE_FLOATS[name] * size**2


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float | None:
  """The a of value = c size^a, by least squares of logarithms; None under 2 points."""
  if len(sizes) < 2:
    return None
  return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def table(rows: Sequence[Row]) -> Table:
  """The measured numbers, with ratios to the released code at the same size."""
  head = ("N", "contender", "ms", "x time", "peak MiB", "x memory", "planned MiB")
  lines: Table = [(*head, "compile s", "M elements/s", "runs")]
  base = {r.size: r for r in rows if r.contender == contenders.BASELINE}
  for r in rows:
    first = (str(r.size), r.contender + ("" if r.device == "cpu" else f" ({r.device})"))
    if r.seconds is None or r.peak is None:
      why = r.failed or f"needs about {(r.needs or 0) / machine.GIB:.1f} GiB"
      lines.append((*first, "-", "-", why, *["-"] * 5))
      continue
    of = base.get(r.size, Row(r.size, ""))
    numbers = (
      f"{1e3 * r.seconds:.0f}",
      f"{r.seconds / of.seconds:.2f}" if of.seconds else "-",
      f"{r.peak / machine.MIB:.0f}",
      f"{r.peak / of.peak:.2f}" if of.peak else "-",
      f"{r.planned / machine.MIB:.0f}" if r.planned else "-",
      f"{r.compile_seconds:.1f}" if r.compile_seconds is not None else "-",
      f"{4 * r.size**2 / r.seconds / 1e6:.0f}",
      str(r.runs),
    )
    lines.append((*first, *numbers))
  return lines


def fits(rows: Sequence[Row]) -> Table:
  """Fitted exponents of time and peak memory over N, from `FIT_FROM` on."""
  lines: Table = [("contender", "time ~ N^", "memory ~ N^", "over N")]
  for name in dict.fromkeys(r.contender for r in rows):
    points = [
      (r.size, r.seconds, r.peak)
      for r in rows
      if r.contender == name and r.size >= FIT_FROM and r.seconds and (r.peak or 0) > 0
    ]
    sizes, seconds, peaks = zip(*points, strict=True) if points else ((), (), ())
    both = [exponent(sizes, x) for x in (seconds, peaks)]
    cells = ["-" if x is None else f"{x:.2f}" for x in both]
    lines.append((name, *cells, " ".join(str(n) for n in sizes)))
  return lines


def draw(rows: Sequence[Row], path: Path) -> None:
  """Two panels: time and peak memory against N."""
  panels = []
  for title, field, form in (
    ("Time, forward and backward", "seconds", figures.seconds),
    ("Peak memory", "peak", figures.bytes_),
  ):
    lines = []
    for name in dict.fromkeys(r.contender for r in rows):
      of_name = [r for r in rows if r.contender == name]
      points = [(r.size, getattr(r, field)) for r in of_name]
      points = [(x, y) for x, y in points if y and y > 0]
      label = contenders.LABELS[name]
      for why, sizes in (
        ("no memory for", [r.size for r in of_name if r.needs]),
        ("failed at", [r.size for r in of_name if r.failed]),
      ):
        if sizes:
          label += f"\n({why} {figures.count(min(sizes))})"
      if points:
        place = list(contenders.CONTENDERS).index(name)
        lines.append(figures.Line(label, place, points))
    panels.append(figures.Panel(title, form, lines))
  figures.scaling(path, panels, x_label="global batch N", guide=2)


def formatted(lines: Table, *, markdown: bool) -> str:
  """Aligned columns, or Markdown."""
  if markdown:
    rule = ("---:",) * len(lines[0])
    lines = [lines[0], rule, *lines[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  pad = lambda line: (cell.rjust(w) for cell, w in zip(line, widths, strict=True))
  return "\n".join("  ".join(pad(line)) for line in lines)


def arguments() -> argparse.Namespace:
  names = list(contenders.CONTENDERS)
  parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
  add = parser.add_argument
  add("--sizes", type=int, nargs="+", default=[512, 1024, 2048, 4096, 8192])
  add("--contenders", nargs="+", choices=names, default=names)
  add("--repeats", type=int, default=5, help="rounds; the best run counts")
  add("--patience", type=float, default=90.0, help="seconds of runs, then no more rounds")
  add("--cores", type=int, default=len(os.sched_getaffinity(0)))
  add("--platform", choices=("cpu", "gpu"), default="cpu")
  add("--memory-mib", type=int, default=256, help="Blocking's, of this project")
  add("--markdown", action="store_true", help="tables for docs")
  add("--json", type=Path, help="where to write the raw numbers")
  add("--from-json", type=Path, nargs="+", help="measure nothing, read these")
  add("--plot", type=Path, help="where to draw them (PNG)")
  add("--child", choices=names, help=argparse.SUPPRESS)
  return parser.parse_args()


def measure(args: argparse.Namespace) -> tuple[str, list[Row]]:
  """All sizes; numbers are written after each, for a sweep that is stopped."""
  where = machine.describe(("jax", "torch", "rax"), args.cores)
  about = f"Best of at most {args.repeats} runs. {where}"
  rows: list[Row] = []
  for size in sorted(args.sizes):
    rows += compare(size, rows, args)
    print(f"N = {size} done.", file=sys.stderr, flush=True)
    if args.json:
      content = {"about": about, "rows": [dataclasses.asdict(r) for r in rows]}
      args.json.write_text(json.dumps(content, indent=1) + "\n")
  return about, rows


def main() -> None:
  args = arguments()
  if args.child:
    serve(args.child, args.sizes[0], args.memory_mib, args.cores)
    return
  if args.from_json:
    contents = [json.loads(path.read_text()) for path in args.from_json]
    about = "\n".join(dict.fromkeys(x["about"] for x in contents))
    rows = [Row(**r) for x in contents for r in x["rows"]]
  else:
    about, rows = measure(args)
  print(formatted(table(rows), markdown=args.markdown), end="\n\n")
  print(formatted(fits(rows), markdown=args.markdown))
  print(f"\n{about}")
  if args.plot:
    draw(rows, args.plot)


if __name__ == "__main__":
  main()
