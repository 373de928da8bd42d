"""mode=export: a checkpoint as a folder that transformers or open_clip loads."""

import pathlib
from collections.abc import Mapping
from typing import Any

from rankclip_jax import checkpoint, interop, start
from rankclip_jax.config import Config
from rankclip_jax.evals import results

_WRITERS = {
  "transformers": interop.write_transformers,
  "open_clip": interop.write_open_clip,
}


def run(cfg: Config, workdir: pathlib.Path) -> str:
  """Exports init.weights, or else the checkpoint that eval.checkpoint names.

  Returns:
    What was exported, and where to.

  Raises:
    ValueError: if there are no such weights, or the format cannot express them.
  """
  path = pathlib.Path(cfg.init.weights) if cfg.init.weights else workdir
  weights = start.read(path, cfg.eval.checkpoint, cfg.model.activation)
  where = pathlib.Path(cfg.export.output or workdir / "export" / cfg.export.format)
  card = _card(path, weights.source, cfg)
  _WRITERS[cfg.export.format](where, weights.params, weights.size, card)
  return f"Exported {weights.source} to {where}"


def _card(path: pathlib.Path, source: str, cfg: Config) -> interop.Card:
  if not (path / checkpoint.DIRECTORY).is_dir():
    return interop.Card(
      name=path.stem,
      licence=cfg.export.licence,
      data="unknown: these weights come from another tool",
      objective="unknown",
      training={"Converted from": source},
    )
  saved = checkpoint.of_run(path)
  step, facts = saved.facts(cfg.eval.checkpoint)
  saved.close()
  run = facts["config"]
  return interop.Card(
    name=f"{run['model']['name']} {run['objective']['name']} ({path.resolve().name})",
    licence=cfg.export.licence,
    data=_data(run["data"]),
    objective=_objective(run["objective"]["name"], facts["objective"]),
    metrics=_metrics(path, step),
    training={
      "Steps": f"{step:,} of {facts['num_steps']:,}",
      "Global batch": run["data"]["batch_size"],
      "Learning rate": run["optim"]["learning_rate"],
      "Weight decay": run["optim"]["weight_decay"],
      "Started from": run.get("init", {}).get("weights") or "random weights",
      "Seed": run["seed"],
    },
  )


def _data(data: Mapping[str, Any]) -> str:
  if data["source"] == "openmoji":
    return "OpenMoji pictures (CC BY-SA 4.0) and their Unicode names"
  return f"the pairs of {pathlib.Path(data['train']).name}"


def _objective(name: str, objective: Mapping[str, Any]) -> str:
  weights = {k: v for k, v in objective.items() if k.endswith("_weight") and v}
  terms = ", ".join(f"{k} {v:g}" for k, v in weights.items())
  return f"{name} ({terms})" if terms else name


def _metrics(workdir: pathlib.Path, step: int) -> dict[str, float | None]:
  """What was measured of this step, by data set, task and name."""
  return {
    f"{r['dataset']}/{r['task']}/{name}": value
    for r in results.read_all(workdir / "results")
    if r.get("rankclip_jax", {}).get("step") == step
    for name, value in r["metrics"].items()
  }
