"""Children that compile for H100s and TPUs.

The tests' own process is set up for eight simulated CPU devices, with optimisations off,
and would go down with a compiler that crashes. Both children run at once, because much of
a compiler's work keeps one core busy.
"""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
MODULES = {"loss_test.py": "aot.loss", "step_test.py": "aot.step"}


@pytest.fixture(scope="session")
def children(request, tmp_path_factory):
  """By the file of tests that are to run: a process, and where it writes."""
  running = {}
  env = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
  for file in MODULES.keys() & {item.path.name for item in request.session.items}:
    folder = tmp_path_factory.mktemp("aot")
    with (folder / "out").open("w") as out, (folder / "err").open("w") as err:
      command = [sys.executable, "-m", MODULES[file]]
      child = subprocess.Popen(command, cwd=ROOT, env=env, stdout=out, stderr=err)
    running[file] = child, folder
  yield running
  for child, _ in running.values():
    child.kill()
    child.wait()


@pytest.fixture(scope="module")
def compiled(request, children):
  """Facts by the name of the case; of those that compiled, if the child died."""
  child, folder = children[request.path.name]
  child.wait(timeout=3000)
  results = [json.loads(line) for line in (folder / "out").read_text().splitlines()]
  return {r["case"]: r for r in results} | {
    "stderr": (folder / "err").read_text()[-4000:]
  }


@pytest.fixture
def facts(compiled, case):
  """Of a test's `case`, which compiled."""
  assert str(case) in compiled, f"{case} was not compiled:\n{compiled['stderr']}"
  found = compiled[str(case)]
  assert found["error"] is None, f"{case} does not compile: {found['error']}"
  return found
