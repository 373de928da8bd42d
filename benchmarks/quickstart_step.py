"""Seconds a step of the README's run takes, by objective: what ranking adds to CLIP.

python benchmarks/quickstart_step.py --objectives=clip,rankclip,cyclip,siglip
"""

import argparse
import importlib.metadata
import importlib.util
import os
import pathlib
import platform
import statistics
import sys
import time

import jax

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from rankclip_jax import config, evaluate, plan, state, step  # noqa: E402


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--objectives", default="clip,rankclip,cyclip,siglip")
  parser.add_argument("--steps", type=int, default=15)
  args = parser.parse_args()
  device = jax.devices()[0].device_kind
  print(
    f"{platform.machine()}, {os.cpu_count()} cores, {device}; Python "
    f"{platform.python_version()}, jax {importlib.metadata.version('jax')}"
  )
  print("| objective | first step (compiles) s | median step s | examples/s |")
  print("|---|---|---|---|")
  for name in args.objectives.split(","):
    first, median, rate = measure(name, args.steps)
    print(f"| {name} | {first:.1f} | {median:.3f} | {rate:.0f} |", flush=True)


def measure(objective: str, steps: int) -> tuple[float, float, float]:
  """Seconds of the first step and of the median one after it, and examples a second."""
  path = ROOT / "configs" / "openmoji.py"
  spec = importlib.util.spec_from_file_location("openmoji_config", path)
  assert spec is not None
  assert spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  cfg = config.from_config_dict(module.get_config(objective))
  p = plan.make(cfg)
  now = state.create(cfg.seed, p.size, p.objective, p.optimizer, p.mesh)
  step_fn = step.compile_step(p)
  batches = plan.batches_of(cfg, p, 0)
  seconds = []
  for _ in range(steps + 1):
    batch = next(batches)
    del batch["id"]
    began = time.perf_counter()
    now, numbers = step_fn(now, evaluate.global_batch(batch, p.mesh))
    jax.block_until_ready(numbers)
    seconds.append(time.perf_counter() - began)
  median = statistics.median(seconds[1:])
  return seconds[0], median, cfg.data.batch_size / median


if __name__ == "__main__":
  main()
