"""The architecture that a state dict belongs to, read from its names and shapes."""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from rankclip_jax.models.sizes import ResNetSize, TextSize, TwoTowerSize, ViTSize

HEAD_WIDTH = 64  # of all that OpenAI published; shapes do not tell
State = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Fact:
  """A number of the architecture, and the tensor that tells it."""

  value: Any
  name: str
  shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Names:
  """The tensors of a layout that tell about the architecture."""

  patches: str  # [width, 3, rows, columns]
  vision_positions: str
  vision_block: str  # a pattern whose group is the block's number
  text_positions: str
  text_block: str
  tokens: str
  text_projection: str
  embed_axis: int  # of the text projection


OPENAI = Names(
  patches="visual.conv1.weight",
  vision_positions="visual.positional_embedding",
  vision_block=r"visual\.transformer\.resblocks\.(\d+)\.",
  text_positions="positional_embedding",
  text_block=r"transformer\.resblocks\.(\d+)\.",
  tokens="token_embedding.weight",
  text_projection="text_projection",
  embed_axis=1,
)
TRANSFORMERS = Names(
  patches="vision_model.embeddings.patch_embedding.weight",
  vision_positions="vision_model.embeddings.position_embedding.weight",
  vision_block=r"vision_model\.encoder\.layers\.(\d+)\.",
  text_positions="text_model.embeddings.position_embedding.weight",
  text_block=r"text_model\.encoder\.layers\.(\d+)\.",
  tokens="text_model.embeddings.token_embedding.weight",
  text_projection="text_projection.weight",
  embed_axis=0,
)
_POOL_POSITIONS = "visual.attnpool.positional_embedding"
_RESNET_WIDTH = "visual.layer1.0.conv1.weight"
_RESNET_BLOCK = r"visual\.layer{stage}\.(\d+)\."


def names_of(state: State) -> Names | None:
  """The layout that `state` is in, or None if it is no CLIP's."""
  for names in OPENAI, TRANSFORMERS:
    if names.patches in state:
      return names
  return None


def facts(state: State, names: Names) -> dict[str, Fact]:
  """What the shapes tell, by the names of `TwoTowerSize` and its parts.

  Raises:
    ValueError: if a tensor that tells is missing or of an impossible shape.
  """
  resnet = names is OPENAI and any(k.startswith("visual.layer1.") for k in state)
  vision = (_RESNET_WIDTH, _POOL_POSITIONS) if resnet else (names.vision_positions,)
  ranks = dict.fromkeys((*vision, names.text_positions, names.tokens), 2)
  ranks |= {names.text_projection: 2, names.patches: 4}
  if resnet:
    ranks[_RESNET_WIDTH] = 4
  if missing := [k for k in ranks if k not in state]:
    raise ValueError(
      f"{len(missing)} tensors are missing: {', '.join(missing)}. A whole CLIP is "
      "needed, with both towers and their projections."
    )
  if wrong := [k for k, rank in ranks.items() if state[k].ndim != rank]:
    raise ValueError(
      f"{wrong[0]} should have {ranks[wrong[0]]} axes, got the shape "
      f"{list(state[wrong[0]].shape)}; this is no CLIP that is supported."
    )
  found = _resnet_facts(state) if resnet else _vit_facts(state, names)

  def tell(key: str, name: str, axis: int) -> None:
    shape = state[name].shape
    found[key] = Fact(shape[axis], name, shape)

  tell("text.width", names.tokens, 1)
  tell("text.vocab_size", names.tokens, 0)
  tell("text.context_length", names.text_positions, 0)
  tell("embed_dim", names.text_projection, names.embed_axis)
  found["text.depth"] = _depth(state, names.text_block)
  return found


def size_of(
  found: Mapping[str, Fact],
  *,
  vision_heads: int | None = None,
  text_heads: int | None = None,
  **shared: Any,
) -> TwoTowerSize:
  """The size that facts, heads and `shared` fields of `TwoTowerSize` make.

  Args:
    found: see `facts`.
    vision_heads: None where only shapes are known: every head is 64 wide.
    text_heads: the same.
    **shared: `activation`, `mean` and `std`.

  Raises:
    ValueError: if heads of 64 do not divide the width.
  """
  part = lambda tower: {
    key.removeprefix(tower): fact.value
    for key, fact in found.items()
    if key.startswith(tower)
  }
  vision, text = part("vision."), part("text.")
  is_vit = "patch_size" in vision
  attended = vision["width"] * (1 if is_vit else 32)  # a ResNet's last stage
  text["heads"] = text_heads or _heads("text", text["width"])
  vision["heads"] = vision_heads or _heads("vision", attended)
  return TwoTowerSize(
    ViTSize(**vision) if is_vit else ResNetSize(**vision),
    TextSize(**text),
    embed_dim=found["embed_dim"].value,
    **shared,
  )


def _heads(tower: str, width: int) -> int:
  if width % HEAD_WIDTH:
    raise ValueError(
      f"The {tower} tower is {width} wide, which heads of {HEAD_WIDTH} do not divide, "
      "and shapes do not tell the number of heads; put the model's "
      "open_clip_config.json beside the weights."
    )
  return width // HEAD_WIDTH


def _vit_facts(state: State, names: Names) -> dict[str, Fact]:
  shape = state[names.patches].shape
  patch = shape[-1]
  if shape[1:] != (3, patch, patch):
    raise ValueError(
      f"{names.patches} should be [width, 3, patch, patch], got {list(shape)}; only "
      "square patches of three channels are supported."
    )
  positions = names.vision_positions
  image_size = patch * _grid(state, positions)
  return {
    "vision.image_size": Fact(image_size, positions, state[positions].shape),
    "vision.patch_size": Fact(patch, names.patches, shape),
    "vision.width": Fact(shape[0], names.patches, shape),
    "vision.depth": _depth(state, names.vision_block),
  }


def _resnet_facts(state: State) -> dict[str, Fact]:
  stages = [_depth(state, _RESNET_BLOCK.format(stage=i)) for i in (1, 2, 3, 4)]
  blocks = tuple(stage.value for stage in stages)
  positions = state[_POOL_POSITIONS].shape
  image_size = 32 * _grid(state, _POOL_POSITIONS)
  width = state[_RESNET_WIDTH].shape
  return {
    "vision.image_size": Fact(image_size, _POOL_POSITIONS, positions),
    "vision.blocks": Fact(blocks, stages[0].name, stages[0].shape),
    "vision.width": Fact(width[0], _RESNET_WIDTH, width),
  }


def _grid(state: State, name: str) -> int:
  shape = state[name].shape
  side = math.isqrt(max(shape[0] - 1, 0))
  if not side or side * side != shape[0] - 1:
    raise ValueError(
      f"{name} should have one row and a square number of others, got the shape "
      f"{list(shape)}; only square pictures with a class token are supported."
    )
  return side


def _depth(state: State, pattern: str) -> Fact:
  """One more than the highest number of a block, so that gaps are missing tensors."""
  blocks = {k: int(m[1]) for k in state if (m := re.match(pattern, k))}
  if not blocks:
    readable = pattern.replace("\\", "").replace("(d+)", "N")
    raise ValueError(
      f"No tensors called {readable}* are there; a whole CLIP is needed, with both "
      "towers."
    )
  last = max(blocks, key=lambda k: blocks[k])
  if blocks[last] >= len(state):
    raise ValueError(f"{last} cannot be: there are {len(state)} tensors in all.")
  return Fact(blocks[last] + 1, last, state[last].shape)
