"""Memory and traffic of whole training steps, as compilers for H100s and TPUs plan them.

    pip install --no-deps --target .aot -r requirements-aot.txt
    JAX_PLATFORMS=cpu python benchmarks/aot_memory.py --targets=h100-8 \\
        --models=ViT-B-32,ViT-B-16 --batches=4096 --remat=none,dots,full
    JAX_PLATFORMS=cpu python benchmarks/aot_memory.py --results=table.jsonl
    JAX_PLATFORMS=cpu python benchmarks/aot_memory.py --results=table.jsonl --show

The compiler's answer, not a measurement: nothing runs on such a device, and none is
needed. `state` is the train state and the batch. The program's own buffers are counted;
what the runtime, its allocator and communication keep beside them comes on top. Traffic
is what a device receives in a step, as `aot/exchange.py` counts it. An H100's program
takes 15 to 40 s of CPU, a TPU's one to several minutes. `--results` keeps what is known
and goes on from there.
"""

import argparse
import dataclasses
import json
import pathlib
import sys
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from aot import step, targets  # noqa: E402

MIB = 2**20
# Of a device's memory; the rest is for its runtime and for batches on their way.
ROOM = 0.8
# Remat and micro-batches, the cheapest first: `--remat=fits` takes the first that fits.
LADDER = (("none", 1), ("dots", 1), ("full", 1), ("full", 2), ("full", 4), ("full", 8))
# A program grows at least so much with its rows, or a larger batch need not be tried.
GROWTH = 0.8
PURPOSES = {
  "embeddings": ("embeddings", "embeddings' gradient"),
  "gradients": ("gradients",),
  "parameters": ("parameters",),
  "rest": ("rest",),
}


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--targets", default="h100-8,tpu_v4-64,tpu_v5e-256")
  parser.add_argument("--models", default="ViT-B-32,ViT-B-16,ViT-L-14,RN50")
  parser.add_argument("--batches", default="4096,16384,32768,65536", help="global")
  parser.add_argument("--remat", default="fits", help="some, or the first that fits")
  parser.add_argument("--fsdp", type=int, help="by default 8 for ViT-L-14, else 1")
  parser.add_argument("--micro-batches", type=int, default=1, help="if --remat is given")
  parser.add_argument("--objective", default="rankclip")
  parser.add_argument(
    "--results", type=pathlib.Path, help="JSON lines, read and added to"
  )
  parser.add_argument("--show", action="store_true", help="only what is known already")
  args = parser.parse_args()
  known = read(args.results)
  versions = ", ".join(f"{name} {v}" for name, v in targets.versions().items())
  print(f"Planned by compilers, measured on no device. {versions}.\n")
  print("| devices | model | N | how | GiB: state | temporaries | together ", end="")
  print(
    "".join(f"| {'MiB: ' if i == 0 else ''}{x} " for i, x in enumerate(PURPOSES)), "|"
  )
  print("|---|---|---:|---|" + "---:|" * (3 + len(PURPOSES)))
  for name in args.targets.split(","):
    target, devices = name.split("-")
    for model in args.models.split(","):
      fsdp = args.fsdp or (8 if model == "ViT-L-14" else 1)
      first = step.Case(
        target, int(devices), model, 0, fsdp=fsdp, objective=args.objective
      )
      batches = [int(n) for n in args.batches.split(",")]
      if args.remat == "fits":
        cases = cheapest(first, batches, known, args)
      else:
        cases = every(first, batches, args)
      for case in cases:
        print(row(case, found(case, known, args)), flush=True)


def every(first: step.Case, batches: list[int], args) -> Iterator[step.Case]:
  """All that was asked for."""
  for batch in batches:
    for remat in args.remat.split(","):
      yield dataclasses.replace(
        first, batch=batch, remat=remat, micro_batches=args.micro_batches
      )


def cheapest(
  first: step.Case, batches: list[int], known: dict[str, dict], args
) -> Iterator[step.Case]:
  """For each batch the first of the ladder that fits, until none does."""
  rung, before = 0, None  # a larger batch takes at least what a smaller one took
  for batch in batches:
    while rung < len(LADDER):
      remat, pieces = LADDER[rung]
      case = dataclasses.replace(first, batch=batch, remat=remat, micro_batches=pieces)
      # Statistics of a whole batch are not those of its pieces.
      if pieces > 1 and (first.model == "RN50" or (batch // first.devices) % pieces):
        return
      if not (before and before[0].remat == remat and too_large(case, *before)):
        facts = found(case, known, args)
        if not facts["error"]:
          before = case, facts
        if fits(case, facts):
          yield case
          break
      rung += 1


def too_large(case: step.Case, smaller: step.Case, facts: dict) -> bool:
  """Whether a batch need not be tried, going by a smaller one of the same kind."""
  rows = lambda x: x.batch / x.micro_batches
  grown = GROWTH * facts["memory"]["temp"] * rows(case) / rows(smaller)
  return grown > ROOM * targets.DEVICE_MEMORY[case.target]


def fits(case: step.Case, facts: dict) -> bool:
  if facts["error"]:
    return False
  return facts["total"] <= ROOM * targets.DEVICE_MEMORY[case.target]


def read(path: pathlib.Path | None) -> dict[str, dict]:
  """What is known, by the name of the case."""
  if path is None or not path.exists():
    return {}
  rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
  return {x["case"]: x for x in rows}


def found(case: step.Case, known: dict[str, dict], args) -> dict:
  """Facts of a case, compiled if they are not known."""
  if str(case) not in known:
    if args.show:
      return {"case": str(case), "error": "not compiled"}
    known[str(case)] = step.facts(case)
    if args.results:
      with args.results.open("a", encoding="utf-8") as file:
        file.write(json.dumps(known[str(case)]) + "\n")
  return known[str(case)]


def row(case: step.Case, facts: dict) -> str:
  """One line of the table."""
  how = [case.remat]
  how += [f"{case.micro_batches} pieces"] * (case.micro_batches > 1)
  how += [f"fsdp {case.fsdp}"] * (case.fsdp > 1)
  name = f"{case.devices} x {case.target}"
  cells = [name, case.model, f"{case.batch:,}", ", ".join(how)]
  if facts["error"]:
    short = "does not fit" if "RESOURCE_EXHAUSTED" in facts["error"] else facts["error"]
    return f"| {' | '.join([*cells, short[:80]])} |"
  memory = facts["memory"]
  sizes = (memory["argument"], memory["temp"], facts["total"])
  cells += [f"{x / targets.GIB:.2f}" for x in sizes]
  for purposes in PURPOSES.values():
    received = sum(facts["exchanged"][x]["bytes"] for x in purposes)
    cells.append(f"{received / MIB:,.1f}")
  cells[-1] += f", and {len(facts['complaints'])} complaints" * bool(facts["complaints"])
  return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
  main()
