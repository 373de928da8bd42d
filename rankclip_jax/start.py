"""The weights of a model from wherever they lie, and a train state that starts from them.

A workdir of ours, an export, or a checkpoint of another tool: all become `Weights`.
"""

import dataclasses
import hashlib
import logging
import math
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from rankclip_jax import checkpoint, interop, sharding
from rankclip_jax.config import Config
from rankclip_jax.interop import Weights
from rankclip_jax.losses.objective import Objective
from rankclip_jax.models import sizes, two_tower
from rankclip_jax.models.layers import Activation
from rankclip_jax.state import TrainState

log = logging.getLogger(__name__)


def read(
  path: pathlib.Path, which: str = "latest", activation: Activation | None = None
) -> Weights:
  """The weights at `path`, on the host.

  Args:
    path: a workdir, or anything that `interop.read` takes.
    which: "latest", "best" or a step, of a workdir.
    activation: of foreign weights, where they do not say.

  Raises:
    ValueError: if there are no weights, or they are damaged or of no supported model.
  """
  if not (path / checkpoint.DIRECTORY).is_dir():
    return interop.read(path, activation=activation)
  saved = checkpoint.of_run(path)
  step, facts = saved.facts(which)
  size = sizes.from_json(facts["size"])
  _, shapes = two_tower.abstract(size, with_bias=facts["logit_bias"])
  everywhere = sharding.replicated(sharding.make_mesh())
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), shapes
  )
  params = jax.tree.map(np.asarray, saved.restore_params(step, abstract))
  saved.close()
  return Weights(
    size=size,
    params=params,
    preprocessing=facts["preprocessing"],
    source=f"step {step} of {path}",
  )


def path_of(given: str | os.PathLike) -> pathlib.Path:
  """A path as users write it: shells leave the ~ of --config.field=~/file alone."""
  return pathlib.Path(os.path.expanduser(given))


def digest_of(weights: Weights) -> str:
  """Of every number, in hexadecimal."""
  digest = hashlib.sha256()
  for leaf in jax.tree.leaves(weights.params):
    digest.update(np.asarray(leaf).tobytes())
  return digest.hexdigest()


def weights_of(cfg: Config) -> Weights | None:
  """What `init.weights` names, at the config's resolution and length; None for none.

  Raises:
    ValueError: as `read`, or if the config names a model of another architecture.
  """
  if not cfg.init.weights:
    return None
  weights = read(path_of(cfg.init.weights), activation=cfg.model.activation)
  log.info("Starting from %s.", weights.source)
  _say_how_pictures_are_resized(weights)
  changes = dataclasses.asdict(cfg.model)
  del changes["batch_norm"]
  name = changes.pop("name")
  size = sizes.changed(weights.size, **changes)
  if name != "loaded":
    _check_same(size, sizes.named(name, **changes), name, weights.source)
  return _adapted(weights, size)


def place_of(cfg: Config, workdir: pathlib.Path) -> pathlib.Path:
  """Where the weights lie that a mode uses which trains nothing.

  That is the workdir if it has been trained in: whoever repeats the command of a training
  with another mode means what came of it, and `init.weights` only where there is nothing.

  Raises:
    ValueError: if the workdir was trained in, and no checkpoint came of it.
  """
  given = cfg.init.weights and path_of(cfg.init.weights)
  trained = workdir / checkpoint.DIRECTORY
  if not given or given.resolve() == workdir.resolve():
    return workdir
  if not trained.is_dir():
    return given
  if not any(p.name.isdecimal() for p in trained.iterdir()):
    raise ValueError(
      f"A run has begun in {workdir} and has no checkpoint to use yet; train on, or give "
      f"another --workdir to use config.init.weights={cfg.init.weights} as they are."
    )
  log.info(
    "%s has checkpoints, and they are used; config.init.weights=%s only starts a run. To "
    "use it as it is, give another --workdir.", workdir, cfg.init.weights
  )  # fmt: skip
  return workdir


def to_use(cfg: Config, workdir: pathlib.Path) -> tuple[pathlib.Path, Weights]:
  """`place_of`, and the weights there with what the config says of the model.

  Raises:
    ValueError: as `place_of` and `read`, or if the config changes the model of the
      workdir's own checkpoint.
  """
  place = place_of(cfg, workdir)
  return place, at(place, cfg.eval.checkpoint, cfg, own=place == workdir)


def at(place: pathlib.Path, which: str, cfg: Config, *, own: bool) -> Weights:
  """The weights at `place` with what the config says of the model.

  Args:
    place: see `read`, as `which`.
    which: of the checkpoints.
    cfg: its model.
    own: whether these are the run's own checkpoints, which change no more.

  Raises:
    ValueError: as `read`, or if the config changes the model of an own checkpoint.
  """
  weights = read(place, which, cfg.model.activation)
  wanted = {
    "activation": cfg.model.activation,
    "image_size": cfg.model.image_size,
    "context_length": cfg.model.context_length,
  }
  wrong = [
    f"model.{name}: the checkpoint has {getattr(weights.size, name)}, the config {value}"
    for name, value in wanted.items()
    if value not in (None, getattr(weights.size, name))
  ]
  if wrong and own:
    raise ValueError(
      f"{weights.source} is another model than the config:\n  "
      + "\n  ".join(wrong)
      + "\nLeave these out; or change the model by --config.init.weights="
      f"{place} with another --workdir."
    )
  return _adapted(weights, sizes.changed(weights.size, **wanted))


def check_name(cfg: Config, weights: Weights) -> None:
  """Refuses weights of another architecture than `model.name`; "loaded" is any.

  Pictures and captions may have other sizes.

  Raises:
    ValueError: naming what differs.
  """
  if cfg.model.name == "loaded":
    return
  _check_same(
    weights.size,
    sizes.named(cfg.model.name),
    cfg.model.name,
    weights.source,
    but=("vision.image_size", "text.context_length", "activation", "dtype", "remat"),
  )


def from_weights(
  state: TrainState, weights: Weights, objective: Objective, *, temperature: str
) -> TrainState:
  """A fresh state with its parameters replaced, shard by shard.

  Args:
    state: at step 0, for `weights.size`.
    weights: see `weights_of`.
    objective: whose temperature (and bias) stay where `weights` are not asked or have
      none.
    temperature: "loaded" or "new".
  """
  params = dict(weights.params)
  if temperature == "new":
    params["logit_scale"] = np.float32(math.log(objective.initial_scale))
  if objective.has_bias:
    bias = None if temperature == "new" else params.get("logit_bias")
    params["logit_bias"] = np.float32(objective.initial_bias if bias is None else bias)
  elif "logit_bias" in params:
    log.info("The loaded logit bias is dropped: the objective has none.")
    del params["logit_bias"]
  low, high = objective.log_scale_range
  params["logit_scale"] = np.clip(params["logit_scale"], low, high)
  place = lambda old, new: jax.make_array_from_callback(
    old.shape, old.sharding, lambda index: np.asarray(new, np.float32)[index]
  )
  return dataclasses.replace(state, params=jax.tree.map(place, state.params, params))


def _adapted(weights: Weights, size: sizes.TwoTowerSize) -> Weights:
  """The same model for pictures and captions of `size`."""
  params = two_tower.at_resolution(weights.params, size)
  params = jax.tree.map(np.asarray, two_tower.at_length(params, size))
  preprocessing = {**weights.preprocessing, "image_size": size.image_size}
  return dataclasses.replace(
    weights, size=size, params=params, preprocessing=preprocessing
  )


def _say_how_pictures_are_resized(weights: Weights) -> None:
  here = {"interpolation": "bicubic", "resize_mode": "shortest"}
  there = {key: weights.preprocessing.get(key, how) for key, how in here.items()}
  if there != here:
    log.warning(
      "%s was trained on pictures resized by %s, %s; training goes on with %s, %s.",
      weights.source, *there.values(), *here.values()
    )  # fmt: skip


def _check_same(
  loaded: sizes.TwoTowerSize,
  named: sizes.TwoTowerSize,
  name: str,
  source: str,
  but: Sequence[str] = (),
) -> None:
  ours, theirs = (_flat(dataclasses.asdict(s)) for s in (named, loaded))
  # What the loaded model's pictures were normalised by goes with its weights.
  but = ("mean", "std", *but)
  wrong = [
    f"{key}: {theirs.get(key)} loaded, {ours.get(key)} in {name}"
    for key in sorted(ours.keys() | theirs.keys())
    if ours.get(key) != theirs.get(key) and key not in but
  ]
  if wrong:
    raise ValueError(
      f"{source} is not a {name}:\n  "
      + "\n  ".join(wrong)
      + "\nUse --config.model.name=loaded for the architecture of the weights, or "
      "--config.model.activation for another activation."
    )


def _flat(values: dict[str, Any]) -> dict[str, Any]:
  nested = {k: v for k, v in values.items() if isinstance(v, dict)}
  inner = {f"{k}.{name}": v for k, part in nested.items() for name, v in part.items()}
  return {k: v for k, v in values.items() if k not in nested} | inner
