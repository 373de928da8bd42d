"""A child that compiles for H100s and TPUs, for each file of tests.

The tests' own process is set up for eight simulated CPU devices, with optimisations off,
and would go down with a compiler that crashes.
"""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
MODULES = {"loss_test.py": "aot.loss", "step_test.py": "aot.step"}


@pytest.fixture(scope="module")
def compiled(request):
  """Facts by the name of the case; of those that compiled, if the child died."""
  env = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
  command = [sys.executable, "-m", MODULES[request.path.name]]
  child = subprocess.run(
    command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=3000, check=False
  )
  results = [json.loads(line) for line in child.stdout.splitlines()]
  return {r["case"]: r for r in results} | {"stderr": child.stderr[-4000:]}


@pytest.fixture
def facts(compiled, case):
  """Of a test's `case`, which compiled."""
  assert str(case) in compiled, f"{case} was not compiled:\n{compiled['stderr']}"
  found = compiled[str(case)]
  assert found["error"] is None, f"{case} does not compile: {found['error']}"
  return found
