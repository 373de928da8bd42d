"""Frozen dataclasses of every setting, and their way from and to a ConfigDict.

`configs/*.py` build a `Config` and return `to_config_dict(config)`, so that flags can
override single fields; `from_config_dict` turns the result back, once, and refuses what
it does not know. Nothing below `plan` and `checkpoint` sees a `Config`.
"""

import dataclasses
import difflib
import json
import math
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import ml_collections
from ml_collections import config_dict

from rankclip_jax.evals import results

# Fields with this in their metadata may differ between a checkpoint and the run that
# resumes it: they change where and how often, not what is computed.
_FREE = {"resume": "free"}

SEVERAL = ("all", "follow")
"""Values of `eval.checkpoint` that mean more than one."""


def free(default: Any) -> Any:
  """A field that a resumed run may change."""
  return dataclasses.field(default=default, metadata=_FREE)


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """What is read. `batch_size` counts examples over all devices of all processes."""

  # "openmoji" is built in; a "mixture" has parts of several formats, by their endings.
  source: Literal[
    "openmoji", "csv", "tar", "parquet", "tfds", "array_record", "mixture"
  ] = "openmoji"
  # Paths, {000..331} and * patterns, several between "::"; of TFDS NAME[@SPLIT]. What is
  # trained on (it may move, but not change, while a run goes on), and what is held out.
  train: str = free("")
  test: str = free("")
  weights: tuple[float, ...] = ()  # in what proportion the parts of `train` are drawn
  # So many of the training examples, drawn by a seed: smaller sets lie in larger ones. 0
  # is all of them.
  subset: int = 0
  subset_seed: int = 0
  caption_key: str = ""  # the column, JSON key or feature of captions; "" is a known name
  # The column or feature of pictures or their paths; "" is a known name. Not for tars.
  image_key: str = ""
  tfds_dir: str = free("")  # where TFDS data sets lie; "" is ~/tensorflow_datasets
  batch_size: int = 256
  holdout: int = 500  # held-out examples of the built-in data set
  # Share of the picture's area that a random crop keeps; (1, 1) is resize and centre
  # crop, without augmentation.
  crop_scale: tuple[float, float] = (1.0, 1.0)
  flip: bool = False  # mirror every other picture in training
  # "fast" decodes JPEGs no larger than needed, for training; "exact" is Pillow's pixels.
  decoder: Literal["fast", "exact"] = "fast"
  # Pairs of a batch that show the same picture or say the same are no negatives of each
  # other, and no part of each other's lists.
  mask_duplicates: Literal["none", "picture", "caption", "either"] = "none"
  max_bad_fraction: float = free(0.01)  # of bad examples, above which training stops
  num_threads: int = free(2)  # that read and decode, in every process that does
  num_workers: int = free(0)  # processes that read and decode; 0 is only the run's own
  prefetch: int = free(4)  # batches read ahead


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """A size of `models.sizes.SIZES`; fields that are None are the size's own."""

  name: str = "ViT-B-32"  # or "loaded", the architecture of init.weights
  image_size: int | None = None
  context_length: int | None = None
  activation: Literal["gelu", "quick_gelu"] | None = None
  dtype: Literal["float32", "bfloat16"] = "bfloat16"  # of the arithmetic
  remat: Literal["none", "dots", "full"] = free("none")
  # Statistics of a ResNet: of the global batch, of each device's rows, or as they are.
  batch_norm: Literal["global", "per_device", "frozen"] = "global"


@dataclasses.dataclass(frozen=True)
class InitConfig:
  """Where a run starts; modes that need a model without training it take it from here."""

  # A workdir, an export or a foreign checkpoint (`interop`); "" draws fresh weights.
  weights: str = ""
  temperature: Literal["loaded", "new"] = "loaded"  # "new" is the objective's


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
  """An objective by name (`losses.objective.PRESETS`); None is the preset's own."""

  name: str = "rankclip"
  cross_modal_weight: float | None = None
  in_modal_weight: float | None = None
  ramp: Literal["none", "step", "epoch"] | None = None
  ramp_slope: float | None = None
  ramp_ceiling: float | None = None
  decay: Literal["none", "log"] | None = None
  top_k: int | None = None
  anchor_stride: int | None = None
  ties: Literal["random", "index"] | None = None
  cyclic_cross_modal_weight: float | None = None
  cyclic_in_modal_weight: float | None = None
  initial_scale: float | None = None


@dataclasses.dataclass(frozen=True)
class BlockingConfig:
  """How the loss is cut into chunks (`losses.blocked.Blocking`)."""

  chunk_rows: int | None = free(None)  # None is as many as fit into memory_mib
  memory_mib: int = free(256)  # of a device, for one chunk
  order: Literal["auto", "packed", "payload", "short", "exact", "native"] = free("auto")


@dataclasses.dataclass(frozen=True)
class OptimConfig:
  """AdamW with warm-up and cosine decay to zero; defaults as in the released code."""

  epochs: int = 64
  learning_rate: float = 5e-4
  warmup_fraction: float = 0.1  # of all steps
  warmup_steps: int | None = None  # in its place
  b1: float = 0.9
  b2: float = 0.999
  eps: float = 1e-8
  weight_decay: float = 0.1
  clip_norm: float = 0.0  # of the whole gradient; 0 is off
  # Every layer learns so many times as fast as the one above it; 1 is all alike.
  layer_decay: float = 1.0
  frozen: Literal["none", "image", "text"] = "none"  # a tower that does not learn
  # The batch is embedded in so many pieces; changes memory, not numbers.
  micro_batches: int = free(1)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Devices by axis. -1 takes what the other leaves; the batch spreads over both."""

  data: int = free(-1)
  fsdp: int = free(1)  # parameters and optimizer state are sharded over it


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
  """When to save (whichever comes first) and what to keep."""

  every_steps: int = free(0)  # 0 is off
  every_minutes: float = free(10.0)  # 0 is off
  keep_last: int = free(2)
  keep_best: int = free(1)
  # DATASET/TASK/METRIC; "" is recall@1 from texts to pictures of the held-out split.
  best_metric: str = free("")
  # Saves that fail (a full disk) are tried again for so long, while training goes on.
  retry_minutes: float = free(60.0)
  timeout_seconds: int = free(600)  # to wait for other processes' parts of a checkpoint


@dataclasses.dataclass(frozen=True)
class EvalConfig:
  """When to evaluate, and what mode=eval measures."""

  every_epochs: int = free(10)  # and at the end; 0 is only at the end
  batch_size: int = free(256)  # global; rounded up to the devices
  # "latest", "best" or a step; with `datasets` also "all" or "follow", every checkpoint
  # that there is, or that a running training makes.
  checkpoint: str = free("latest")
  # For mode=eval. The field's data sets by CLIP_benchmark's names, separated by commas,
  # "all", or folders; "" is what the run held out.
  datasets: str = free("")
  folder_dir: str = free("")  # of those that TFDS lacks; "" is ~/clip_benchmark
  names: str = free("")  # a file of class names in place of the known ones
  templates: str = free("")  # a file of prompts in place of the known ones
  probe: Literal["none", "released", "sweep"] = free("none")  # linear probes, and how
  few_shot: tuple[int, ...] = free(
    ()
  )  # probes of so many examples a class, such as 1,4,16
  few_shot_seeds: int = free(3)  # draws of them
  predictions: bool = free(False)  # write what each example was taken for
  # This job does every num_shards-th part of the tasks; mode=merge joins what they did.
  shard: int = free(0)
  num_shards: int = free(1)


@dataclasses.dataclass(frozen=True)
class LogConfig:
  """What a run says of itself."""

  every_steps: int = free(1)  # how often metrics are written
  # Without the end of a step, after which it is noted where all threads stand; 0 is off.
  watchdog_minutes: float = free(10.0)


@dataclasses.dataclass(frozen=True)
class ReportConfig:
  """`compare` names more workdirs, separated by commas, to lay beside this one."""

  compare: str = free("")


@dataclasses.dataclass(frozen=True)
class EmbedConfig:
  """mode=embed: a folder of pictures and a file of texts to one .npz, for mode=search."""

  images: str = free("")  # searched with its sub-folders
  texts: str = free("")  # one text a line
  output: str = free("")  # "" is embeddings.npz in the workdir


@dataclasses.dataclass(frozen=True)
class SearchConfig:
  """mode=search: the pictures that are nearest to texts or pictures."""

  query: str = free("")  # a text, or the path of a picture; several between "::"
  queries: str = free("")  # a file of more of them, one a line
  embeddings: str = free("")  # what mode=embed wrote; "" is where it writes by default
  top: int = free(10)
  # Workdirs or exports to lay beside this model, separated by commas; each with its own
  # embeddings.npz in it, of the same pictures.
  compare: str = free("")


@dataclasses.dataclass(frozen=True)
class AttentionConfig:
  """mode=attention: where in pictures a model finds captions and their words."""

  images: str = free("")  # pictures or folders of them, separated by commas
  captions: str = free("")  # several between "::"
  prompt: str = free("{}")  # the text that stands for a word alone
  compare: str = free("")  # more workdirs or exports, separated by commas


@dataclasses.dataclass(frozen=True)
class ExportConfig:
  """mode=export: a checkpoint in the layout of other tools."""

  format: Literal["transformers", "open_clip"] = free("transformers")
  output: str = free("")  # a folder; "" is export/FORMAT in the workdir
  # Of the weights, for the model card, as the Hugging Face Hub spells it.
  licence: str = free("other")


@dataclasses.dataclass(frozen=True)
class DistributedConfig:
  """Several processes: "auto" lets JAX recognise the cluster, if there is one."""

  mode: Literal["off", "auto", "explicit"] = free("off")
  coordinator: str | None = free(None)  # host:port of process 0
  num_processes: int | None = free(None)
  process_id: int | None = free(None)
  timeout_seconds: int = free(300)  # to wait for processes that have not come
  heartbeat_seconds: int = free(100)  # after which a silent process is taken for lost


@dataclasses.dataclass(frozen=True)
class Config:
  """One run."""

  mode: Literal[
    "train", "eval", "merge", "report", "embed", "search", "attention", "export"
  ] = free("train")
  seed: int = 0
  data: DataConfig = DataConfig()
  model: ModelConfig = ModelConfig()
  init: InitConfig = InitConfig()
  objective: ObjectiveConfig = ObjectiveConfig()
  blocking: BlockingConfig = BlockingConfig()
  optim: OptimConfig = OptimConfig()
  mesh: MeshConfig = MeshConfig()
  checkpoint: CheckpointConfig = CheckpointConfig()
  eval: EvalConfig = EvalConfig()
  log: LogConfig = LogConfig()
  report: ReportConfig = ReportConfig()
  embed: EmbedConfig = EmbedConfig()
  search: SearchConfig = SearchConfig()
  attention: AttentionConfig = AttentionConfig()
  export: ExportConfig = ExportConfig()
  distributed: DistributedConfig = DistributedConfig()

  def __post_init__(self):
    _at_least(
      2,
      "data.batch_size",
      self.data.batch_size,
      "a contrastive or ranking loss compares the pairs of a batch with each other",
    )
    _at_least(1, "data.holdout", self.data.holdout, "evaluation needs held-out examples")
    _at_least(0, "data.subset", self.data.subset, "0 is all training examples")
    _at_least(1, "data.num_threads", self.data.num_threads)
    _at_least(0, "data.num_workers", self.data.num_workers)
    _at_least(1, "data.prefetch", self.data.prefetch)
    _at_least(1, "optim.epochs", self.optim.epochs)
    _at_least(1, "optim.micro_batches", self.optim.micro_batches)
    _at_least(1, "log.every_steps", self.log.every_steps)
    _at_least(1, "eval.batch_size", self.eval.batch_size)
    _at_least(1, "eval.num_shards", self.eval.num_shards)
    _at_least(1, "eval.few_shot_seeds", self.eval.few_shot_seeds)
    _at_least(1, "distributed.timeout_seconds", self.distributed.timeout_seconds)
    _at_least(10, "distributed.heartbeat_seconds", self.distributed.heartbeat_seconds)
    _at_least(1, "checkpoint.timeout_seconds", self.checkpoint.timeout_seconds)
    _at_least(1, "checkpoint.keep_last", self.checkpoint.keep_last)
    low, high = self.data.crop_scale
    if not 0 < low <= high <= 1:
      raise ValueError(
        "data.crop_scale must be two shares with 0 < low <= high <= 1, got "
        f"{self.data.crop_scale}; (1, 1) switches cropping off."
      )
    for name, value, fits, wanted in (
      ("checkpoint.retry_minutes", self.checkpoint.retry_minutes,
       0 <= self.checkpoint.retry_minutes < math.inf, "0 (not at all) or more"),
      ("log.watchdog_minutes", self.log.watchdog_minutes,
       0 <= self.log.watchdog_minutes < math.inf, "0 (off) or more"),
      ("data.max_bad_fraction", self.data.max_bad_fraction,
       0 <= self.data.max_bad_fraction <= 1, "from 0 to 1"),
      ("data.weights", self.data.weights,
       all(0 < w < math.inf for w in self.data.weights), "positive numbers"),
      ("data.subset", self.data.subset,
       not (self.data.subset and self.data.weights), "0 where data.weights are given, "
       "which draw from every part by itself"),
      ("data.subset_seed", self.data.subset_seed,
       0 <= self.data.subset_seed < 2**32, "from 0 to 2**32 - 1"),
      ("seed", self.seed, 0 <= self.seed < 2**32, "from 0 to 2**32 - 1"),
      ("optim.learning_rate", self.optim.learning_rate,
       0 < self.optim.learning_rate < math.inf, "positive and finite"),
      ("optim.eps", self.optim.eps, self.optim.eps > 0,
       "positive: Adam divides 0 by it where a gradient is 0"),
      ("optim.b1", self.optim.b1, 0 <= self.optim.b1 < 1, "in [0, 1)"),
      ("optim.b2", self.optim.b2, 0 <= self.optim.b2 < 1, "in [0, 1)"),
      ("optim.weight_decay", self.optim.weight_decay,
       0 <= self.optim.weight_decay < math.inf, "0 or more"),
      ("optim.clip_norm", self.optim.clip_norm,
       0 <= self.optim.clip_norm < math.inf, "0 (off) or more"),
      ("optim.warmup_steps", self.optim.warmup_steps,
       self.optim.warmup_steps is None or self.optim.warmup_steps >= 0, "0 or more"),
      ("optim.layer_decay", self.optim.layer_decay,
       0 < self.optim.layer_decay <= 1, "in (0, 1]; 1 is off"),
      ("eval.shard", self.eval.shard, 0 <= self.eval.shard < self.eval.num_shards,
       f"from 0 to {self.eval.num_shards - 1} (eval.num_shards - 1)"),
      ("eval.few_shot", self.eval.few_shot,
       all(k >= 1 for k in self.eval.few_shot)
       and len(set(self.eval.few_shot)) == len(self.eval.few_shot),
       "distinct numbers of at least 1, such as 1,2,4,8,16"),
      ("search.top", self.search.top, self.search.top >= 1, "at least 1"),
      ("attention.prompt", self.attention.prompt,
       self.attention.prompt.count("{}") == 1, "a text with one {} for the word"),
      ("objective.top_k", self.objective.top_k,
       self.objective.top_k is None or self.objective.top_k >= 1, "at least 1"),
      ("objective.anchor_stride", self.objective.anchor_stride,
       self.objective.anchor_stride is None or self.objective.anchor_stride >= 1,
       "at least 1"),
      ("blocking.chunk_rows", self.blocking.chunk_rows,
       self.blocking.chunk_rows is None or self.blocking.chunk_rows >= 1, "at least 1"),
      ("blocking.memory_mib", self.blocking.memory_mib, self.blocking.memory_mib >= 1,
       "at least 1"),
      ("objective.initial_scale", self.objective.initial_scale,
       self.objective.initial_scale is None or self.objective.initial_scale > 0,
       "positive"),
      ("model.image_size", self.model.image_size,
       self.model.image_size is None or self.model.image_size >= 1, "at least 1"),
    ):  # fmt: skip
      if not fits:
        raise ValueError(f"config.{name} must be {wanted}, got {value}.")
    if not 0 <= self.optim.warmup_fraction < 1:
      raise ValueError(
        f"optim.warmup_fraction must lie in [0, 1), got {self.optim.warmup_fraction}."
      )
    self._check_checkpoint()
    given = (self.distributed.coordinator, self.distributed.num_processes)
    if self.distributed.mode == "explicit" and None in (
      *given,
      self.distributed.process_id,
    ):
      raise ValueError(
        'distributed.mode="explicit" needs coordinator, num_processes and process_id, '
        f"got {self.distributed}."
      )
    if self.distributed.mode != "explicit" and given != (None, None):
      raise ValueError(
        "distributed.coordinator and num_processes are read only with "
        f'distributed.mode="explicit", got mode={self.distributed.mode!r}.'
      )

  def _check_checkpoint(self) -> None:
    which = self.eval.checkpoint
    if which not in ("latest", "best", *SEVERAL) and not which.isdecimal():
      raise ValueError(
        'eval.checkpoint must be "latest", "best", a step, "all" or "follow", got '
        f"{which!r}."
      )
    if which in SEVERAL and self.mode == "eval" and not self.eval.datasets:
      raise ValueError(
        f'eval.checkpoint="{which}" needs eval.datasets. Training measures what it held '
        "out itself, every eval.every_epochs; of the built-in data that is "
        "--config.eval.datasets=openmoji."
      )
    if which in SEVERAL and self.mode in ("embed", "search", "export"):
      raise ValueError(
        f'config.mode="{self.mode}" uses one checkpoint, got eval.checkpoint="{which}"; '
        'give "latest", "best" or a step.'
      )


def best_metric(config: Config) -> str:
  """The name of the number by which checkpoints are compared."""
  held_out = f"{held_out_name(config)}/zeroshot_retrieval/image_retrieval_recall@1"
  return config.checkpoint.best_metric or held_out


def held_out_name(config: Config) -> str:
  """What results call the held-out data; see `evals.results`."""
  return results.held_out_name(config.data.source, config.data.test)


def to_config_dict(config: Any) -> ml_collections.ConfigDict:
  """The dataclass as a locked ConfigDict in which a None field keeps its type."""
  hints = typing.get_type_hints(type(config))
  out = ml_collections.ConfigDict()
  for field in dataclasses.fields(config):
    value = getattr(config, field.name)
    if dataclasses.is_dataclass(value):
      out[field.name] = to_config_dict(value)
    elif type(None) in typing.get_args(hints[field.name]):
      out[field.name] = config_dict.FieldReference(
        value, field_type=_plain_type(hints[field.name])
      )
    else:
      out[field.name] = value
  return out.lock()


def from_config_dict(
  values: Mapping[str, Any], cls: type = Config, prefix: str = ""
) -> Any:
  """The frozen dataclass of `values`.

  Raises:
    ValueError: for a key that `cls` does not have (with the nearest one that it has), a
      value of another type or outside its choices, and contradictory settings.
  """
  hints = typing.get_type_hints(cls)
  out = {}
  for key in values:
    value = values[key]
    if key not in hints:
      raise ValueError(_unknown(f"{prefix}{key}"))
    if dataclasses.is_dataclass(hints[key]):
      value = from_config_dict(value, hints[key], f"{prefix}{key}.")
    else:
      value = _checked(f"{prefix}{key}", value, hints[key])
    out[key] = value
  return cls(**out)


def check_flag_names(argv: Sequence[str]) -> None:
  """Refuses `--config.field` flags that name no field, before anything parses them."""
  for arg in argv:
    match = re.match(r"--?(?:no)?config\.([^=\s]+)", arg)
    if match and match[1] not in _field_names():
      raise ValueError(_unknown(match[1]))


def variants(arg: str | None, **axes: Sequence[str]) -> dict[str, str | None]:
  """Parses what follows the colon of `--config=configs/x.py:a,b`.

  Every word must be a choice of exactly one axis, at most one word an axis; an axis
  that is not mentioned is None.

  Raises:
    ValueError: for an unknown word, with the nearest choice, and for a second word of
      one axis.
  """
  chosen: dict[str, str | None] = dict.fromkeys(axes)
  for word in (arg or "").split(",") if arg else ():
    axis = next((a for a, choices in axes.items() if word in choices), None)
    if axis is None:
      known = [c for choices in axes.values() for c in choices]
      raise ValueError(
        f"Unknown variant {word!r}; there are {', '.join(known)}.{_nearest(word, known)}"
      )
    if chosen[axis] is not None:
      raise ValueError(
        f"Variants {chosen[axis]!r} and {word!r} both choose the {axis}; give one."
      )
    chosen[axis] = word
  return chosen


def to_json(config: Config) -> str:
  """The resolved config as indented JSON."""
  return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def contradictions(saved: Mapping[str, Any], config: Config) -> list[str]:
  """What a resumed run may not change, and does: `field: checkpoint has x, config y`.

  A field that is younger than the checkpoint had its default's meaning before.
  """
  now = dict(leaves(dataclasses.asdict(config)))
  then = dict(leaves(dataclasses.asdict(Config()))) | dict(leaves(saved))
  return [
    f"{name}: the checkpoint has {then[name]!r}, the config {now[name]!r}"
    for name in _field_names(free=False)
    if json.dumps(then[name]) != json.dumps(now[name])
  ]


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
  """Every setting of a config as a dict, by its dotted name."""
  for key, value in values.items():
    if isinstance(value, Mapping):
      yield from leaves(value, f"{prefix}{key}.")
    else:
      yield f"{prefix}{key}", value


def _field_names(cls: type = Config, prefix: str = "", *, free: bool = True) -> list[str]:
  """Dotted names of all fields; with free=False, of those a resumed run must keep."""
  names = []
  for field in dataclasses.fields(cls):
    if dataclasses.is_dataclass(field.type):
      names += _field_names(
        typing.cast(type, field.type), f"{prefix}{field.name}.", free=free
      )
    elif free or field.metadata != _FREE:
      names.append(f"{prefix}{field.name}")
  return names


def _checked(name: str, value: Any, hint: Any) -> Any:
  """`value` as `hint` wants it: an int may stand for a float, a list for a tuple."""
  union = typing.get_origin(hint) in (types.UnionType, typing.Union)
  options = typing.get_args(hint) if union else (hint,)
  if value is None and type(None) in options:
    return None
  option = next(o for o in options if o is not type(None))
  if typing.get_origin(option) is Literal:
    choices = typing.get_args(option)
    if value not in choices:
      raise ValueError(
        f"config.{name} must be one of {', '.join(choices)}, got {value!r}."
        f"{_nearest(value, choices)}"
      )
    return value
  if typing.get_origin(option) is tuple:
    inner = typing.get_args(option)
    if inner[1:] == (Ellipsis,) and isinstance(value, list | tuple):
      inner = inner[:1] * len(value)
    if not isinstance(value, list | tuple) or len(value) != len(inner):
      raise ValueError(f"config.{name} must be {len(inner)} values, got {value!r}.")
    return tuple(_checked(name, v, h) for v, h in zip(value, inner, strict=True))
  if option is float and type(value) is int:
    return float(value)
  if type(value) is not option:
    raise ValueError(
      f"config.{name} must be of type {option.__name__}, got {value!r} "
      f"({type(value).__name__})."
    )
  return value


def _plain_type(hint: Any) -> type:
  option = next(o for o in typing.get_args(hint) if o is not type(None))
  return str if typing.get_origin(option) is Literal else option


def _unknown(name: str) -> str:
  """Names the fields of the same last name, else the one that is spelled most alike."""
  tail = name.rsplit(".", 1)[-1]
  names = _field_names()
  same = [n for n in names if n.rsplit(".", 1)[-1] == tail]
  hint = f" Did you mean {' or '.join(same)}?" if same else _nearest(name, names)
  return f"There is no config.{name}.{hint}"


def _nearest(word: Any, choices: Sequence[str]) -> str:
  """ " Did you mean x?" if one of `choices` is close to `word`."""
  close = difflib.get_close_matches(str(word), choices, n=1, cutoff=0.5)
  return f" Did you mean {close[0]}?" if close else ""


def _at_least(least: int, name: str, value: int, why: str = "") -> None:
  if value < least:
    raise ValueError(
      f"{name} must be at least {least}, got {value}" + (f": {why}." if why else ".")
    )
