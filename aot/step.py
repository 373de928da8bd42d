"""Compiles whole training steps for every case of a short list; prints facts as JSON.

    python -m aot.step

One JSON object a line, as soon as it is known. `tests/aot/step_test.py` runs this in a
process of its own and judges the facts; `benchmarks/aot_memory.py` makes a table.
"""

import argparse
import dataclasses
import json

import jax
import jax.numpy as jnp

from aot import hlo, targets
from rankclip_jax import config, plan, sharding, state, step


@dataclasses.dataclass(frozen=True)
class Case:
  """A step of the `rankclip` objective; `rows` are those of one device."""

  target: str
  model: str
  rows: int
  devices: int = 8
  remat: str = "none"
  fsdp: int = 1
  micro_batches: int = 1
  objective: str = "rankclip"

  def __str__(self) -> str:
    remat = "" if self.remat == "none" else f"-{self.remat}"
    return f"{self.target}-{self.devices}-{self.model}-{self.rows}{remat}"


CASES = [
  Case("h100", "ViT-B-32", 512),
  Case("h100", "ViT-B-32", 512, remat="dots"),
  Case("h100", "ViT-B-16", 512, remat="dots"),
  Case("h100", "RN50", 256),
  Case("tpu_v5e", "ViT-B-32", 128),
]
# TPUs' compiler takes eight minutes of CPU over RN50: `--cases tpu_v5e-8-RN50-64`.
BY_HAND = [Case("tpu_v5e", "RN50", 64)]


def compile_case(case: Case) -> targets.Program:
  """`step.compile_step` as training calls it, for a mesh of the target's devices."""
  target = targets.TARGETS[case.target][case.devices]()
  cfg = config.from_config_dict(
    {
      "model": {
        "name": case.model,
        "dtype": "bfloat16",
        "remat": case.remat,
      },
      "objective": {"name": case.objective},
      "optim": {"micro_batches": case.micro_batches},
    }
  )
  mesh = sharding.make_mesh(-1, case.fsdp, target.devices)
  # Batch and length of the run do not matter here: the step is compiled for any batch.
  p = plan.make(cfg)
  p = dataclasses.replace(p, mesh=mesh)
  batch = case.rows * case.devices
  examples = {
    "image": jax.ShapeDtypeStruct((batch, *(p.size.image_size,) * 2, 3), jnp.uint8),
    "tokens": jax.ShapeDtypeStruct((batch, p.size.context_length), jnp.int32),
  }
  before = state.abstract(p.size, p.objective, p.optimizer, mesh)
  return targets.compile_for(target, step.compile_step(p), before, examples)


def facts(case: Case) -> dict:
  """What is judged of a case: sizes in bytes a device, and what is exchanged."""
  try:
    program = compile_case(case)
  except jax.errors.JaxRuntimeError as e:
    return {"case": str(case), "error": str(e)[:500]}
  exchanged = hlo.collectives(hlo.instructions(program.hlo))
  return {
    "case": str(case),
    "error": None,
    "seconds": program.seconds,
    "total": program.memory.total,
    "collectives": {kind: len(found) for kind, found in exchanged.items()},
  }


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  named = {str(case): case for case in CASES + BY_HAND}
  default = list(map(str, CASES))
  parser.add_argument("--cases", nargs="*", default=default, choices=named)
  for name in parser.parse_args().cases:
    print(json.dumps(facts(named[name])), flush=True)


if __name__ == "__main__":
  main()
