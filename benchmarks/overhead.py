"""What a run costs beside its steps: seconds until it compiles, and the loop.

    python benchmarks/overhead.py
    python benchmarks/overhead.py --starts=10 --rounds=40 --json=overhead.json

Of the quickstart (configs/openmoji.py), by hooks into the code that `main.py` runs:

1. fresh processes, one after the other, from their start until the first program is
   compiled, split by part; what follows until the step is compiled is told apart;
2. one training, in blocks of steps that take turns: the compiled step alone, the loop
   around it with the same batches from the host's memory, and the loop with its input.
   What the loop costs is the median over turns of the part that is not the step.

Other work on the machine changes seconds by the clock; so starts have the processors'
time beside them, and the loop that of its own thread, where everything happens but the
step and the input. On CPUs the input's threads take from the step what they use.
"""

import argparse
import contextlib
import dataclasses
import functools
import itertools
import json
import os
import pathlib
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

CONFIG = "configs/openmoji.py"
PACKAGES = ("jax", "jaxlib", "flax", "orbax-checkpoint", "grain")
# Parts of a start in their order; the last of those before anything is compiled.
BEFORE_COMPILING = "plan: data, mesh"
MOST_SECONDS, MOST_SHARE = 10.0, 0.02  # asked for
# Of every block, so many steps are not measured: what the one before it left is used up.
SETTLING = 6


class Done(Exception):
  """Enough was measured."""


def quickstart(**changes: Any):
  """The config as `main.py` has it, with other fields of its sections."""
  import importlib.util

  from rankclip_jax import config

  spec = importlib.util.spec_from_file_location("quickstart", ROOT / CONFIG)
  assert spec is not None
  assert spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  cfg = config.from_config_dict(module.get_config(None))
  sections = {
    name: dataclasses.replace(getattr(cfg, name), **fields)
    for name, fields in changes.items()
  }
  return dataclasses.replace(cfg, **sections)


def start(began: float, workdir: pathlib.Path) -> None:
  """A start in this process; prints its parts as the last line of stdout.

  Of each its seconds by the clock and by the processors, which a busy machine changes
  less.
  """
  marks = [("", began, 0.0), ("interpreter", time.time(), time.process_time())]
  mark = lambda part: marks.append((part, time.time(), time.process_time()))

  import main  # noqa: F401

  mark("imports")
  cfg = quickstart()
  mark("config")

  from rankclip_jax import launcher, loop, plan, state

  def before(module: Any, name: str, part: str) -> None:
    """What happened until `module.name` is called is `part`."""
    wrapped = getattr(module, name)

    @functools.wraps(wrapped)
    def marking(*args: Any, **kwargs: Any) -> Any:
      mark(part)
      return wrapped(*args, **kwargs)

    setattr(module, name, marking)

  def compile_ahead(*_: Any) -> None:
    mark("held-out data")
    raise Done

  before(plan, "make", "workdir, checkpoints")
  before(state, "create", BEFORE_COMPILING)
  before(loop, "evaluator_of", "first weights (compiled)")
  loop.compile_ahead = compile_ahead
  with contextlib.suppress(Done):
    launcher.run(cfg, workdir)
  spans = itertools.pairwise(marks)
  parts = {b[0]: (b[1] - a[1], b[2] - a[2]) for a, b in spans}
  print(json.dumps(parts))


def starts(count: int) -> list[dict[str, tuple[float, float]]]:
  """Seconds of clock and processors, by part, of so many fresh processes."""
  found = []
  # Files that were never read come from a disk, and its speed is not ours.
  for i in range(count + 1):
    with tempfile.TemporaryDirectory() as workdir:
      began = time.time()
      command = [sys.executable, __file__, "--start", str(began), workdir]
      run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if run.returncode:
      sys.exit(f"The start failed:\n{run.stderr[-4000:]}")
    if i:
      found.append(json.loads(run.stdout.splitlines()[-1]))
  return found


def clocks() -> tuple[float, float]:
  """Seconds of the clock, and those that this thread computed."""
  return time.perf_counter(), time.thread_time()


class Blocks:
  """A training's steps, in blocks that take turns, and how long a step of each took.

  Takes the place of the loop's `compile_ahead` and of its input.

  Attributes:
    seconds: of a step, by the clock and by what the loop's thread computed, a pair a
      turn, by kind of block.
  """

  def __init__(self, steps: int, rounds: int):
    self._steps, self._rounds = steps, rounds
    self.seconds: dict[str, list[tuple[float, float]]] = {
      "bare": [],
      "memory": [],
      "input": [],
    }
    self._kept: list[dict[str, Any]] = []
    self._rows: list[Any] = []
    self._taken, self._began = 0, clocks()

  def batches(self, real: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Batches for a block from memory, a block as they come, and so on."""
    self._kept = [next(real) for _ in range(SETTLING)]
    while True:
      for i in range(SETTLING + self._steps):
        yield dict(self._kept[i % len(self._kept)])
      for _ in range(SETTLING + self._steps):
        yield next(real)

  def clocked(self, compiled: Any) -> Any:
    """A compiled step with a clock around it."""
    step = compiled.call

    def timed(state: Any, rows: Any) -> Any:
      block, place = divmod(self._taken, SETTLING + self._steps)
      kind = ("memory", "input")[block % 2]
      if place == 0:
        if block:
          # From dispatch to dispatch: the loop waits for the last step but one.
          self._note(("memory", "input")[(block - 1) % 2])
        if block == 2 * self._rounds:
          raise Done
        if kind == "memory":
          self._alone(step, state)
      if kind == "memory" and place < len(self._kept):
        self._rows = [*self._rows[:place], rows]
      if place == SETTLING:
        self._began = clocks()
      self._taken += 1
      return step(state, rows)

    return dataclasses.replace(compiled, call=timed)

  def _note(self, kind: str) -> None:
    pair = zip(clocks(), self._began, strict=True)
    wall, thread = ((now - then) / self._steps for now, then in pair)
    self.seconds[kind].append((wall, thread))

  def _alone(self, step: Any, state: Any) -> None:
    """The step again and again on the batches that lie on the devices already."""
    import jax
    import jax.numpy as jnp

    if len(self._rows) < len(self._kept):  # the first block has compiled it
      return
    with jax.transfer_guard("allow"):
      now = jax.tree.map(jnp.copy, state)
      for i in range(SETTLING):
        now, _ = step(now, self._rows[i])
      jax.block_until_ready(now)
      self._began = clocks()
      for i in range(self._steps):
        now, _ = step(now, self._rows[i % len(self._rows)])
      jax.block_until_ready(now)
    self._note("bare")


def loops(steps: int, rounds: int) -> dict[str, list[tuple[float, float]]]:
  """Seconds a step: of the step alone, in the loop, and in the loop with its input."""
  from rankclip_jax import loop, train

  # The first round compiles and fills what it keeps.
  blocks = Blocks(steps, rounds + 1)
  make, batches_of = loop.compile_ahead, loop.plans.batches_of
  loop.compile_ahead = lambda *args: blocks.clocked(make(*args))
  loop.plans.batches_of = lambda *args: blocks.batches(batches_of(*args))
  cfg = quickstart(
    optim={"epochs": 10_000},
    eval={"every_epochs": 0},
    checkpoint={"every_minutes": 0.0},
  )
  with tempfile.TemporaryDirectory() as workdir, contextlib.suppress(Done):
    train.run(cfg, pathlib.Path(workdir))
  found = {kind: values[-rounds:] for kind, values in blocks.seconds.items()}
  assert all(len(values) == rounds for values in found.values())
  return found


def share(more: list[float], less: list[float]) -> tuple[float, float, float]:
  """Median over turns of the part of `more` that is not `less`, and its 95 % interval.

  Single turns differ by more than what is asked for; the interval is that of the median,
  by the bootstrap.
  """
  parts = [1 - b / a for a, b in zip(more, less, strict=True)]
  rng = random.Random(0)
  again = [statistics.median(rng.choices(parts, k=len(parts))) for _ in range(10_000)]
  low, *_, high = statistics.quantiles(again, n=40)
  return statistics.median(parts), low, high


def table_of_starts(found: list[dict[str, tuple[float, float]]]) -> str:
  """Markdown: of each part the median, least and most, and the processors' median."""
  lines = [
    "| part | median s | least | most | of processors |",
    "|---|---:|---:|---:|---:|",
  ]

  def line(name: str, *parts: str) -> None:
    both = [[sum(one[p][i] for p in parts) for one in found] for i in (0, 1)]
    wall, processors = both
    numbers = (statistics.median(wall), min(wall), max(wall))
    numbers += (statistics.median(processors),)
    lines.append(f"| {name} | " + " | ".join(f"{x:.2f}" for x in numbers) + " |")

  parts = list(found[0])
  until = parts.index(BEFORE_COMPILING) + 1
  for part in parts[:until]:
    line(part, part)
  asked = f"**before anything is compiled** (asked for: {MOST_SECONDS:.0f})"
  line(asked, *parts[:until])
  for part in parts[until:]:
    line(f"then: {part}", part)
  return "\n".join(lines)


def table_of_loops(found: dict[str, list[tuple[float, float]]]) -> str:
  """Markdown: what a step takes, and the part of the loop that it is not."""
  names = {
    "bare": "the compiled step alone",
    "memory": "the loop, batches in memory",
    "input": "the loop, with its input",
  }
  lines = [
    f"| | ms a step | not the step (asked for: {MOST_SHARE:.0%}) | 95 % of that "
    "| ms of the loop's thread | over the step's |",
    "|---|---:|---:|---:|---:|---:|",
  ]
  bare_wall, bare_thread = map(list, zip(*found["bare"], strict=True))
  for kind, pairs in found.items():
    wall, thread = map(list, zip(*pairs, strict=True))
    cells = [names[kind], f"{1e3 * statistics.median(wall):.1f}", "", ""]
    cells += [f"{1e3 * statistics.median(thread):.1f}", ""]
    if kind != "bare":
      median, low, high = share(wall, bare_wall)
      cells[2:4] = f"{median:+.1%}", f"{low:+.1%} to {high:+.1%}"
      parts = zip(thread, bare_thread, bare_wall, strict=True)
      cells[5] = f"{statistics.median((a - b) / w for a, b, w in parts):+.1%}"
    lines.append(f"| {' | '.join(cells)} |")
  return "\n".join(lines)


def arguments() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
  parser.add_argument("--starts", type=int, default=5, help="processes, after a first")
  parser.add_argument(
    "--rounds", type=int, default=8, help="turns of the blocks, at least 2"
  )
  parser.add_argument("--steps", type=int, default=12, help="measured ones of a block")
  parser.add_argument("--json", type=pathlib.Path, help="where to write raw numbers")
  parser.add_argument("--start", nargs=2, metavar=("BEGAN", "WORKDIR"), help="one start")
  return parser.parse_args()


def main() -> None:
  args = arguments()
  if args.start:
    start(float(args.start[0]), pathlib.Path(args.start[1]))
    return
  from benchmarks import machine

  load = os.getloadavg()[0]
  started = starts(args.starts) if args.starts else []
  stepped = loops(args.steps, args.rounds) if args.rounds else {}
  print(machine.describe(PACKAGES, os.cpu_count() or 1))
  print(f"Load before it began: {load:.1f}.\n")
  if started:
    print(f"{table_of_starts(started)}\n")
  if stepped:
    print(table_of_loops(stepped))
  if args.json:
    content = {"starts": started, "loop": stepped, "load": load}
    args.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
  main()
