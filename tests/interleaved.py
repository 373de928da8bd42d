"""`main.py` on a mesh in which neighbours belong to different processes.

Slices of TPUs are like that: each host has a square of chips, and rows of the mesh cross
several. JAX takes CPUs in the order that it is given. Which rows of each training batch
came to lie where is written to WORKDIR/rows.PROCESS.jsonl.
"""

import json
import pathlib
import runpy
import sys
import zlib

import jax
import numpy as np
from jax.experimental import mesh_utils

ROOT = pathlib.Path(__file__).parents[1]


def interleaved(arrange):
  """`mesh_utils.create_device_mesh` of devices in turns, the last process's first."""

  def arranged(shape, devices, **options):
    by_process: dict[int, list] = {}
    for device in devices:
      by_process.setdefault(device.process_index, []).append(device)
    assert len(by_process) > 1
    turns = [d for several in zip(*by_process.values(), strict=True) for d in several]
    return arrange(shape, turns[::-1], **options)

  return arranged


def recorded(global_batch, workdir):
  """`evaluate.global_batch` with a line for every device's rows of every batch."""
  count = 0

  def recording(batch, mesh):
    nonlocal count
    arrays = global_batch(batch, mesh)
    if "tokens" in arrays:
      with (workdir / f"rows.{jax.process_index()}.jsonl").open("a") as file:
        for shard in arrays["tokens"].addressable_shards:
          rows = {
            "batch": count,
            "first": shard.index[0].start or 0,
            "tokens": zlib.crc32(np.asarray(shard.data).tobytes()),
          }
          file.write(json.dumps(rows) + "\n")
      count += 1
    return arrays

  return recording


if __name__ == "__main__":
  sys.path.insert(0, str(ROOT))
  from rankclip_jax import evaluate

  (workdir,) = (a.partition("=")[2] for a in sys.argv if a.startswith("--workdir="))
  mesh_utils.create_device_mesh = interleaved(mesh_utils.create_device_mesh)
  evaluate.global_batch = recorded(evaluate.global_batch, pathlib.Path(workdir))
  runpy.run_path(str(ROOT / "main.py"), run_name="__main__")
