"""How others name and lay out CLIP's tensors: one description each, used both ways.

The OpenAI layout is that of OpenAI's state dicts, of open_clip, and of the training files
of RankCLIP and CyCLIP; the other is that of the transformers library's `CLIPModel`.
"""

import dataclasses
import enum
import functools
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from rankclip_jax.models import two_tower
from rankclip_jax.models.sizes import TwoTowerSize, ViTSize

# Names that carry no weights: facts of OpenAI's archives, and buffers of old releases.
_IGNORED = re.compile(
  r"input_resolution|context_length|vocab_size|(text\.)?attn_mask"
  r"|.*\.num_batches_tracked|.*\bposition_ids"
)
# By NumPy's letters. bfloat16, which it does not know, has another than "f".
_NO_WEIGHTS = {"c": "complex numbers"} | dict.fromkeys("iub", "integers")
_LISTED = 10  # names of each kind in an error


class Form(enum.Enum):
  """How PyTorch arranges what is here [in, out] or [rows, columns, in, out]."""

  SAME = enum.auto()
  LINEAR = enum.auto()  # [out, in]
  CONV = enum.auto()  # [out, in, rows, columns]
  POINTWISE = enum.auto()  # [out, in, 1, 1], here a linear layer
  PATCHES = enum.auto()  # [out, 3, rows, columns], here [rows columns 3, out]

  def theirs(self, x: np.ndarray) -> np.ndarray:
    """From the arrangement of this project to PyTorch's."""
    match self:
      case Form.SAME:
        return x
      case Form.LINEAR:
        return x.T
      case Form.CONV:
        return x.transpose(3, 2, 0, 1)
      case Form.POINTWISE:
        return x.T[:, :, None, None]
      case Form.PATCHES:
        side = round((x.shape[0] / 3) ** 0.5)
        return x.reshape(side, side, 3, -1).transpose(3, 2, 0, 1)

  def ours(self, x: np.ndarray) -> np.ndarray:
    """The inverse of `theirs`."""
    match self:
      case Form.SAME:
        return x
      case Form.LINEAR:
        return x.T
      case Form.CONV:
        return x.transpose(2, 3, 1, 0)
      case Form.POINTWISE:
        return x[:, :, 0, 0].T
      case Form.PATCHES:
        return x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0])


@dataclasses.dataclass(frozen=True)
class Tensor:
  """One of their tensors, and the part of one of our arrays that it is.

  Attributes:
    name: theirs.
    path: ours.
    form: how theirs is arranged.
    layer: which of a stack of equal blocks, if the array is one.
    third: which third of the last axis: query, key or value.
  """

  name: str
  path: tuple[str, ...]
  form: Form = Form.SAME
  layer: int | None = None
  third: int | None = None

  def view(self, array: np.ndarray) -> np.ndarray:
    """The part of our array, sharing its memory."""
    part = array if self.layer is None else array[self.layer]
    if self.third is None:
      return part
    width = part.shape[-1] // 3
    return part[..., self.third * width : (self.third + 1) * width]


Layout = Callable[[TwoTowerSize, bool], Iterator[Tensor]]


def openai(size: TwoTowerSize, with_bias: bool) -> Iterator[Tensor]:
  """The tensors of the OpenAI layout."""
  if isinstance(size.vision, ViTSize):
    vision = ("vision",)
    yield Tensor("visual.class_embedding", (*vision, "class_embedding"))
    yield Tensor("visual.positional_embedding", (*vision, "positional_embedding"))
    yield Tensor("visual.conv1.weight", (*vision, "patches", "kernel"), Form.PATCHES)
    yield from _affine("visual.ln_pre", (*vision, "ln_pre"))
    yield from _openai_blocks("visual.transformer", vision, size.vision.depth)
    yield from _affine("visual.ln_post", (*vision, "ln_post"))
    yield Tensor("visual.proj", (*vision, "projection", "kernel"))
  else:
    yield from _openai_resnet(size.vision.blocks)
  yield Tensor("token_embedding.weight", ("text", "tokens", "embedding"))
  yield Tensor("positional_embedding", ("text", "positional_embedding"))
  yield from _openai_blocks("transformer", ("text",), size.text.depth)
  yield from _affine("ln_final", ("text", "ln_final"))
  yield Tensor("text_projection", ("text", "projection", "kernel"))
  yield Tensor("logit_scale", ("logit_scale",))
  if with_bias:
    yield Tensor("logit_bias", ("logit_bias",))


def transformers(size: TwoTowerSize, with_bias: bool = False) -> Iterator[Tensor]:
  """The tensors of the transformers library's CLIPModel.

  Raises:
    ValueError: for what that model cannot be: a ResNet, or one with a bias.
  """
  if not isinstance(size.vision, ViTSize) or with_bias:
    what = "bias of the logits" if with_bias else "ResNet"
    raise ValueError(
      f"transformers' CLIPModel has no {what}; export this model as open_clip instead."
    )
  vision, text = ("vision",), ("text",)
  parts = "vision_model.embeddings", "text_model.embeddings"
  yield Tensor(f"{parts[0]}.class_embedding", (*vision, "class_embedding"))
  patches = (*vision, "patches", "kernel")
  yield Tensor(f"{parts[0]}.patch_embedding.weight", patches, Form.PATCHES)
  for part, path in zip(parts, (vision, text), strict=True):
    yield Tensor(f"{part}.position_embedding.weight", (*path, "positional_embedding"))
  yield Tensor(f"{parts[1]}.token_embedding.weight", (*text, "tokens", "embedding"))
  yield from _affine("vision_model.pre_layrnorm", (*vision, "ln_pre"))  # their spelling
  yield from _transformers_blocks("vision_model.encoder", vision, size.vision.depth)
  yield from _affine("vision_model.post_layernorm", (*vision, "ln_post"))
  yield from _transformers_blocks("text_model.encoder", text, size.text.depth)
  yield from _affine("text_model.final_layer_norm", (*text, "ln_final"))
  for name, path in (("visual_projection", vision), ("text_projection", text)):
    yield Tensor(f"{name}.weight", (*path, "projection", "kernel"), Form.LINEAR)
  yield Tensor("logit_scale", ("logit_scale",))


def to_openai(params: Mapping[str, Any], size: TwoTowerSize) -> dict[str, np.ndarray]:
  """A state dict in the OpenAI layout, with the counters that PyTorch's BatchNorm has."""
  state = _to(openai, params, size)
  counters = {
    name.replace("running_mean", "num_batches_tracked"): np.zeros((), np.int64)
    for name in state
    if name.endswith("running_mean")
  }
  return state | counters


def from_openai(state: Mapping[str, np.ndarray], size: TwoTowerSize) -> dict:
  """Parameters from a state dict in the OpenAI layout, as float32.

  open_clip's `text.` before the names of the text tower may be there.

  Raises:
    ValueError: that lists what is missing, unexpected, misshapen or not finite.
  """
  return _from(openai, {k.removeprefix("text."): v for k, v in state.items()}, size)


def to_transformers(
  params: Mapping[str, Any], size: TwoTowerSize
) -> dict[str, np.ndarray]:
  """A state dict of the transformers library's CLIPModel; raises as `transformers`."""
  return _to(transformers, params, size)


def from_transformers(state: Mapping[str, np.ndarray], size: TwoTowerSize) -> dict:
  """Parameters from a state dict of transformers' CLIPModel; raises as `from_openai`."""
  return _from(transformers, state, size)


def _affine(name: str, path: tuple, layer: int | None = None) -> Iterator[Tensor]:
  yield Tensor(f"{name}.weight", (*path, "scale"), layer=layer)
  yield Tensor(f"{name}.bias", (*path, "bias"), layer=layer)


def _dense(name: str, path: tuple, layer: int | None = None) -> Iterator[Tensor]:
  yield Tensor(f"{name}.weight", (*path, "kernel"), Form.LINEAR, layer)
  yield Tensor(f"{name}.bias", (*path, "bias"), layer=layer)


def _batch_norm(name: str, path: tuple, layer: int | None = None) -> Iterator[Tensor]:
  yield from _affine(name, path, layer)
  yield Tensor(f"{name}.running_mean", (*path, "mean"), layer=layer)
  yield Tensor(f"{name}.running_var", (*path, "var"), layer=layer)


def _openai_blocks(name: str, tower: tuple, depth: int) -> Iterator[Tensor]:
  path = (*tower, "transformer", "blocks")
  for i in range(depth):
    block, qkv = f"{name}.resblocks.{i}", (*path, "attention", "qkv")
    yield from _affine(f"{block}.ln_1", (*path, "ln_attention"), i)
    yield Tensor(f"{block}.attn.in_proj_weight", (*qkv, "kernel"), Form.LINEAR, i)
    yield Tensor(f"{block}.attn.in_proj_bias", (*qkv, "bias"), layer=i)
    yield from _dense(f"{block}.attn.out_proj", (*path, "attention", "out"), i)
    yield from _affine(f"{block}.ln_2", (*path, "ln_mlp"), i)
    yield from _dense(f"{block}.mlp.c_fc", (*path, "mlp", "up"), i)
    yield from _dense(f"{block}.mlp.c_proj", (*path, "mlp", "down"), i)


def _transformers_blocks(name: str, tower: tuple, depth: int) -> Iterator[Tensor]:
  path = (*tower, "transformer", "blocks")
  for i in range(depth):
    block, qkv = f"{name}.layers.{i}", (*path, "attention", "qkv")
    yield from _affine(f"{block}.layer_norm1", (*path, "ln_attention"), i)
    for third, letter in enumerate("qkv"):
      part = f"{block}.self_attn.{letter}_proj"
      yield Tensor(f"{part}.weight", (*qkv, "kernel"), Form.LINEAR, i, third)
      yield Tensor(f"{part}.bias", (*qkv, "bias"), Form.SAME, i, third)
    yield from _dense(f"{block}.self_attn.out_proj", (*path, "attention", "out"), i)
    yield from _affine(f"{block}.layer_norm2", (*path, "ln_mlp"), i)
    yield from _dense(f"{block}.mlp.fc1", (*path, "mlp", "up"), i)
    yield from _dense(f"{block}.mlp.fc2", (*path, "mlp", "down"), i)


def _openai_resnet(blocks: tuple[int, ...]) -> Iterator[Tensor]:
  for i in 1, 2, 3:
    conv = ("vision", f"conv{i}", "kernel")
    yield Tensor(f"visual.conv{i}.weight", conv, Form.CONV)
    yield from _batch_norm(f"visual.bn{i}", ("vision", f"bn{i}"))
  for stage, count in enumerate(blocks, 1):
    for i in range(count):
      path = ("vision", f"stage{stage}", "blocks" if i else "first")
      name, layer = f"visual.layer{stage}.{i}", i - 1 if i else None
      forms = (Form.POINTWISE, Form.CONV, Form.POINTWISE)
      for j, form in enumerate(forms, 1):
        kernel = (*path, f"conv{j}", "kernel")
        yield Tensor(f"{name}.conv{j}.weight", kernel, form, layer)
        yield from _batch_norm(f"{name}.bn{j}", (*path, f"bn{j}"), layer)
      if not i:
        kernel = (*path, "shortcut", "kernel")
        yield Tensor(f"{name}.downsample.0.weight", kernel, Form.POINTWISE)
        yield from _batch_norm(f"{name}.downsample.1", (*path, "bn_shortcut"))
  pool, path = "visual.attnpool", ("vision", "pool")
  yield Tensor(f"{pool}.positional_embedding", (*path, "positional_embedding"))
  for letter, part in zip("qkvc", ("query", "key", "value", "out"), strict=True):
    yield from _dense(f"{pool}.{letter}_proj", (*path, part))


@functools.cache
def _shapes(size: TwoTowerSize, with_bias: bool) -> dict[tuple[str, ...], tuple]:
  _, params = two_tower.abstract(size, with_bias=with_bias)
  flat = cast(dict[tuple[str, ...], Any], flatten_dict(params))
  return {path: x.shape for path, x in flat.items()}


def _to(layout: Layout, params: Mapping[str, Any], size: TwoTowerSize) -> dict:
  with_bias = "logit_bias" in params
  tensors = list(layout(size, with_bias))
  arrays = {path: np.asarray(x, np.float32) for path, x in flatten_dict(params).items()}
  has = {path: x.shape for path, x in arrays.items()}
  needs = _shapes(size, with_bias)
  if wrong := [path for path in has | needs if has.get(path) != needs.get(path)]:
    path = wrong[0]
    raise ValueError(
      f"The parameters are not those of the size: {'/'.join(path)} should be "
      f"{needs.get(path)}, got {has.get(path)}; give the size that they were made with."
    )
  return {
    t.name: np.array(t.form.theirs(t.view(arrays[t.path])), order="C") for t in tensors
  }


def _from(layout: Layout, state: Mapping[str, np.ndarray], size: TwoTowerSize) -> dict:
  if problems := differences(state, layout, size):
    raise ValueError(
      f"The tensors are not those of one whole CLIP of their shapes: {problems}. Save "
      "the model's whole state_dict() again; if it has other parts, it is not supported."
    )
  with_bias = "logit_bias" in state
  shapes = _shapes(size, with_bias)
  arrays = {path: np.empty(shape, np.float32) for path, shape in shapes.items()}
  for t in layout(size, with_bias):
    theirs = state[t.name].reshape(()) if t.name.startswith("logit_") else state[t.name]
    if kind := _NO_WEIGHTS.get(theirs.dtype.kind):
      raise ValueError(
        f"{t.name} holds {kind} ({theirs.dtype}), which cannot be read as weights; give "
        "the floating-point ones."
      )
    part = t.view(arrays[t.path])
    with np.errstate(over="ignore", invalid="ignore"):  # checked on the next line
      part[...] = t.form.ours(theirs)
    if not np.isfinite(part).all():
      raise ValueError(
        f"{t.name} holds NaN or infinite numbers (as float32): the run that wrote it had "
        "diverged, or the file is damaged; take an earlier checkpoint."
      )
  return unflatten_dict(arrays)


def differences(
  state: Mapping[str, np.ndarray], layout: Layout, size: TwoTowerSize
) -> str:
  """What a state dict lacks, has besides, or has in another shape than `size` has it."""
  state = {k: v for k, v in state.items() if not _IGNORED.fullmatch(k)}
  with_bias = "logit_bias" in state
  number = np.float32(0)  # one for all: only shapes are asked for
  arrays = {
    path: np.broadcast_to(number, shape)
    for path, shape in _shapes(size, with_bias).items()
  }
  expected = {
    t.name: t.form.theirs(t.view(arrays[t.path])).shape for t in layout(size, with_bias)
  }
  # open_clip may keep the temperature and the bias as vectors of length one.
  fits = lambda k: (
    state[k].shape == expected[k] or (k.startswith("logit_") and state[k].shape == (1,))
  )
  wrong = [
    f"{k} (expected {list(expected[k])}, got {list(state[k].shape)})"
    for k in expected
    if k in state and not fits(k)
  ]
  problems = {
    "missing": [k for k in expected if k not in state],
    "unexpected": [k for k in state if k not in expected],
    "of the wrong shape": wrong,
  }
  return "; ".join(
    f"{len(names)} {kind}: {', '.join(names[:_LISTED])}"
    + (", ..." if len(names) > _LISTED else "")
    for kind, names in problems.items()
    if names
  )
