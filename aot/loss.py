"""Compiles the loss and its gradient for every case of a grid; prints facts as JSON.

    python -m aot.loss

One JSON object a line, as soon as it is known. `tests/aot/loss_test.py` runs this in a
process of its own and judges the facts.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from aot import command, hlo, targets
from rankclip_jax import sharding, step
from rankclip_jax.losses import blocked
from rankclip_jax.losses import objective as objectives

DIM = 512  # of CLIP's B models
KINDS = 2  # of ids, where there are some
RANKCLIP = objectives.PRESETS["rankclip"]
OBJECTIVES = {
  "rankclip": RANKCLIP,
  # Every term, with decay, and with ids.
  "everything": dataclasses.replace(
    RANKCLIP, decay="log", cyclic_cross_modal_weight=0.25, cyclic_in_modal_weight=0.25
  ),
  "top16": dataclasses.replace(RANKCLIP, top_k=16),
}


@dataclasses.dataclass(frozen=True)
class Case:
  """Where, of which objective and for how many pairs the loss is compiled.

  Attributes:
    target, devices: of `targets.TARGETS`.
    batch: global.
    objective: of `OBJECTIVES`.
  """

  target: str
  devices: int
  batch: int
  objective: str = "rankclip"

  @property
  def rows(self) -> int:
    """Of one device."""
    return self.batch // self.devices

  @property
  def blocks(self) -> blocked.Blocks:
    """What the loss chooses itself."""
    return blocked.choose(
      blocked.AUTOMATIC,
      OBJECTIVES[self.objective],
      rows=self.rows,
      length=self.batch,
      dim=DIM,
      platform={"h100": "gpu", "tpu_v5e": "tpu"}[self.target],
    )

  def __str__(self) -> str:
    name = f"{self.target}-{self.devices}-{self.batch}"
    return name if self.objective == "rankclip" else f"{name}-{self.objective}"


BATCHES = (512, 2048, 8192, 32768, 65536)
CASES = [
  *[Case("h100", devices, batch) for devices in (1, 8) for batch in BATCHES],
  *[Case("h100", 8, 32768, name) for name in ("everything", "top16")],
  # A few alone, because TPUs' compiler takes up to 190 s of CPU over one, H100s' about 8.
  *[Case("tpu_v5e", devices, 512) for devices in (1, 8)],
  Case("tpu_v5e", 8, 16384),
]
# TPUs' compiler took seven minutes over it: `--cases tpu_v5e-8-65536`.
BY_HAND = [Case("tpu_v5e", 8, 65536)]


def abstract_loss(mesh: Mesh, case: Case):
  """The loss and its three gradients, jitted, and the shapes of its arguments."""

  def loss(image, text, log_scale, ids):
    value, _ = step.global_loss(
      OBJECTIVES[case.objective],
      mesh,
      image,
      text,
      log_scale=log_scale,
      bias=None,
      rank_weight=jnp.float32(1.0),
      tie_key=jax.random.key(0),
      ids=ids,
    )
    return value

  rows, whole = sharding.over_batch(mesh), sharding.replicated(mesh)
  embeddings = jax.ShapeDtypeStruct((case.batch, DIM), jnp.float32, sharding=rows)
  ids = None
  if case.objective == "everything":
    ids = jax.ShapeDtypeStruct((case.batch, KINDS), jnp.int32, sharding=rows)
  log_scale = jax.ShapeDtypeStruct((), jnp.float32, sharding=whole)
  gradient = jax.jit(
    jax.value_and_grad(loss, argnums=(0, 1, 2)),
    out_shardings=(whole, (rows, rows, whole)),
  )
  return gradient, (embeddings, embeddings, log_scale, ids)


def facts(case: Case) -> dict:
  """What is judged of a case: sizes in bytes a device, and instructions by kind.

  Matrices are buffers of as many elements as this device's rows of a whole similarity
  matrix; sorts count when they sort more than one row.
  """
  target = targets.TARGETS[case.target][case.devices]()
  mesh = sharding.make_mesh(devices=target.devices)
  loss, shapes = abstract_loss(mesh, case)
  known = {"case": str(case), "chunk": case.blocks.rows}
  try:
    program = targets.compile_for(target, loss, *shapes)
  except jax.errors.JaxRuntimeError as e:
    return known | {"error": str(e)[:500]}
  parts = hlo.instructions(program.hlo)
  exchanged = hlo.collectives(parts)
  several_rows = case.batch + 1
  names = lambda xs: [str(x) for x in xs]
  return known | {
    "error": None,
    "seconds": program.seconds,
    "finished": program.finished,
    "memory": dataclasses.asdict(program.memory),
    "largest": names(hlo.buffers(parts, 1)[:3]),
    "matrices": names(hlo.buffers(parts, case.rows * case.batch)[:5]),
    "slow_sorts": names(hlo.slow_sorts(parts, several_rows)),
    "cub_sorts": names(hlo.cub_sorts(parts, several_rows)),
    "collectives": {k: names(v) for k, v in exchanged.items()},
    "collective_elements": {
      k: sum(shape.elements for x in v for shape in x.shapes)
      for k, v in exchanged.items()
    },
    "collectives_in_loops": names(x for v in exchanged.values() for x in v if x.looped),
  }


if __name__ == "__main__":
  command.answer(__doc__, CASES, BY_HAND, facts)
