"""`main.py` on a mesh in which neighbours belong to different processes.

Slices of TPUs are like that: each host has a square of chips, and rows of the mesh cross
several. JAX takes CPUs in the order that it is given.
"""

import pathlib
import runpy
import sys

from jax.experimental import mesh_utils

ROOT = pathlib.Path(__file__).parents[1]

arranged = mesh_utils.create_device_mesh


def interleaved(shape, devices, **options):
  by_process: dict[int, list] = {}
  for device in devices:
    by_process.setdefault(device.process_index, []).append(device)
  shuffled = [d for several in zip(*by_process.values(), strict=True) for d in several]
  assert len(by_process) > 1
  # The last process comes first, so that no process has the rows of its own number.
  return arranged(shape, shuffled[::-1], **options)


if __name__ == "__main__":
  mesh_utils.create_device_mesh = interleaved
  sys.path.insert(0, str(ROOT))
  runpy.run_path(str(ROOT / "main.py"), run_name="__main__")
