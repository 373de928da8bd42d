"""What a config means on the devices at hand: names resolved, numbers checked."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from rankclip_jax import optim, sharding
from rankclip_jax.config import Config
from rankclip_jax.data import pipeline, transforms
from rankclip_jax.data.openmoji import OpenMoji
from rankclip_jax.data.tokenizer import Tokenizer
from rankclip_jax.losses import blocked, terms
from rankclip_jax.losses import objective as objectives
from rankclip_jax.models import two_tower


@dataclasses.dataclass(frozen=True)
class Plan:
  """What a config means for one run, on the devices at hand. See `make`."""

  mesh: Mesh
  size: two_tower.TwoTowerSize
  objective: objectives.Objective
  learning_rate: optax.Schedule
  optimizer: optax.GradientTransformation
  source: OpenMoji
  tokenizer: Tokenizer
  epoch_steps: int
  num_steps: int
  micro_batches: int
  blocking: blocked.Blocking


def make(cfg: Config) -> Plan:
  """Resolves names and checks, before any time is spent, that everything fits."""
  mesh = sharding.make_mesh(cfg.mesh.data, cfg.mesh.fsdp)
  sharding.check_batch(
    cfg.data.batch_size,
    mesh,
    jax.process_count(),
    micro_batches=cfg.optim.micro_batches,
  )
  changes = dataclasses.asdict(cfg.objective)
  objective = objectives.named(changes.pop("name"), **changes)
  size = size_of(cfg)
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
  source = OpenMoji("train", holdout=cfg.data.holdout)
  epoch_steps = pipeline.steps_per_epoch(len(source), cfg.data.batch_size)
  num_steps = cfg.optim.epochs * epoch_steps
  objectives.rank_weight(objective, 0, num_steps=num_steps, epoch_steps=epoch_steps)
  learning_rate = optim.schedule(
    learning_rate=cfg.optim.learning_rate,
    num_steps=num_steps,
    warmup_fraction=cfg.optim.warmup_fraction,
  )
  optimizer = optim.optimizer(
    learning_rate,
    b1=cfg.optim.b1,
    b2=cfg.optim.b2,
    eps=cfg.optim.eps,
    weight_decay=cfg.optim.weight_decay,
    clip_norm=cfg.optim.clip_norm,
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
    micro_batches=cfg.optim.micro_batches,
    blocking=blocking,
  )


def size_of(cfg: Config) -> two_tower.TwoTowerSize:
  """The model's size with the config's changes to it."""
  fields = dataclasses.asdict(cfg.model)
  return two_tower.named_size(fields.pop("name"), **fields)


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
  }


def batches_of(cfg: Config, p: Plan, start: int) -> Iterator[dict[str, np.ndarray]]:
  """This process's rows of the batches from step `start` on."""
  return pipeline.train_batches(
    p.source,
    image_size=p.size.image_size,
    tokenizer=p.tokenizer,
    augment_scale=crop_scale_of(cfg),
    global_batch=cfg.data.batch_size,
    num_steps=p.num_steps,
    seed=cfg.seed,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
    start_step=start,
    num_threads=cfg.data.num_threads,
    prefetch=cfg.data.prefetch,
  )
