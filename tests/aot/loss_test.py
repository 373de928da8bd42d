"""What the compilers of H100s and TPUs make of the loss and its gradient: hard bounds.

Nothing here runs on such a device; see conftest on what compiles.
"""

import re
import sys

import pytest

from aot import loss
from rankclip_jax.losses import order

pytestmark = pytest.mark.skipif(
  sys.version_info >= (3, 12),
  reason="requirements-aot.txt has compilers for Python 3.11's JAX alone",
)

FLOAT = 4  # bytes
MIB = 2**20
# XLA calls CUB for 32-bit keys from about here on, if there are some dozens of lists; for
# shorter ones it finds its own sort faster.
CUB_LENGTH = 2**15

by_name = pytest.mark.parametrize("case", loss.CASES, ids=str)


def of_cases(wanted):
  """Those of the grid that a bound is for; there are some."""
  cases = [case for case in loss.CASES if wanted(case)]
  assert cases
  return pytest.mark.parametrize("case", cases, ids=str)


def sorting_on_h100(case):
  return case.target == "h100" and case.objective != "top16"


@by_name
def test_temp_memory(facts, case):
  """At most 13 C N + 5 N D floats + 64 MiB a device."""
  floats = 13 * facts["chunk"] * case.batch + 5 * case.batch * loss.DIM
  bound = FLOAT * floats + 64 * MIB
  temp = facts["memory"]["temp"]
  assert temp <= bound, (
    f"{temp / MIB:.0f} MiB, at most {bound / MIB:.0f}; the largest are {facts['largest']}"
  )


@of_cases(lambda case: (case.devices, case.batch) == (8, 65536))
def test_temp_memory_of_the_largest_batch(facts, case):
  assert facts["memory"]["temp"] <= 1024 * MIB


@of_cases(lambda case: case.blocks.rows < case.rows)
def test_no_matrix_is_ever_whole(facts, case):
  """No buffer of N x N / devices elements, unless a chunk is all of a device's rows."""
  assert facts["chunk"] == case.blocks.rows
  assert case.rows > loss.DIM  # or embeddings would be as large
  assert facts["matrices"] == []


@of_cases(sorting_on_h100)
def test_sorts_have_a_key_and_at_most_one_payload(facts, case):
  """More is what CUB cannot sort."""
  assert facts["slow_sorts"] or facts["cub_sorts"]
  assert [s for s in facts["slow_sorts"] if s.count("[") > 2] == []


@of_cases(lambda case: sorting_on_h100(case) and case.batch >= CUB_LENGTH)
def test_long_lists_are_sorted_by_cub(facts, case):
  assert facts["cub_sorts"]
  assert facts["slow_sorts"] == []


@of_cases(lambda case: case.batch > order.PACKED_LENGTH and sorting_on_h100(case))
def test_long_lists_are_sorted_exactly(facts, case):
  """By all 32 bits of a float, with the index beside them."""
  assert case.blocks.order == "payload"
  assert all(re.search(r"u32\[.*u16\[", sort) for sort in facts["cub_sorts"])


@of_cases(lambda case: case.target == "tpu_v5e")
def test_a_sort_carries_the_scores_and_no_second_index(facts, case):
  """Of 16 bits beside 32-bit keys, of none beside packed ones; then the way back."""
  operands = {"packed": 2, "payload": 3}[case.blocks.order]
  assert facts["slow_sorts"]
  assert max(s.count("[") for s in facts["slow_sorts"]) == operands


@of_cases(lambda case: case.objective == "top16")
def test_the_head_of_a_list_needs_no_sort(facts, case):
  assert facts["slow_sorts"] == facts["cub_sorts"] == []


@by_name
def test_nothing_travels_inside_a_loop(facts, case):
  assert bool(facts["collectives"]) == (case.devices > 1)
  assert facts["collectives_in_loops"] == []


@of_cases(lambda case: case.target == "h100" and case.devices > 1)
def test_only_embeddings_travel_and_once(facts, case):
  """They are gathered, their gradient is reduce-scattered, and scalars are summed."""
  sent = facts["collective_elements"]
  assert set(sent) == {"all-gather", "reduce-scatter", "all-reduce"}
  # Of both towers, what is sent counted with what comes.
  embeddings = 2 * (case.batch + case.rows) * loss.DIM
  ids = (case.batch + case.rows) * loss.KINDS
  assert sent["all-gather"] <= embeddings + ids * (case.objective == "everything")
  assert sent["reduce-scatter"] <= embeddings
  assert sent["all-reduce"] <= 64
