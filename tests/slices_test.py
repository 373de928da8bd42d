"""Meshes over slices of TPUs, as libtpu describes them: who is whose neighbour."""

import json
import math
import os
import pathlib
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
  sys.version_info >= (3, 12),
  reason="requirements-aot.txt has compilers for Python 3.11's JAX alone",
)

ROOT = pathlib.Path(__file__).parents[1]
# Chips of a slice, slices, and mesh.fsdp.
CASES = [
  ("v5e:2x4", 1, 8), ("v5e:4x4", 1, 4), ("v5e:4x4", 1, 8), ("v5e:8x8", 1, 1),
  ("v5e:2x4", 2, 4), ("v5e:2x4", 2, 2), ("v5e:4x4", 4, 8), ("v5e:4x4", 3, 16),
  ("v5p:4x4x4", 1, 2), ("v5p:4x4x4", 1, 8), ("v5p:2x2x4", 2, 4), ("v6e:4x4", 2, 4),
]  # fmt: skip
CHILD = """
import json, sys
from jax.experimental import topologies
from aot import targets
from rankclip_jax import sharding

targets.tpu("v5e", "2x4")  # finds libtpu
for shape, slices, fsdp in json.loads(sys.argv[1]):
  devices = topologies.get_topology_desc(
    platform="tpu", topology_name=shape, num_slices=slices
  ).devices
  mesh = sharding.make_mesh(-1, fsdp, devices)
  of = lambda d: [getattr(d, "slice_index", 0), d.process_index, *d.coords]
  processes = range(max(d.process_index for d in devices) + 1)
  print(json.dumps({
    "mesh": [[of(d) for d in group] for group in mesh.devices],
    "rows": [sharding.own_rows(mesh, mesh.size, i) for i in processes],
    "said": sharding.describe(mesh),
  }))
"""


@pytest.fixture(scope="module")
def meshes():
  """By case. In a process of their own, which libtpu may take down."""
  env = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
  command = [sys.executable, "-c", CHILD, json.dumps(CASES)]
  run = subprocess.run(
    command, cwd=ROOT, env=env | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True
  )
  assert run.returncode == 0, run.stderr[-4000:]
  found = map(json.loads, run.stdout.splitlines())
  return dict(zip(CASES, found, strict=True))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_devices_that_share_weights_are_a_block_of_one_slice(meshes, case):
  """Of chips without a hole: as many as its bounding box has."""
  _, slices, fsdp = case
  mesh = meshes[case]["mesh"]
  everyone = [tuple(device) for group in mesh for device in group]
  assert len(set(everyone)) == len(everyone)
  assert len({device[0] for device in everyone}) == slices
  for group in mesh:
    assert len(group) == fsdp
    assert len({device[0] for device in group}) == 1
    coordinates = zip(*(device[2:] for device in group), strict=True)
    assert math.prod(max(axis) - min(axis) + 1 for axis in coordinates) == fsdp


@pytest.mark.parametrize("case", [c for c in CASES if c[1] > 1], ids=str)
def test_a_slice_is_one_part_of_the_data_axis(meshes, case):
  owners = [group[0][0] for group in meshes[case]["mesh"]]
  assert owners == sorted(owners)
  each = len(owners) // case[1]
  said = meshes[case]["said"]
  assert f"data {len(owners)} ({case[1]} slices over DCN x {each}) x fsdp " in said
  assert said.endswith(f"fsdp {case[2]} over ICI.")


def test_processes_own_the_rows_of_their_chips(meshes):
  """Not the rows of their number: a host's square of chips lies in several rows."""
  for case, found in meshes.items():
    flat = [device for group in found["mesh"] for device in group]
    for process, rows in enumerate(found["rows"]):
      assert rows == [i for i, d in enumerate(flat) if d[1] == process], case
  # A batch dealt out by process numbers would be another one here.
  assert meshes["v5e:4x4", 1, 4]["rows"][1] == [2, 3, 6, 7]
