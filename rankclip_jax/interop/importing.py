"""Reads the weights of a CLIP from the files of other tools."""

import collections
import contextlib
import dataclasses
import logging
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from rankclip_jax.interop import (
  architecture,
  described,
  files,
  layouts,
  open_clip_config,
  tokenizer_files,
  transformers_config,
)
from rankclip_jax.interop.described import Described
from rankclip_jax.models.layers import Activation
from rankclip_jax.models.sizes import VOCAB_SIZE, TwoTowerSize

log = logging.getLogger(__name__)

# What is looked for in a folder, the first of each that is there.
_OPEN_CLIP_WEIGHTS = (
  "open_clip_model.safetensors",
  "open_clip_pytorch_model.safetensors",
  "open_clip_pytorch_model.bin",
)
_TRANSFORMERS_WEIGHTS = (
  "model.safetensors",
  "model.safetensors.index.json",
  "pytorch_model.bin",
  "pytorch_model.bin.index.json",
)
_OPENAI_FACT = "input_resolution"  # only OpenAI's own archives have it
_LAYERS = {"vision.depth", "text.depth"}  # of `architecture.facts`
_SHOWN = 5  # names of tensors or files in an error


@dataclasses.dataclass(frozen=True)
class Weights:
  """A model from elsewhere.

  Attributes:
    size: its architecture, for float32.
    params: a nested dict of float32 arrays, as `two_tower.init` gives.
    preprocessing: image_size, mean, std, interpolation and resize_mode, in the words of
      open_clip; what the model was trained on, whether or not it can be had here.
    source: a line that says what it was.
  """

  size: TwoTowerSize
  params: dict[str, Any]
  preprocessing: dict[str, Any]
  source: str


def read(path: pathlib.Path | str, *, activation: Activation | None = None) -> Weights:
  """The CLIP in a folder or file of OpenAI, open_clip, transformers, RankCLIP or CyCLIP.

  The architecture is what the weights' shapes say; a config beside them must agree, and
  tells the heads, the activation and the preprocessing.

  Args:
    path: a folder with a config and weights, or a file of weights. Of PyTorch's archives
      only tensors are read.
    activation: of the MLPs. By default what the config says, and without one QuickGELU,
      with a warning unless it is an archive of OpenAI's.

  Raises:
    ValueError: if there is no such CLIP, naming the file and the key.
  """
  path = pathlib.Path(path)
  if not path.exists():
    raise ValueError(f"{path} does not exist; give a file of weights or its folder.")
  file = _file_in(path) if path.is_dir() else path
  state = _read_shards(file) if file.name.endswith(".index.json") else _read_state(file)
  names = architecture.names_of(state)
  if names is None:
    raise ValueError(
      f"{file} is no CLIP: there is no tensor {architecture.OPENAI.patches} (the layout "
      f"of OpenAI and open_clip) or {architecture.TRANSFORMERS.patches} "
      f"(transformers'), but {len(state)} others, such as "
      f"{', '.join(list(state)[:_SHOWN])}."
    )
  return _weights(file, state, names, activation)


def _weights(
  file: pathlib.Path,
  state: architecture.State,
  names: architecture.Names,
  activation: Activation | None,
) -> Weights:
  openai = names is architecture.OPENAI
  config = _config_beside(file, openai)
  with _naming(file):
    found = architecture.facts(state, names)
  if config:
    _check_described(config, found, state, openai)
  preprocessing = config.preprocessing if config else described.CLIP_PREPROCESSING
  with _naming(file):
    size = architecture.size_of(
      found,
      vision_heads=config and config.vision_heads,
      text_heads=config and config.text_heads,
      activation=activation or (config.activation if config else "quick_gelu"),
      mean=tuple(preprocessing["mean"]),
      std=tuple(preprocessing["std"]),
    )
    params = (layouts.from_openai if openai else layouts.from_transformers)(state, size)
  if size.text.vocab_size == VOCAB_SIZE and not openai:
    has_tokenizer = tokenizer_files.check(file.parent)
  else:  # in open_clip built in, unless its config says so
    has_tokenizer = openai and config is not None
  _say_what_was_decided(file, state, config, activation)
  if size.text.vocab_size == VOCAB_SIZE and not has_tokenizer:
    log.info("%s comes without a tokenizer; OpenAI CLIP's is taken.", file)
  return Weights(
    size=size,
    params=params,
    preprocessing={"image_size": size.image_size, **preprocessing},
    source=f"{file} ({'OpenAI' if openai else 'transformers'} layout"
    + (f", {config.file.name})" if config else ")"),
  )


def _check_described(
  config: Described,
  found: Mapping[str, architecture.Fact],
  state: architecture.State,
  openai: bool,
) -> None:
  """Raises a ValueError where a config and the weights beside it contradict.

  Where only layers are too few or too many, it lists the names of their tensors.
  """
  wrong = config.contradictions(found, "logit_bias" in state)
  if not wrong:
    return
  stated = {
    key: dataclasses.replace(fact, value=config.stated[key][1])
    for key, fact in found.items()
  }
  differ = {key for key in found if stated[key].value != found[key].value}
  counts = {key: stated[key].value for key in differ & _LAYERS}
  listed = ""
  if len(counts) == len(wrong) and all(_can_be(x, state) for x in counts.values()):
    with contextlib.suppress(ValueError):
      size = architecture.size_of(
        stated, vision_heads=config.vision_heads, text_heads=config.text_heads
      )
      layout = layouts.openai if openai else layouts.transformers
      listed = f" By it, {layouts.differences(state, layout, size)}."
  raise ValueError(
    f"{config.file} does not describe the weights beside it: {'; '.join(wrong)}.{listed} "
    "Put the config of this very model there, or the weights that it describes."
  )


def _can_be(layers: Any, state: architecture.State) -> bool:
  """Whether a config's number of layers is one that a state could be short of."""
  return described.is_whole(layers) and layers <= len(state)


def _file_in(folder: pathlib.Path) -> pathlib.Path:
  """The file of weights in a folder."""
  present = {p.name for p in folder.iterdir() if p.is_file()}
  first = lambda names: next((n for n in names if n in present), None)
  weights = first(_OPEN_CLIP_WEIGHTS)
  if weights and open_clip_config.FILE in present:
    return folder / weights
  if transformers_config.FILE in present:
    # Before its weights, which may be large, and of any model.
    transformers_config.read(folder / transformers_config.FILE)
  weights = first(_TRANSFORMERS_WEIGHTS)
  if weights and transformers_config.FILE in present:
    return folder / weights
  seen = ", ".join(sorted(present)[:_SHOWN]) or "no file"
  raise ValueError(
    f"{folder} holds no model: looked for {open_clip_config.FILE} with one of "
    f"{', '.join(_OPEN_CLIP_WEIGHTS)}, and {transformers_config.FILE} with one of "
    f"{', '.join(_TRANSFORMERS_WEIGHTS)}; there is {seen}. Give the file itself if it "
    "has another name."
  )


def _read_shards(index: pathlib.Path) -> dict[str, Any]:
  """All tensors of the files that an index lists."""
  names = described.section(files.read_json(index), "weight_map", index)
  state: dict[str, np.ndarray] = {}
  for name in dict.fromkeys(map(_file_name, names.values())):
    if name is None:
      wrong = next(x for x in names.values() if _file_name(x) is None)
      raise ValueError(f"{index} lists {wrong!r}; only files beside it are read.")
    shard = index.parent / name
    if not shard.is_file():
      raise ValueError(f"{shard} is missing, which {index.name} lists; get it as well.")
    part = _read_state(shard)
    _refuse_twice([*state, *part], "in another shard", shard)
    state |= part
  return state


def _file_name(value: Any) -> str | None:
  is_bare = isinstance(value, str) and value and pathlib.Path(value).name == value
  return value if is_bare else None


def _read_state(file: pathlib.Path) -> dict[str, np.ndarray]:
  """The flat names and arrays within whatever a file of weights holds."""
  content = files.read_tensors(file)
  if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
    content = content["state_dict"]  # of a training file, beside its optimizer
  if not isinstance(content, Mapping):
    raise ValueError(
      f"{file} should hold a dict of names and tensors, got {type(content).__name__}; "
      "save the model's state_dict()."
    )
  is_tensor = lambda k, v: isinstance(k, str) and isinstance(v, np.ndarray)
  other = [k for k, v in content.items() if not is_tensor(k, v)]
  if other or not content:
    found = ", ".join(f"{k!r}" for k in other[:_SHOWN]) or "nothing"
    raise ValueError(
      f"{file} should hold a dict of names and tensors alone, got {found}; save the "
      "model's state_dict(), or {'state_dict': ...}."
    )
  # Of DistributedDataParallel, and of open_clip's models with `custom_text`.
  wrapped = all(k.startswith("module.") for k in content)
  bare = lambda k: (k.removeprefix("module.") if wrapped else k).removeprefix("text.")
  _refuse_twice([bare(k) for k in content], 'also with "text." before it', file)
  return {bare(k): v for k, v in content.items()}


def _refuse_twice(names: list[str], how: str, file: pathlib.Path) -> None:
  if twice := [k for k, count in collections.Counter(names).items() if count > 1]:
    raise ValueError(
      f"{file} holds {', '.join(twice[:_SHOWN])} twice, {how}, and does not say which is "
      "the model's; keep one of them."
    )


def _config_beside(file: pathlib.Path, openai: bool) -> Described | None:
  if openai:
    path = file.parent / open_clip_config.FILE
    return open_clip_config.read(path) if path.is_file() else None
  path = file.parent / transformers_config.FILE
  if not path.is_file():
    raise ValueError(
      f"{file} has transformers' weights, which come with a {transformers_config.FILE}; "
      "it is not beside them, get it from where the weights are from."
    )
  return transformers_config.read(path)


@contextlib.contextmanager
def _naming(file: pathlib.Path) -> Iterator[None]:
  """Puts the file before the message of an error of what does not know it."""
  try:
    yield
  except ValueError as error:
    raise ValueError(f"{file}: {error}") from None


def _say_what_was_decided(
  file: pathlib.Path,
  state: architecture.State,
  config: Described | None,
  activation: Activation | None,
) -> None:
  if config and activation not in (None, config.activation):
    log.warning(
      "%s says %s; %s is used, as asked.", config.file, config.activation, activation
    )
  elif not config and activation is None and _OPENAI_FACT not in state:
    log.warning(
      "%s does not say which activation its model was trained with; QuickGELU is taken, "
      "as of OpenAI, RankCLIP and CyCLIP. Most models of open_clip have GELU: set "
      "--config.model.activation=gelu for them, or quick_gelu to confirm.", file
    )  # fmt: skip
  converted = {str(v.dtype) for v in state.values() if v.dtype.kind not in "iub"}
  if converted - {"float32"}:
    log.info("%s: %s weights are read as float32.", file, " and ".join(sorted(converted)))
