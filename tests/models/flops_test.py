"""The count of model FLOPs against published ones, PyTorch's and by hand; the peaks."""

import sys

import pytest

from rankclip_jax.models import flops, sizes


@pytest.mark.parametrize(
  "name, gigaflops",
  # Three times what open_clip's table of model profiles has for a forward pass.
  [("ViT-B-32", 3 * 14.78), ("ViT-B-16", 3 * 41.09), ("ViT-L-14", 3 * 175.33)],
)
def test_flops_per_image_are_the_published_ones(name, gigaflops):
  assert flops.training_flops(sizes.SIZES[name]) / 1e9 == pytest.approx(
    gigaflops, rel=3e-3
  )


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="PyTorch is pinned for 3.11")
@pytest.mark.parametrize("name", ["RN50", "RN50x4"])
def test_flops_of_a_resnet_are_those_that_pytorch_counts(name):
  import peers
  from open_clip.modified_resnet import ModifiedResNet
  from torch.utils import flop_counter

  size = sizes.SIZES[name]
  vision = size.vision
  with peers.torch.device("meta"):
    tower = ModifiedResNet(
      vision.blocks, size.embed_dim, vision.heads, vision.image_size, vision.width
    ).eval()
    pixels = peers.torch.empty(1, 3, size.image_size, size.image_size)
  with flop_counter.FlopCounterMode(display=False) as counter, peers.torch.no_grad():
    tower(pixels)
  # PyTorch pools by as many queries as there are positions and drops all but one.
  width, dropped = 32 * size.vision.width, size.vision.grid**2
  idle = 2 * dropped * width * (width + size.embed_dim)
  idle += 2 * dropped * 2 * (dropped + 1) * width
  assert flops.vision_flops(size) == pytest.approx(
    counter.get_total_flops() - idle, rel=1e-3
  )


def test_flops_of_one_layer_by_hand():
  # 2 tokens of width 3: matmuls of [2, 3] by [3, 9], [3, 3], [3, 12] and [12, 3], scores
  # [2, 3] by [3, 2], values [2, 2] by [2, 3]; each 2 m k n.
  by_hand = 2 * (2 * 3 * 9 + 2 * 3 * 3 + 2 * 3 * 12 + 2 * 12 * 3 + 2 * 3 * 2 + 2 * 2 * 3)
  assert flops.tower_flops(tokens=2, width=3, depth=1) == by_hand
  assert flops.tower_flops(tokens=2, width=3, depth=5) == 5 * by_hand


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
  assert flops.peak_flops(kind) == peak


def test_a_frozen_tower_has_no_backward_pass():
  size = sizes.SIZES["ViT-B-32"]
  image, text = flops.vision_flops(size), flops.text_flops(size)
  assert flops.training_flops(size) == 3 * (image + text)
  assert flops.training_flops(size, "image") == image + 3 * text
  assert flops.training_flops(size, "text") == 3 * image + text
