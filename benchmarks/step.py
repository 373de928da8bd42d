"""A whole training step by objective: images/s, model FLOP/s, what ranking adds.

    python benchmarks/step.py
    python benchmarks/step.py --model=ViT-B-32 --batch=4096 --steps=30 --plot=step.png

`step.compile_step` as training uses it (jitted, sharded, the old state's memory given
back) on the devices there are, with synthetic pictures and captions that lie on them
already. Objectives take turns, a step each, so that what else the machine does hits all
of them; overhead is the median over turns of the ratio to `clip`. The default is the
README's run: the tiny model, batch 256.
"""

import argparse
import dataclasses
import datetime
import json
import pathlib
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import figures  # noqa: E402
from rankclip_jax import config, environment, plan, sharding, state, step  # noqa: E402
from rankclip_jax.models import flops, sizes  # noqa: E402

GIB = 2**30
BASELINE = "clip"
SETTINGS = ("dtype", "remat", "micro_batches", "fsdp")


@dataclasses.dataclass(frozen=True)
class Row:
  """One objective with one model and batch.

  Attributes:
    first_seconds: compiling and the first step.
    seconds: of every step after it.
    flops: model FLOPs of one step.
    planned: bytes of one device that the compiler plans for the step, state included.
    mfu: `flops` a second as a share of the devices' peak in bfloat16, if known.
  """

  model: str
  batch: int
  objective: str
  first_seconds: float
  seconds: list[float]
  flops: float
  planned: int | None
  mfu: float | None

  @property
  def median(self) -> float:
    return statistics.median(self.seconds)

  @property
  def quartiles(self) -> tuple[float, float]:
    low, high = np.quantile(self.seconds, (0.25, 0.75))
    return float(low), float(high)


class Runner:
  """One objective's compiled step with its state, run one step at a time."""

  def __init__(self, model: str, batch: int, objective: str, args: argparse.Namespace):
    cfg = config.Config(
      model=config.ModelConfig(name=model, dtype=args.dtype, remat=args.remat),
      objective=config.ObjectiveConfig(name=objective),
      mesh=config.MeshConfig(fsdp=args.fsdp),
    )
    # Neither batch nor run length of this plan matter: a step takes what it is given.
    p = dataclasses.replace(plan.make(cfg), micro_batches=args.micro_batches)
    sharding.check_batch(
      batch, p.mesh, jax.process_count(), micro_batches=args.micro_batches
    )
    self._state = state.create(0, p.size, p.objective, p.optimizer, p.mesh)
    self._batch = synthetic(p.size, batch, p.mesh)
    jax.block_until_ready((self._state, self._batch))
    began = time.perf_counter()
    jitted: Any = step.compile_step(p)
    self._step = compiled = jitted.lower(self._state, self._batch).compile()
    self._take()
    first = time.perf_counter() - began
    work = float(batch * flops.training_flops(p.size))
    self.row = Row(model, batch, objective, first, [], work, _planned(compiled), None)
    self._peak = None
    if args.dtype == "bfloat16":
      peak = flops.peak_flops(jax.devices()[0].device_kind)
      self._peak = peak and peak * jax.device_count()

  def run(self) -> None:
    """One timed step."""
    began = time.perf_counter()
    self._take()
    self.row.seconds.append(time.perf_counter() - began)
    mfu = self.row.flops / self.row.median / self._peak if self._peak else None
    self.row = dataclasses.replace(self.row, mfu=mfu)

  def _take(self) -> None:
    self._state, numbers = self._step(self._state, self._batch)
    jax.block_until_ready((self._state, numbers))


def synthetic(size: sizes.TwoTowerSize, batch: int, mesh) -> dict[str, jax.Array]:
  """Random pictures and captions, made where they are needed; captions have an end."""

  def make(key):
    shape = (batch, size.image_size, size.image_size, 3)
    image = jax.random.bits(key, shape, jnp.uint8)
    captions = (batch, size.context_length)
    tokens = jax.random.randint(key, captions, 1, size.text.vocab_size - 1)
    return {"image": image, "tokens": tokens.at[:, -1].set(size.text.vocab_size - 1)}

  return jax.jit(make, out_shardings=sharding.over_batch(mesh))(jax.random.key(0))


def measure(model: str, batch: int, args: argparse.Namespace) -> list[Row]:
  """All objectives, in turns."""
  names = args.objectives.split(",")
  runners = [Runner(model, batch, name, args) for name in names]
  for _ in range(args.steps):
    for runner in runners:
      runner.run()
  return [runner.row for runner in runners]


def table(rows: Sequence[Row]) -> str:
  """Markdown. Steps have their median and quartiles."""
  head = ("model", "batch", "objective", "images/s", "ms/step (quartiles)", "over clip",
          "TFLOP/s", "MFU", "planned GiB a device", "first step s")  # fmt: skip
  lines = [head, ("---",) + ("---:",) * (len(head) - 1)]
  for row in rows:
    low, high = row.quartiles
    cells = (
      row.model,
      str(row.batch),
      row.objective,
      f"{row.batch / row.median:,.0f}",
      f"{1e3 * row.median:,.1f} ({1e3 * low:,.1f} to {1e3 * high:,.1f})",
      overhead(row, rows),
      f"{row.flops / row.median / 1e12:.3g}",
      "-" if row.mfu is None else f"{row.mfu:.1%}",
      "-" if row.planned is None else f"{row.planned / GIB:.2f}",
      f"{row.first_seconds:.1f}",
    )
    lines.append(cells)
  return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def overhead(row: Row, rows: Sequence[Row]) -> str:
  """What a step takes more than CLIP's, in percent: the median over turns."""
  for base in rows:
    same = (base.model, base.batch) == (row.model, row.batch)
    if same and base.objective == BASELINE != row.objective:
      ratios = np.divide(row.seconds, base.seconds)
      return f"{100 * (float(np.median(ratios)) - 1):+.1f} %"
  return "-"


def draw(rows: Sequence[Row], path: pathlib.Path) -> None:
  """A group of bars for every model and batch."""
  groups = []
  for model, batch in dict.fromkeys((r.model, r.batch) for r in rows):
    values = {}
    for r in rows:
      if (r.model, r.batch) == (model, batch):
        low, high = r.quartiles
        values[r.objective] = (batch / r.median, batch / high, batch / low)
    groups.append(figures.Bars(f"{model}, batch {batch}", values))
  figures.bars(path, groups, y_label="images/s (median, quartiles)")


def about(args: argparse.Namespace) -> str:
  """Machine, versions, settings and date; the peak of device memory where it is told."""
  facts = environment.describe()
  told = ("device_kind", "devices", "host", "python", "jax", "jaxlib", "flax", "commit")
  words = [f"{name} {facts[name]}" for name in told]
  words += [f"{name} {getattr(args, name)}" for name in SETTINGS]
  peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
  if peak:
    words.append(f"peak device memory {peak / GIB:.2f} GiB with all objectives' states")
  return f"{', '.join(words)}; {args.steps} steps; {datetime.date.today()}."


def _planned(compiled: Any) -> int | None:
  memory = compiled.memory_analysis()
  if memory is None:
    return None
  given_back = memory.alias_size_in_bytes
  arrays = memory.argument_size_in_bytes + memory.output_size_in_bytes - given_back
  return arrays + memory.temp_size_in_bytes


def arguments() -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
  add = parser.add_argument
  add("--model", default="tiny", help=f"some of {','.join(sizes.SIZES)}")
  add("--batch", default="256", help="global; some, with commas")
  add("--objectives", default="clip,rankclip,cyclip,siglip")
  add("--steps", type=int, default=10, help="of each objective, after the first one")
  add("--dtype", choices=("float32", "bfloat16"), help="bfloat16 but on CPUs")
  add("--remat", choices=("none", "dots", "full"), default="none")
  add("--micro-batches", type=int, default=1)
  add("--fsdp", type=int, default=1, help="devices that share the state")
  add("--plot", type=pathlib.Path, help="where to draw images/s (PNG)")
  add("--json", type=pathlib.Path, help="where to write the raw numbers")
  add("--from-json", type=pathlib.Path, help="measure nothing, read these")
  return parser.parse_args()


def main() -> None:
  args = arguments()
  if args.from_json:
    content = json.loads(args.from_json.read_text())
    rows = [Row(**r) for r in content["rows"]]
  else:
    args.dtype = args.dtype or (
      "float32" if jax.default_backend() == "cpu" else "bfloat16"
    )
    rows = []
    for model in args.model.split(","):
      for batch in args.batch.split(","):
        rows += measure(model, int(batch), args)
    content = {"about": about(args), "rows": [dataclasses.asdict(r) for r in rows]}
  print(table(rows))
  print(f"\n{content['about']}")
  if args.json:
    args.json.write_text(json.dumps(content, indent=1) + "\n")
  if args.plot:
    draw(rows, args.plot)


if __name__ == "__main__":
  main()
