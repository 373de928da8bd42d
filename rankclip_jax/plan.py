"""What a config means on the devices at hand: names resolved, numbers checked."""

import dataclasses
import logging
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from rankclip_jax import optim, sharding
from rankclip_jax.config import Config
from rankclip_jax.data import opening, pipeline, transforms
from rankclip_jax.data import source as sources
from rankclip_jax.data.openmoji import OpenMoji
from rankclip_jax.data.rows import blank
from rankclip_jax.data.source import BadExample, Source
from rankclip_jax.data.subset import Subset
from rankclip_jax.data.tokenizer import VOCABULARY_SIZE, Tokenizer
from rankclip_jax.losses import blocked, terms
from rankclip_jax.losses import objective as objectives
from rankclip_jax.models import sizes

# In a workdir: indices of data that lies where nothing may be written.
INDEX_DIRECTORY = "index"

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Plan:
  """What a config means for one run, on the devices at hand. See `make`."""

  mesh: Mesh
  size: sizes.TwoTowerSize
  objective: objectives.Objective
  learning_rate: optax.Schedule
  optimizer: optax.GradientTransformation
  source: Source
  tokenizer: Tokenizer
  epoch_steps: int
  num_steps: int
  frozen: optim.Frozen
  batch_norm_groups: int
  micro_batches: int
  blocking: blocked.Blocking


def make(
  cfg: Config,
  size: sizes.TwoTowerSize | None = None,
  cache: pathlib.Path | None = None,
  devices: Sequence[Any] | None = None,
) -> Plan:
  """Resolves names and checks, before any time is spent, that everything fits.

  Args:
    cfg: of the run.
    size: of weights that were loaded; None makes the config's model.
    cache: a folder for indices that cannot be written beside the data.
    devices: to make the mesh of; None is all there are.

  Raises:
    ValueError: if something does not fit the devices, the data, or the rest.
  """
  mesh = sharding.make_mesh(cfg.mesh.data, cfg.mesh.fsdp, devices)
  if jax.process_index() == 0:
    log.info("%s", sharding.describe(mesh))
  sharding.check_batch(
    cfg.data.batch_size,
    mesh,
    jax.process_count(),
    micro_batches=cfg.optim.micro_batches,
  )
  changes = dataclasses.asdict(cfg.objective)
  objective = objectives.named(changes.pop("name"), **changes)
  size = size or size_of(cfg)
  if size.text.vocab_size != VOCABULARY_SIZE:
    raise ValueError(
      f"The text tower of {cfg.init.weights} has {size.text.vocab_size} tokens, and "
      f"CLIP's tokenizer, the only one here, {VOCABULARY_SIZE}; it cannot be trained."
    )
  blocking = blocked.Blocking(**dataclasses.asdict(cfg.blocking))
  rows = cfg.data.batch_size // mesh.size
  terms.check_anchors(objective, rows)
  blocked.choose(
    blocking,
    objective,
    rows=rows,
    length=cfg.data.batch_size,
    dim=size.embed_dim,
    platform=mesh.devices.flat[0].platform,
  )
  groups = _batch_norm_groups(cfg, size, mesh)
  source = source_of(cfg, "train", cache)
  epoch_steps = pipeline.steps_per_epoch(len(source), cfg.data.batch_size)
  num_steps = cfg.optim.epochs * epoch_steps
  objectives.rank_weight(objective, 0, num_steps=num_steps, epoch_steps=epoch_steps)
  learning_rate = optim.schedule(
    learning_rate=cfg.optim.learning_rate,
    num_steps=num_steps,
    warmup_fraction=cfg.optim.warmup_fraction,
    warmup_steps=cfg.optim.warmup_steps,
  )
  optimizer = optim.optimizer(
    learning_rate,
    b1=cfg.optim.b1,
    b2=cfg.optim.b2,
    eps=cfg.optim.eps,
    weight_decay=cfg.optim.weight_decay,
    clip_norm=cfg.optim.clip_norm,
    layer_decay=cfg.optim.layer_decay,
    frozen=cfg.optim.frozen,
  )
  return Plan(
    mesh=mesh,
    size=size,
    objective=objective,
    learning_rate=learning_rate,
    optimizer=optimizer,
    source=source,
    tokenizer=Tokenizer(size.context_length),
    epoch_steps=epoch_steps,
    num_steps=num_steps,
    frozen=cfg.optim.frozen,
    batch_norm_groups=groups,
    micro_batches=cfg.optim.micro_batches,
    blocking=blocking,
  )


def size_of(cfg: Config, loaded: sizes.TwoTowerSize | None = None) -> sizes.TwoTowerSize:
  """The model's size with the config's changes to it.

  Args:
    cfg: of the run.
    loaded: that of `init.weights`, which model.name="loaded" means.

  Raises:
    ValueError: for a name or changes that make no model.
  """
  fields = dataclasses.asdict(cfg.model)
  name = fields.pop("name")
  del fields["batch_norm"]
  if name != "loaded":
    return sizes.named(name, **fields)
  if loaded is None:
    raise ValueError(
      'model.name="loaded" is the architecture of init.weights, which is empty; give '
      "--config.init.weights=PATH, or name a model."
    )
  return sizes.changed(loaded, **fields)


def source_of(
  cfg: Config, split: Literal["train", "test"], cache: pathlib.Path | None = None
) -> Source:
  """The training examples, or the held-out ones, of which none may be bad.

  Args:
    cfg: of the run.
    split: which.
    cache: a folder for indices that cannot be written beside the data.

  Raises:
    ValueError: if there are none, fewer than `data.subset`, or something of the held-out
      ones is damaged.
  """
  whole = _whole_source_of(cfg, split, cache)
  if split == "test" or not cfg.data.subset:
    return whole
  return Subset(whole, cfg.data.subset, cfg.data.subset_seed)


def _whole_source_of(
  cfg: Config, split: Literal["train", "test"], cache: pathlib.Path | None
) -> Source:
  if cfg.data.source == "openmoji":
    fields = ("train", "test", "caption_key", "image_key")
    given = [name for name in fields if getattr(cfg.data, name)]
    if given:
      raise ValueError(
        f'data.source="openmoji" reads no files, and data.{given[0]} is given; name its '
        "format, for instance --config.data.source=tar."
      )
    return OpenMoji(split, holdout=cfg.data.holdout)
  path = {"train": cfg.data.train, "test": cfg.data.test}[split]
  if not path:
    raise ValueError(
      f'data.source="{cfg.data.source}" needs the {split} examples: '
      f"--config.data.{split}=PATH."
    )
  how = cfg.data.source
  if split == "test" and (other := opening.recognised_all(path)):
    # What is held out is often of another format, and then of other columns.
    how, path = other, path if other == "mixture" else opening.without_format(path)
  alike = how == cfg.data.source
  options = opening.Options(
    split=split,
    strict=split == "test",
    caption_key=cfg.data.caption_key if alike else "",
    image_key=cfg.data.image_key if alike else "",
    data_dir=cfg.data.tfds_dir,
    cache=cache,
  )
  weighted = split == "train" and bool(cfg.data.weights)
  return opening.open_source(how, path, options, parts=weighted)


def _batch_norm_groups(cfg: Config, size: sizes.TwoTowerSize, mesh: Mesh) -> int:
  """What `resnet.BatchNorm` calls groups. A tower that does not learn stays as it is."""
  if isinstance(size.vision, sizes.ViTSize) or cfg.optim.frozen == "image":
    return 0
  groups = {"global": 1, "per_device": mesh.size, "frozen": 0}[cfg.model.batch_norm]
  if groups and cfg.optim.micro_batches > 1:
    raise ValueError(
      f"optim.micro_batches={cfg.optim.micro_batches} would normalise {cfg.model.name} "
      "by the statistics of pieces, which is another model than without; use "
      'model.batch_norm="frozen", more devices, or a vision transformer.'
    )
  return groups


def crop_scale_of(cfg: Config) -> tuple[float, float] | None:
  """Area fractions of the random crop; None where the config switches it off."""
  return None if cfg.data.crop_scale == (1.0, 1.0) else cfg.data.crop_scale


def facts_of(cfg: Config, p: Plan) -> dict[str, Any]:
  """What is stored beside the weights, so that they can be used without this config."""
  preprocess = transforms.Preprocess(
    p.size.image_size, p.size.mean, p.size.std, crop_scale_of(cfg)
  )
  return {
    "config": dataclasses.asdict(cfg),
    "size": dataclasses.asdict(p.size),
    "objective": dataclasses.asdict(p.objective),
    "logit_bias": p.objective.has_bias,
    "tokenizer": p.tokenizer.facts(),
    "preprocessing": preprocess.facts(),
    "num_steps": p.num_steps,
    "data": sources.identity_of(p.source, in_parts=bool(cfg.data.weights)),
  }


def check_data(facts: Mapping[str, Any], own: Mapping[str, Any]) -> None:
  """Refuses to go on from a checkpoint with other examples in the places of its own.

  Args:
    facts: of the checkpoint.
    own: `facts_of` this run.

  Raises:
    ValueError: with the numbers of both.
  """
  then, now = facts.get("data"), own["data"]
  if then not in (None, now):
    say = lambda x: f"{x['examples']} examples in {x['shards']} files"
    same = "" if say(then) != say(now) else ", of which some have other names or contents"
    raise ValueError(
      f"The training data changed: the checkpoint has seen a part of {say(then)}, now "
      f"there are {say(now)}{same}. Bring the data back as it was, or start again in "
      "another --workdir, from these weights with --config.init.weights."
    )


def batches_of(
  cfg: Config,
  p: Plan,
  start: int,
  on_bad: Callable[[BadExample], None] | None = None,
) -> Iterator[dict[str, np.ndarray]]:
  """This process's rows of the batches from step `start` on; see `train_batches`."""
  return pipeline.train_batches(
    p.source,
    image_size=p.size.image_size,
    tokenizer=p.tokenizer,
    augment_scale=crop_scale_of(cfg),
    flip=cfg.data.flip,
    fast=cfg.data.decoder == "fast",
    global_batch=cfg.data.batch_size,
    num_steps=p.num_steps,
    seed=cfg.seed,
    weights=cfg.data.weights,
    same=cfg.data.mask_duplicates,
    on_bad=on_bad,
    rows=sharding.own_rows(p.mesh, cfg.data.batch_size),
    start_step=start,
    num_threads=cfg.data.num_threads,
    num_workers=cfg.data.num_workers,
    prefetch=cfg.data.prefetch,
  )


def batch_shapes(cfg: Config, p: Plan) -> dict[str, jax.ShapeDtypeStruct]:
  """Of the arrays of a global batch that a step reads."""
  row = _blank(cfg, p, 1)
  return {
    name: jax.ShapeDtypeStruct(
      (cfg.data.batch_size, *row[name].shape[1:]),
      row[name].dtype,
      sharding=sharding.over_batch(p.mesh),
    )
    for name in sorted(row.keys() - {"id", "replaced"})
  }


def blank_batch(cfg: Config, p: Plan) -> dict[str, np.ndarray]:
  """Zeros of the shapes that `batches_of` makes."""
  return _blank(cfg, p, len(sharding.own_rows(p.mesh, cfg.data.batch_size)))


def _blank(cfg: Config, p: Plan, rows: int) -> dict[str, np.ndarray]:
  length, same = p.tokenizer.context_length, cfg.data.mask_duplicates
  return blank(rows, p.size.image_size, length, same)
