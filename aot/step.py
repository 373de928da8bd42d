"""Compiles whole training and evaluation steps for a list of cases; prints facts as JSON.

    python -m aot.step

One JSON object a line, as soon as it is known. `tests/aot/step_test.py` runs this in a
process of its own and judges the facts; `benchmarks/aot_memory.py` makes a table.
"""

import dataclasses
import functools
import pathlib
import tempfile
from typing import Any, Literal

import jax
import jax.numpy as jnp

from aot import command, exchange, judge, targets
from rankclip_jax import config, evaluate, plan, sharding, state, step
from rankclip_jax.models import two_tower

Part = Literal["train", "encode_image", "encode_text"]


@dataclasses.dataclass(frozen=True)
class Case:
  """A step, of training or of evaluation, as a config would have it.

  Attributes:
    target, devices: of `targets.TARGETS`.
    model: of `models.sizes.SIZES`, in bfloat16.
    batch: global.
    part: a whole training step, or what evaluation compiles for one tower.
    remat, fsdp, micro_batches, objective: of the config.
  """

  target: str
  devices: int
  model: str
  batch: int
  part: Part = "train"
  remat: str = "none"
  fsdp: int = 1
  micro_batches: int = 1
  objective: str = "rankclip"

  def __str__(self) -> str:
    name = f"{self.target}-{self.devices}-{self.model}-{self.batch}"
    marks = (
      (self.part, "train", self.part.replace("_", "-")),
      (self.remat, "none", self.remat),
      (self.fsdp, 1, f"fsdp{self.fsdp}"),
      (self.micro_batches, 1, f"pieces{self.micro_batches}"),
      (self.objective, "rankclip", self.objective),
    )
    return "-".join([name, *(mark for value, usual, mark in marks if value != usual)])

  @property
  def config(self) -> config.Config:
    """What a user would write, but for the data."""
    return config.from_config_dict(
      {
        "model": {"name": self.model, "dtype": "bfloat16", "remat": self.remat},
        "objective": {"name": self.objective},
        "optim": {"micro_batches": self.micro_batches},
        "mesh": {"fsdp": self.fsdp},
        "data": {"batch_size": self.batch},
        "eval": {"batch_size": self.batch},
      }
    )


CASES = [
  Case("h100", 8, "ViT-B-32", 4096),
  Case("h100", 8, "ViT-B-16", 4096, remat="dots"),
  Case("h100", 8, "ViT-B-32", 4096, remat="dots", fsdp=8),
  Case("h100", 8, "ViT-L-14", 4096, remat="full", fsdp=8),
  Case("h100", 8, "RN50", 2048),
  Case("tpu_v5e", 256, "ViT-B-32", 4096, remat="dots"),
  Case("tpu_v4", 64, "ViT-B-32", 4096, remat="dots", fsdp=8),
  # Evaluation: a tower alone.
  Case("h100", 8, "ViT-B-32", 4096, "encode_image"),
  Case("h100", 8, "ViT-B-32", 4096, "encode_text", fsdp=8),
  Case("tpu_v5e", 256, "ViT-B-32", 4096, "encode_image"),
  Case("tpu_v4", 64, "ViT-B-32", 4096, "encode_text", fsdp=8),
]
# TPUs' compiler takes eight minutes of CPU over RN50: `--cases tpu_v5e-8-RN50-512`.
BY_HAND = [
  Case("tpu_v5e", 8, "RN50", 512),
  Case("tpu_v4", 64, "ViT-B-32", 4096, remat="dots"),
]


@functools.lru_cache(maxsize=1)  # it is asked for twice, to compile and to judge
def plan_of(case: Case) -> plan.Plan:
  """`plan.make` on the target's devices, with data enough for a batch."""
  target = targets.TARGETS[case.target][case.devices]()
  with tempfile.TemporaryDirectory() as folder:
    rows = pathlib.Path(folder) / "pairs.csv"
    rows.write_text("image,caption\n" + "x,y\n" * case.batch, encoding="utf-8")
    data = dataclasses.replace(case.config.data, source="csv", train=str(rows))
    cfg = dataclasses.replace(case.config, data=data)
    return plan.make(cfg, devices=target.devices)


def compile_case(case: Case) -> targets.Program:
  """The step as training or evaluation calls it, for a mesh of the target's devices."""
  p = plan_of(case)
  if case.part == "train":
    function, arguments = step.compile_step(p), train_arguments(case, p)
  else:
    graph, _ = two_tower.abstract(p.size, with_bias=p.objective.has_bias)
    function = evaluate.encoder(graph, p.mesh, case.part)
    arguments = eval_arguments(case, p)
  return targets.compile_for(
    targets.TARGETS[case.target][case.devices](), function, *arguments
  )


def train_arguments(case: Case, p: plan.Plan) -> tuple[Any, dict]:
  """Shapes and shardings of a state and a global batch."""
  inputs = {
    "image": _input(case, p, "encode_image"),
    "tokens": _input(case, p, "encode_text"),
  }
  return state.abstract(p.size, p.objective, p.optimizer, p.mesh), inputs


def eval_arguments(case: Case, p: plan.Plan) -> tuple[Any, dict]:
  """Shapes and shardings of parameters and a global batch, as `Evaluator` gives them."""
  params = state.abstract(p.size, p.objective, p.optimizer, p.mesh).params
  spread = sharding.over_batch(p.mesh)
  rows = {
    "input": _input(case, p, case.part),
    "index": jax.ShapeDtypeStruct((case.batch,), jnp.int32, sharding=spread),
    "mask": jax.ShapeDtypeStruct((case.batch,), jnp.bool_, sharding=spread),
  }
  return params, rows


def _input(case: Case, p: plan.Plan, tower: str) -> jax.ShapeDtypeStruct:
  size, dtype = p.size, jnp.int32
  shape: tuple[int, ...] = (size.context_length,)
  if tower == "encode_image":
    shape, dtype = (size.image_size, size.image_size, 3), jnp.uint8
  spread = sharding.over_batch(p.mesh)
  return jax.ShapeDtypeStruct((case.batch, *shape), dtype, sharding=spread)


def facts_of(case: Case, program: targets.Program) -> dict:
  """What is judged of a compiled case, and what tables show: bytes a device and step."""
  wanted = judge.expected(plan_of(case), case.batch, case.part)
  sums, unexpected = judge.by_purpose(exchange.exchanges(program.hlo), wanted)
  return {
    "case": str(case),
    "error": None,
    "seconds": program.seconds,
    "memory": dataclasses.asdict(program.memory),
    "total": program.memory.total,
    "exchanged": {purpose: dataclasses.asdict(x) for purpose, x in sums.items()},
    "trained": wanted.trained,
    "complaints": judge.complaints(sums, unexpected, wanted),
  }


def facts(case: Case) -> dict:
  """`facts_of` a case, or why it does not compile."""
  try:
    return facts_of(case, compile_case(case))
  except jax.errors.JaxRuntimeError as e:
    return {"case": str(case), "error": str(e)[:500]}


if __name__ == "__main__":
  command.answer(__doc__, CASES, BY_HAND, facts)
