"""Whole training steps of a ViT and a ResNet, compiled for 8 H100s and 8 TPU v5e.

Nothing here runs on such a device; see conftest on what compiles.
"""

import sys

import pytest

from aot import step

pytestmark = pytest.mark.skipif(
  sys.version_info >= (3, 12),
  reason="requirements-aot.txt has compilers for Python 3.11's JAX alone",
)

GIB = 2**30
MEMORY = {"h100": 80e9, "tpu_v5e": 16 * GIB}  # bytes of one device
# What the compilers planned for docs/scaling.md, in GiB a device.
PLANNED = {
  "h100-8-ViT-B-32-512": 36.46,
  "h100-8-ViT-B-32-512-dots": 11.58,
  "h100-8-ViT-B-16-512-dots": 27.52,
  "h100-8-RN50-256": 25.47,
  "tpu_v5e-8-ViT-B-32-128": 11.68,
}


@pytest.mark.parametrize("case", step.CASES, ids=str)
def test_the_step_compiles_and_fits(compiled, case):
  assert str(case) in compiled, f"{case} was not compiled:\n{compiled['stderr']}"
  found = compiled[str(case)]
  assert found["error"] is None, f"{case} does not compile: {found['error']}"
  assert 0 < found["total"] <= 1.1 * PLANNED[str(case)] * GIB
  # Something has to remain for the runtime and for what is under way to the device.
  assert found["total"] <= 0.8 * MEMORY[case.target]
