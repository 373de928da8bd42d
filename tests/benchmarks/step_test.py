"""The pure parts of the step's benchmark: the count of FLOPs, the overhead, the peaks."""

import dataclasses

import pytest

from benchmarks import step
from rankclip_jax.models import two_tower

L_14 = two_tower.TwoTowerSize(
  image_size=224,
  patch_size=14,
  vision_width=1024,
  vision_depth=24,
  vision_heads=16,
  text_width=768,
  text_depth=12,
  text_heads=12,
  embed_dim=768,
)


@pytest.mark.parametrize(
  "size, gigaflops",
  [
    (two_tower.SIZES["ViT-B-32"], 44.3),
    (two_tower.SIZES["ViT-B-16"], 123.0),
    (L_14, 526.0),
  ],
)
def test_flops_per_image_are_the_published_ones(size, gigaflops):
  assert step.image_flops(size) / 1e9 == pytest.approx(gigaflops, rel=3e-3)


def test_flops_of_one_layer_by_hand():
  # 2 tokens of width 3: matmuls of [2, 3] by [3, 9], [3, 3], [3, 12] and [12, 3], scores
  # [2, 3] by [3, 2], values [2, 2] by [2, 3]; each 2 m k n.
  by_hand = 2 * (2 * 3 * 9 + 2 * 3 * 3 + 2 * 3 * 12 + 2 * 12 * 3 + 2 * 3 * 2 + 2 * 2 * 3)
  assert step.tower_flops(tokens=2, width=3, depth=1) == by_hand
  assert step.tower_flops(tokens=2, width=3, depth=5) == 5 * by_hand


def row(objective, seconds, batch=256):
  return step.Row("tiny", batch, objective, 1.0, seconds, 1e12, None, None)


def test_overhead_is_the_median_over_turns():
  clip, ranked = row("clip", [1.0, 2.0, 4.0]), row("rankclip", [1.1, 2.2, 40.0])
  other = row("clip", [9.0, 9.0, 9.0], batch=512)
  assert step.overhead(ranked, [other, clip, ranked]) == "+10.0 %"
  assert step.overhead(clip, [clip, ranked]) == "-"
  assert step.overhead(ranked, [other, ranked]) == "-"


@pytest.mark.parametrize(
  "kind, peak",
  [
    ("NVIDIA H100 80GB HBM3", 989e12),
    ("NVIDIA A100-SXM4-40GB", 312e12),
    ("TPU v5 lite", 197e12),
    ("TPU v5", 459e12),
    ("TPU v5p", 459e12),
    ("TPU v6 lite", 918e12),
    ("cpu", None),
  ],
)
def test_peak_of_a_device(kind, peak):
  assert step.peak_flops(kind) == peak


def test_rows_survive_json():
  one = row("clip", [1.0, 2.0])
  assert step.Row(**dataclasses.asdict(one)) == one
