"""How many rows at once and which order, by platform, objective and length."""

import dataclasses
from typing import Any

import pytest

from rankclip_jax.losses import blocking, native
from rankclip_jax.losses.blocking import Blocking
from rankclip_jax.losses.objective import PRESETS

RANKCLIP = PRESETS["rankclip"]


def choose(
  objective=RANKCLIP, *, rows=2048, length=2048, dim=512, platform="gpu", **options
):
  return blocking.choose(
    Blocking(**options),
    objective,
    rows=rows,
    length=length,
    dim=dim,
    platform=platform,
  )


@pytest.mark.parametrize(
  "platform, order, floats",
  [
    ("gpu", "packed", 13),
    ("tpu", "exact", 13),
    ("cpu", "native", 13),
    ("cpu", "packed", 30),
  ],
)
def test_predicted_bytes_are_those_of_chunks_and_5_batches(platform, order, floats):
  blocks = choose(chunk_rows=128, length=32768, platform=platform, order=order)
  assert blocks.rows == 128
  assert blocks.predicted_bytes == 4 * (floats * 128 * 32768 + 5 * 32768 * 512)


@pytest.mark.parametrize("order, rows", [("native", 128), ("packed", 64)])
def test_a_cpu_takes_fewer_rows(order, rows):
  assert choose(platform="cpu", order=order, length=32768).rows == rows


@pytest.mark.parametrize(
  "memory_mib, length, rows",
  [
    (256, 2048, blocking.MOST_ROWS),  # 256 MiB / (4 * 13 * 2048) = 2520 rows would fit
    (256, 16384, 256),  # 315
    (64, 16384, 64),  # 78
    (256, 65536, 64),  # 78
    (1, 65536, 1),  # not even one, but there has to be one
  ],
)
def test_chunks_shrink_as_the_batch_grows(memory_mib, length, rows):
  assert choose(memory_mib=memory_mib, length=length).rows == rows


@pytest.mark.parametrize(
  "rows, most, chosen",
  [(24, 100, 24), (24, 11, 8), (24, 23, 12), (26, 12, 12), (23, 22, 22), (23, 1, 1)],
)
def test_a_divisor_is_preferred_unless_it_is_below_half(rows, most, chosen):
  """The most rows that fit into 1 MiB are set by the length."""
  length = 2**20 // (4 * 13 * most)
  assert choose(rows=rows, length=length, memory_mib=1).rows == chosen


def test_given_chunks_are_kept_and_no_larger_than_the_batch():
  assert choose(chunk_rows=7, rows=24).rows == 7
  assert choose(chunk_rows=700, rows=24).rows == 24


@pytest.mark.parametrize(
  "length, platform, order",
  [
    (2**13, "gpu", "packed"),
    (2**13 + 1, "gpu", "payload"),
    (2**16, "gpu", "payload"),
    (2**16 + 1, "gpu", "exact"),
    (2**13, "tpu", "packed"),
    (2**16, "tpu", "payload"),
    (511, "cpu", "packed"),
    (512, "cpu", "native"),
    (2**16 + 1, "cpu", "native"),
  ],
)
def test_auto_order(length, platform, order):
  assert choose(length=length, platform=platform).order == order


@pytest.mark.parametrize(
  "changes, length, order",
  [
    ({"eps": 1e-10}, 2048, "packed"),
    ({"eps": 1e-10}, 2**16, "payload"),
    ({"eps": 1e-10}, 2**16 + 1, "exact"),
    ({"top_k": 2047}, 2048, "packed"),
  ],
)
def test_what_the_kernel_cannot_rank(changes, length, order):
  objective = dataclasses.replace(RANKCLIP, **changes)
  assert choose(objective, length=length, platform="cpu").order == order
  with pytest.raises(
    ValueError, match='neither by eps nor the top_k.*use order="auto" or '
  ):
    choose(objective, length=length, platform="cpu", order="native")


def test_a_top_k_of_the_whole_list_is_no_top_k():
  objective = dataclasses.replace(RANKCLIP, top_k=2048)
  assert choose(objective, platform="cpu").order == "native"


def test_the_kernel_is_not_built_for_objectives_that_rank_nothing(monkeypatch):
  monkeypatch.setattr(native, "available", lambda: pytest.fail("built"))
  assert choose(PRESETS["clip"], platform="cpu").order == "packed"


def test_auto_order_without_a_compiler(monkeypatch):
  monkeypatch.setattr(native, "available", lambda: False)
  assert choose(platform="cpu").order == "packed"
  assert choose(platform="cpu", length=2**16 + 1).order == "exact"


@pytest.mark.parametrize("length", [2**20, 2**21])
def test_no_budget_makes_a_sort_too_large_for_a_radix_sort(length):
  """XLA's limit for GPUs is 2 GiB of 4-byte keys."""
  assert choose(rows=2048, length=length, memory_mib=2**20).rows * length * 4 < 2**31


@pytest.mark.parametrize(
  "options, message",
  [
    ({"memory_mib": 0}, "memory_mib must be at least 1, got 0"),
    ({"chunk_rows": 0}, "chunk_rows must be at least 1, got 0; None chooses it"),
    (
      {"order": "native"},
      "a CPU kernel, got gpu; use order="
      '"auto" or "packed" or "payload" or "short" or "exact".',
    ),
    (
      {"order": "packed", "length": 65537},
      'order="packed" has .* of 65536, got .* 65537; use order="auto" or "exact".',
    ),
    (
      {"order": "short", "length": 65537, "platform": "tpu"},
      'of 65536, got .* 65537; use order="auto" or "exact".',
    ),
    (
      {"order": "payload", "length": 65537, "platform": "cpu"},
      'of 65536, got .* 65537; use order="auto" or "exact" or "native".',
    ),
    (
      {"order": "quick"},
      "order 'quick'; there are auto, packed, payload, short, exact, native.",
    ),
  ],
)
def test_what_cannot_be_is_refused_and_what_can_is_named(options, message):
  with pytest.raises(ValueError, match=message):
    choose(**options)


def test_a_refusal_names_no_kernel_that_cannot_be(monkeypatch):
  released = dataclasses.replace(RANKCLIP, eps=1e-10)
  options: dict[str, Any] = dict(order="packed", length=65537, platform="cpu")
  with pytest.raises(ValueError, match='use order="auto" or "exact".$'):
    choose(released, **options)
  monkeypatch.setattr(native, "available", lambda: False)
  with pytest.raises(ValueError, match='use order="auto" or "exact".$'):
    choose(RANKCLIP, **options)


@pytest.mark.parametrize("order", ["packed", "payload", "short"])
@pytest.mark.parametrize(
  "objective",
  [dataclasses.replace(RANKCLIP, top_k=65536), PRESETS["clip"]],
  ids=["top_k", "ranks nothing"],
)
def test_an_order_that_nothing_is_sorted_by_is_not_refused(order, objective):
  assert choose(objective, order=order, length=65537).order == order
