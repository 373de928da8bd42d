"""Memory a device of whole training steps, as compilers for H100s and TPU v5e plan it.

    pip install --no-deps --target .aot -r requirements-aot.txt
    JAX_PLATFORMS=cpu python benchmarks/aot_memory.py --models=ViT-B-32,ViT-B-16
    JAX_PLATFORMS=cpu python benchmarks/aot_memory.py --devices=1 --batch=32768 \\
        --micro-batches=64 --models=ViT-B-32 --remat=none

The compiler's answer, not a measurement: nothing runs on such a device, and none is
needed. Arguments are the train state and the batch. The program's own buffers are
counted; what the runtime, its allocator and communication keep beside them comes on top.
20 to 60 seconds a row on 2 cores.
"""

import argparse
import pathlib
import sys

import jax

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from aot import step, targets  # noqa: E402

GIB = 2**30


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--models", default="ViT-B-32,ViT-B-16")
  parser.add_argument("--remat", default="none,dots,full")
  parser.add_argument("--targets", default="h100", help="of h100, tpu_v5e")
  parser.add_argument("--devices", type=int, default=8, choices=(1, 8))
  parser.add_argument("--batch", type=int, default=512, help="rows of one device")
  parser.add_argument("--fsdp", type=int, default=1)
  parser.add_argument("--micro-batches", type=int, default=1, help="see accumulate.py")
  parser.add_argument("--objective", default="rankclip")
  args = parser.parse_args()
  versions = ", ".join(f"{name} {v}" for name, v in targets.versions().items())
  print(f"Planned by compilers, measured on no device. {versions}.")
  print(
    f"{args.devices} devices, {args.batch} rows on each, mesh.fsdp {args.fsdp}, "
    f"optim.micro_batches {args.micro_batches}:\n"
  )
  print(
    "| target | model | remat | arguments GiB | temp GiB | total GiB | compiled in s |"
  )
  print("|---|---|---|---:|---:|---:|---:|")
  for name in args.targets.split(","):
    for model in args.models.split(","):
      for remat in args.remat.split(","):
        case = step.Case(
          name,
          model,
          args.batch,
          args.devices,
          remat,
          args.fsdp,
          args.micro_batches,
          args.objective,
        )
        target = f"{args.devices} x {name}"
        print(f"| {target} | {model} | {remat} | {row(case)} |", flush=True)


def row(case: step.Case) -> str:
  """The numbers of one line: GiB a device, and seconds."""
  try:
    program = step.compile_case(case)
  except jax.errors.JaxRuntimeError as e:
    if "RESOURCE_EXHAUSTED" not in str(e):
      raise
    return f"does not fit: {str(e).splitlines()[0][:120]} | | |"
  memory = program.memory
  gib = [f"{x / GIB:.2f}" for x in (memory.argument, memory.temp, memory.total)]
  return " | ".join([*gib, f"{program.seconds:.0f}"])


if __name__ == "__main__":
  main()
