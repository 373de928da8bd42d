"""Whole training steps of a ViT and a ResNet, compiled for 8 H100s and 8 TPU v5e.

Nothing here runs on such a device; see loss_test on why a child compiles.
"""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from aot import step

pytestmark = pytest.mark.skipif(
  sys.version_info >= (3, 12),
  reason="requirements-aot.txt has compilers for Python 3.11's JAX alone",
)

ROOT = pathlib.Path(__file__).parents[2]
MEMORY = {"h100": 80e9, "tpu_v5e": 16 * 2**30}  # bytes of one device


@pytest.fixture(scope="module")
def compiled():
  """Facts by the name of the case; of those that compiled, if the child died."""
  child = subprocess.run(
    [sys.executable, "-m", "aot.step"],
    cwd=ROOT,
    env={k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))},
    capture_output=True,
    text=True,
    timeout=1800,
    check=False,
  )
  results = [json.loads(line) for line in child.stdout.splitlines()]
  return {r["case"]: r for r in results} | {"stderr": child.stderr[-4000:]}


@pytest.mark.parametrize("case", step.CASES, ids=str)
def test_the_step_compiles_and_fits(compiled, case):
  assert str(case) in compiled, f"{case} was not compiled:\n{compiled['stderr']}"
  found = compiled[str(case)]
  assert found["error"] is None, f"{case} does not compile: {found['error']}"
  # Something has to remain for the runtime and for what is under way to the device.
  assert 0 < found["total"] <= 0.8 * MEMORY[case.target]


def test_statistics_of_one_device_are_not_exchanged_in_the_forward_pass(compiled):
  """Synchronised batch norm sums over the devices in every layer, per-device in none."""
  whole, own = (
    compiled[f"h100-8-RN50-256{norm}"]["collectives"].get("all-reduce", 0)
    for norm in ("", "-per_device")
  )
  assert own < whole
