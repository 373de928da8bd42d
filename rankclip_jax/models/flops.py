"""Model FLOPs of the two towers, and what devices can do: for utilisation.

Counted by hand, as the field does, so that two programs of the same model compare: what a
compiler makes of it, and computes twice, does not count.
"""

from typing import Literal

from rankclip_jax.models import sizes

# Dense bfloat16 FLOP/s of one device, by the start of JAX's `device_kind`; the first that
# fits counts. From the vendors' data sheets.
PEAK_FLOPS = {
  "NVIDIA H200": 989e12,
  "NVIDIA H100": 989e12,
  "NVIDIA A100": 312e12,
  "TPU v4": 275e12,
  "TPU v5 lite": 197e12,
  "TPU v5e": 197e12,
  "TPU v5": 459e12,  # v5p
  "TPU v6": 918e12,  # v6e
}


def tower_flops(tokens: int, width: int, depth: int) -> int:
  """Forward FLOPs of a transformer for one example; a multiply-add is two.

  For every token and layer: 6 W^2 in attention's three input projections, 2 W^2 in its
  output's, 16 W^2 in the MLP of width 4 W, and 2 L W each for the scores and for the
  weighted sum of values over L tokens. A causal mask saves nothing here, as is usual in
  such counts; norms, activations and softmax are not counted.
  """
  return depth * tokens * (24 * width**2 + 4 * tokens * width)


def training_flops(
  size: sizes.TwoTowerSize, frozen: Literal["none", "image", "text"] = "none"
) -> int:
  """Model FLOPs of training on one image and its caption: three times a forward pass.

  The towers, the patch embedding and the two projections; a backward pass counts as two
  forward ones, and a frozen tower has none. Rematerialised work and the loss do not
  count.
  """
  image = vision_flops(size) * (1 if frozen == "image" else 3)
  return image + text_flops(size) * (1 if frozen == "text" else 3)


def text_flops(size: sizes.TwoTowerSize) -> int:
  """Forward FLOPs of the text tower and its projection for one caption."""
  text = size.text
  flops = tower_flops(text.context_length, text.width, text.depth)
  return flops + 2 * text.width * size.embed_dim


def vision_flops(size: sizes.TwoTowerSize) -> int:
  """Forward FLOPs of the image tower and its projection for one picture."""
  vision = size.vision
  if isinstance(vision, sizes.ViTSize):
    patches = vision.grid**2
    flops = tower_flops(patches + 1, vision.width, vision.depth)
    return flops + 2 * vision.width * (
      patches * 3 * vision.patch_size**2 + size.embed_dim
    )
  width = vision.width
  half = (vision.image_size // 2) ** 2  # positions of the stem
  multiplies = half * 9 * (3 * width // 2 + width**2 // 4 + width**2 // 2)
  channels, positions = width, half // 4
  for i, blocks in enumerate(vision.blocks):
    narrow, wide = width * 2**i, 4 * width * 2**i
    after = positions // (4 if i else 1)
    multiplies += positions * (channels * narrow + 9 * narrow**2)
    multiplies += after * (narrow * wide + channels * wide)
    multiplies += (blocks - 1) * after * (2 * wide * narrow + 9 * narrow**2)
    channels, positions = wide, after
  keys = positions + 1  # of the attention that pools, which has one query
  multiplies += channels * (channels * (2 * keys + 1) + 2 * keys + size.embed_dim)
  return 2 * multiplies


def peak_flops(device_kind: str) -> float | None:
  """bfloat16 FLOP/s of one device of this kind, if it is in the table."""
  known = (v for k, v in PEAK_FLOPS.items() if device_kind.startswith(k))
  return next(known, None)
