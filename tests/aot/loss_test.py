"""What the compilers of H100s and TPUs make of the loss and its gradient: hard bounds.

Nothing here runs on such a device. One child compiles all cases, about ten seconds each,
because the tests' own process is set up for eight simulated CPU devices, with
optimisations off, and would go down with a compiler that crashes.
"""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from aot import loss

pytestmark = pytest.mark.skipif(
  sys.version_info >= (3, 12),
  reason="requirements-aot.txt has compilers for Python 3.11's JAX alone",
)

ROOT = pathlib.Path(__file__).parents[2]
FLOAT = 4  # bytes
MIB = 2**20
# XLA calls CUB for 32-bit keys from about here on, if there are some dozens of lists; for
# shorter ones it finds its own sort faster.
CUB_LENGTH = 2**15

H100_CASES = [case for case in loss.CASES if case.target == "h100"]
by_name = pytest.mark.parametrize("case", loss.CASES, ids=str)


@pytest.fixture(scope="module")
def compiled():
  """Facts by the name of the case; of those that compiled, if the child died."""
  child = subprocess.run(
    [sys.executable, "-m", "aot.loss"],
    cwd=ROOT,
    env={k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))},
    capture_output=True,
    text=True,
    timeout=1200,
    check=False,
  )
  results = [json.loads(line) for line in child.stdout.splitlines()]
  return {r["case"]: r for r in results} | {"stderr": child.stderr[-4000:]}


@pytest.fixture
def facts(compiled, case):
  assert str(case) in compiled, f"{case} was not compiled:\n{compiled['stderr']}"
  found = compiled[str(case)]
  assert found["error"] is None, f"{case} does not compile: {found['error']}"
  return found


@by_name
def test_temp_memory(facts, case):
  """At most 13 C N + 5 N D floats + 64 MiB a device."""
  floats = 13 * facts["chunk"] * case.batch + 5 * case.batch * loss.DIM
  bound = FLOAT * floats + 64 * MIB
  temp = facts["memory"]["temp"]
  assert temp <= bound, (
    f"{temp / MIB:.0f} MiB, at most {bound / MIB:.0f}; the largest are {facts['largest']}"
  )


@pytest.mark.parametrize(
  "case", [c for c in loss.CASES if (c.devices, c.batch) == (8, 65536)], ids=str
)
def test_temp_memory_of_the_largest_batch(facts, case):
  assert facts["memory"]["temp"] <= 1024 * MIB


# With fewer rows a device's share of a matrix is no larger than the embeddings are, and
# of a smaller batch it may be taken whole.
@pytest.mark.parametrize(
  "case",
  [c for c in loss.CASES if c.rows >= 4 * loss.DIM and c.batch >= 8192],
  ids=str,
)
def test_no_matrix_is_ever_whole(facts, case):
  """No buffer of N x N / devices elements."""
  assert facts["chunk"] < case.rows
  assert facts["matrices"] == []


@pytest.mark.parametrize("case", H100_CASES, ids=str)
def test_sorts_have_a_key_and_at_most_one_payload(facts, case):
  """More is what CUB cannot sort."""
  assert facts["slow_sorts"] or facts["cub_sorts"]
  assert [s for s in facts["slow_sorts"] if s.count("[") > 2] == []


@pytest.mark.parametrize(
  "case", [c for c in H100_CASES if c.batch >= CUB_LENGTH], ids=str
)
def test_long_lists_are_sorted_by_cub(facts, case):
  assert facts["cub_sorts"]
  assert facts["slow_sorts"] == []


@pytest.mark.parametrize("case", [c for c in H100_CASES if c.devices > 1], ids=str)
def test_only_embeddings_travel_and_once(facts, case):
  """They are gathered, their gradient is reduce-scattered, and scalars are summed."""
  sent = facts["collective_elements"]
  assert set(sent) == {"all-gather", "reduce-scatter", "all-reduce"}
  # Of both towers, what is sent counted with what comes.
  embeddings = 2 * (case.batch + case.rows) * loss.DIM
  assert max(sent["all-gather"], sent["reduce-scatter"]) <= embeddings
  assert sent["all-reduce"] <= 64
  assert facts["collectives_in_loops"] == []
