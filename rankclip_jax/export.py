"""mode=export: a checkpoint as a folder that transformers or open_clip loads."""

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

from rankclip_jax import checkpoint, interop, start
from rankclip_jax.config import Config, ExportConfig
from rankclip_jax.evals import results
from rankclip_jax.interop import Weights, model_card

_WRITERS = {
  "transformers": interop.write_transformers,
  "open_clip": interop.write_open_clip,
}


def run(cfg: Config, workdir: pathlib.Path) -> str:
  """Exports the checkpoint that eval.checkpoint names, or else init.weights.

  Returns:
    What was exported, and where to.

  Raises:
    ValueError: if there are no such weights, or the format cannot express them.
  """
  path, weights = start.to_use(cfg, workdir)
  default = workdir / "export" / cfg.export.format
  where = start.path_of(cfg.export.output or default)
  card = _card(path, weights, cfg)
  write = _WRITERS[cfg.export.format]
  write(where, weights.params, weights.size, card, weights.preprocessing)
  return f"Exported {weights.source} to {where}"


def _card(path: pathlib.Path, weights: Weights, cfg: Config) -> interop.Card:
  if (path / checkpoint.DIRECTORY).is_dir():
    card = _card_of_run(path, weights, cfg)
  else:
    card = _card_of_others(path, weights, cfg)
  scale = math.exp(weights.params["logit_scale"])
  bias = weights.params.get("logit_bias")
  logits = f"{scale:.4g} times the cosines" + ("" if bias is None else f" {bias:+.4g}")
  return dataclasses.replace(card, training={**card.training, "Logits": logits})


def _card_of_run(path: pathlib.Path, weights: Weights, cfg: Config) -> interop.Card:
  saved = checkpoint.of_run(path)
  step, facts = saved.facts(cfg.eval.checkpoint)
  saved.close()
  run = facts["config"]
  named = run["model"]["name"]
  architecture = model_card.architecture_of(weights.size) if named == "loaded" else named
  size = json.loads(json.dumps(dataclasses.asdict(weights.size)))
  as_measured = all(size[key] == value for key, value in facts["size"].items())
  return interop.Card(
    name=f"{architecture} {run['objective']['name']} ({path.resolve().name})",
    licence=cfg.export.licence,
    data=_data(run["data"]),
    objective=_objective(run["objective"]["name"], facts["objective"]),
    metrics=_metrics(path, step) if as_measured else {},
    training={
      "Steps": f"{step:,} of {facts['num_steps']:,}",
      "Global batch": run["data"]["batch_size"],
      "Learning rate": run["optim"]["learning_rate"],
      "Weight decay": run["optim"]["weight_decay"],
      "Started from": run.get("init", {}).get("weights") or "random weights",
      "Seed": run["seed"],
    },
  )


def _card_of_others(path: pathlib.Path, weights: Weights, cfg: Config) -> interop.Card:
  """Of weights that were not trained here, or are an export of such: what it says."""
  converted = {"Converted from": weights.source}
  former = model_card.read(path, weights.size)
  if former:
    other = cfg.export.licence == ExportConfig.licence
    licence = former.licence if other else cfg.export.licence
    training = {**former.training, **converted}
    return dataclasses.replace(former, licence=licence, training=training)
  unknown = "not told by the weights: see where they are from"
  return interop.Card(
    name=f"{model_card.architecture_of(weights.size)} ({path.resolve().name})",
    licence=cfg.export.licence,
    data=unknown,
    objective=unknown,
    training=converted,
  )


def _data(data: Mapping[str, Any]) -> str:
  part = f"{data['subset']} of " if data.get("subset") else ""  # older runs have none
  if data["source"] == "openmoji":
    return f"{part}OpenMoji pictures (CC BY-SA 4.0) and their Unicode names"
  names = [pathlib.Path(part).name for part in data["train"].split("::")]
  return f"{part}the pairs of {', '.join(names)}"


def _objective(name: str, objective: Mapping[str, Any]) -> str:
  """An objective by name, with its weights, what ranking does, and the temperature."""
  terms = [f"{k} {v:g}" for k, v in objective.items() if k.endswith("_weight") and v]
  if objective["cross_modal_weight"] or objective["in_modal_weight"]:
    terms += _ranking(objective)
  low, high = (math.exp(x) for x in objective["log_scale_range"])
  scale = objective["initial_scale"]
  terms.append(f"temperature 1/{scale:.4g} at first, kept in [1/{high:.4g}, 1/{low:.4g}]")
  if objective["initial_bias"] is not None:
    terms.append(f"bias {objective['initial_bias']:g} at first")
  return f"{name} ({', '.join(terms)})"


def _ranking(objective: Mapping[str, Any]) -> list[str]:
  """The ramp of the ranking terms, t from 0 to 1 in training, and their options."""
  slope, ceiling = objective["ramp_slope"], objective["ramp_ceiling"]
  ramp = f"ramp min({slope:g} t, {ceiling:g}) by {objective['ramp']}"
  off = {"decay": "none", "top_k": None, "anchor_stride": 1, "eps": None}
  return [
    "no ramp" if objective["ramp"] == "none" else ramp,
    *(f"{k} {objective[k]}" for k, v in off.items() if objective.get(k, v) != v),
    f"ties {objective['ties']}",
  ]


def _metrics(workdir: pathlib.Path, step: int) -> dict[str, float | None]:
  """What was measured of this step, by data set, task and name."""
  return {
    f"{r['dataset']}/{r['task']}/{name}": value
    for r in results.read_all(workdir / "results")
    if r.get("rankclip_jax", {}).get("step") == step
    for name, value in r["metrics"].items()
  }
