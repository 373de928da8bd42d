"""Everything that fixes the shapes and the arithmetic of a model, with named presets."""

import dataclasses
import difflib
import re
from typing import Any

from rankclip_jax.models import layers

VOCAB_SIZE = 49408  # CLIP's byte-pair encoding with its two special tokens
# Channel statistics of the pictures OpenAI's CLIP saw, on a scale of 0 to 1.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def _check_divides(name: str, value: int, unit_name: str, unit: int) -> None:
  if value % unit:
    nearest = max(1, round(value / unit)) * unit
    raise ValueError(
      f"{name} {value} must be a multiple of {unit_name} {unit}; the nearest is "
      f"{nearest}."
    )


def _check_heads(tower: str, width: int, heads: int) -> None:
  if width % heads:
    raise ValueError(f"{tower} width {width} must be a multiple of its {heads} heads.")


@dataclasses.dataclass(frozen=True)
class ViTSize:
  """A vision transformer. Pictures and patches in pixels, width in channels."""

  image_size: int
  patch_size: int
  width: int
  depth: int
  heads: int

  def __post_init__(self):
    _check_divides("image_size", self.image_size, "patch_size", self.patch_size)
    _check_heads("vision", self.width, self.heads)

  @property
  def grid(self) -> int:
    """Patches along one side."""
    return self.image_size // self.patch_size


@dataclasses.dataclass(frozen=True)
class ResNetSize:
  """CLIP's modified ResNet: bottlenecks by stage, and the width of the first stage."""

  image_size: int
  blocks: tuple[int, int, int, int]
  width: int = 64
  heads: int = 32  # of the attention that pools

  def __post_init__(self):
    _check_divides("image_size", self.image_size, "the stride", 32)
    _check_heads("vision", 32 * self.width, self.heads)
    if self.width % 2 or len(self.blocks) != 4 or min(self.blocks) < 1:
      raise ValueError(
        "A ResNet needs an even width and four stages of at least one block, got width "
        f"{self.width} and blocks {self.blocks}."
      )

  @property
  def grid(self) -> int:
    """Positions along one side of the last stage."""
    return self.image_size // 32


@dataclasses.dataclass(frozen=True)
class TextSize:
  """A causal text transformer. Context in tokens, width in channels."""

  width: int
  depth: int
  heads: int
  context_length: int = 77
  vocab_size: int = VOCAB_SIZE

  def __post_init__(self):
    _check_heads("text", self.width, self.heads)


@dataclasses.dataclass(frozen=True)
class TwoTowerSize:
  """Both towers, what they share, and how they compute.

  `activation` is that of all MLPs; a ResNet has ReLUs besides.
  """

  vision: ViTSize | ResNetSize
  text: TextSize
  embed_dim: int
  activation: layers.Activation = "quick_gelu"
  mean: tuple[float, float, float] = CLIP_MEAN
  std: tuple[float, float, float] = CLIP_STD
  dtype: str = "float32"
  remat: layers.Remat = "none"

  def __post_init__(self):
    for field, choices in (
      ("activation", layers.ACTIVATIONS),
      ("remat", layers.REMAT),
      ("dtype", ("float32", "bfloat16")),
    ):
      if getattr(self, field) not in choices:
        raise ValueError(
          f"{field} must be one of {', '.join(choices)}, got {getattr(self, field)!r}."
        )

  @property
  def name(self) -> str:
    """In `SIZES`, whatever activation, colours and arithmetic; "" if it is not there."""
    parts = lambda size: (size.vision, size.text, size.embed_dim)
    return next((name for name, one in SIZES.items() if parts(one) == parts(self)), "")

  @property
  def image_size(self) -> int:
    """Height and width of the pictures, in pixels."""
    return self.vision.image_size

  @property
  def context_length(self) -> int:
    """Ids of a caption, start and end included."""
    return self.text.context_length


def _vit(image: int, patch: int, width: int, depth: int, text: int, embed: int):
  return TwoTowerSize(
    ViTSize(image, patch, width, depth, heads=width // 64),
    TextSize(text, depth=12, heads=text // 64),
    embed_dim=embed,
  )


def _resnet(image: int, blocks: tuple, width: int, text: int, embed: int):
  return TwoTowerSize(
    ResNetSize(image, blocks, width, heads=width * 32 // 64),
    TextSize(text, depth=12, heads=text // 64),
    embed_dim=embed,
  )


SIZES: dict[str, TwoTowerSize] = {
  # For tests: seconds to compile, nothing to learn with.
  "nano": TwoTowerSize(
    ViTSize(16, 8, 32, 2, 2), TextSize(32, 2, 2, context_length=16), embed_dim=32
  ),
  "nano-resnet": TwoTowerSize(
    ResNetSize(64, (1, 2, 1, 3), width=4, heads=2),
    TextSize(32, 2, 2, context_length=16),
    embed_dim=32,
  ),
  # For the built-in data set on a laptop.
  "tiny": TwoTowerSize(
    ViTSize(48, 12, 96, 4, 4), TextSize(96, 4, 4, context_length=20), embed_dim=96
  ),
  # Radford et al. 2021, Tables 19 and 20.
  "RN50": _resnet(224, (3, 4, 6, 3), 64, text=512, embed=1024),
  "RN101": _resnet(224, (3, 4, 23, 3), 64, text=512, embed=512),
  "RN50x4": _resnet(288, (4, 6, 10, 6), 80, text=640, embed=640),
  "ViT-B-32": _vit(224, 32, 768, 12, text=512, embed=512),
  "ViT-B-16": _vit(224, 16, 768, 12, text=512, embed=512),
  "ViT-L-14": _vit(224, 14, 1024, 24, text=768, embed=768),
  "ViT-L-14-336": _vit(336, 14, 1024, 24, text=768, embed=768),
}


def named(name: str, **changes: Any) -> TwoTowerSize:
  """The size called `name`, with those of its fields changed that are not None.

  "ViT-B/32" and "ViT-B-32" are the same, and so are "ViT-L/14@336px" and
  "ViT-L-14-336". The suffixes "-quickgelu" (as open_clip spells it) and "-gelu" name the
  activation; without one it is QuickGELU, as OpenAI published it.

  Args:
    name: of `SIZES`, perhaps with a suffix.
    **changes: fields of `TwoTowerSize`, or `image_size`, `context_length`, `vocab_size`.

  Raises:
    ValueError: for an unknown name or sizes that do not fit each other.
  """
  key = re.sub(r"px$", "", name.replace("/", "-").replace("@", "-"))
  for suffix, activation in (("-quickgelu", "quick_gelu"), ("-gelu", "gelu")):
    if key.endswith(suffix):
      key = key.removesuffix(suffix)
      if changes.get("activation") not in (None, activation):
        raise ValueError(
          f"Model {name!r} says {activation}, and activation is "
          f"{changes['activation']!r}; give one of them."
        )
      changes["activation"] = activation
  if key not in SIZES:
    close = difflib.get_close_matches(key, SIZES, n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    raise ValueError(f"Unknown model {name!r}; there are {', '.join(SIZES)}.{hint}")
  return changed(SIZES[key], **changes)


def changed(size: TwoTowerSize, **changes: Any) -> TwoTowerSize:
  """`size` with those of its fields changed that are not None; see `named`."""
  changes = {field: value for field, value in changes.items() if value is not None}
  for tower in "vision", "text":
    part = getattr(size, tower)
    inner = {
      field: changes.pop(field)
      for field in ("image_size", "context_length", "vocab_size")
      if field in changes and hasattr(part, field)
    }
    if inner:
      changes[tower] = dataclasses.replace(part, **inner)
  return dataclasses.replace(size, **changes)


def from_json(values: dict[str, Any]) -> TwoTowerSize:
  """The inverse of `dataclasses.asdict`, also after a journey through JSON."""
  fields: dict[str, Any] = {
    k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
  }
  vision = dict(values["vision"])
  if "patch_size" in vision:
    fields["vision"] = ViTSize(**vision)
  else:
    vision["blocks"] = tuple(vision["blocks"])
    fields["vision"] = ResNetSize(**vision)
  fields["text"] = TextSize(**values["text"])
  return TwoTowerSize(**fields)
