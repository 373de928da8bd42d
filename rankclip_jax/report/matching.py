"""Whether a run is what the paper's tables print: its set-up, part by part."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from rankclip_jax.report.measured import Result
from rankclip_jax.report.printed import Row, Table
from rankclip_jax.report.run import Run

Verdict = Literal["same", "differs", "unknown"]

# The printed method of an objective of the config; the others are not in the tables.
_METHODS: Mapping[str, str] = {
  "clip": "CLIP",
  "cyclip": "CyCLIP",
  "rankclip": "RankCLIP",
  "rankclip_paper": "RankCLIP",
  "rankclip_released": "RankCLIP",
}
# What paths of a training set are called by.
_DATA_NAMES: Mapping[str, str] = {
  "CC3M": r"cc[-_]?3m|conceptual[-_]?captions[-_]?3m",
  "YFCC15M": r"yfcc[-_]?15m",
}
# Not printed; the released code's defaults.
_RELEASED: Mapping[str, tuple[str, float]] = {
  "batch size": ("data.batch_size", 128),
  "epochs": ("optim.epochs", 64),
  "learning rate": ("optim.learning_rate", 5e-4),
}
_PRINTED_PROBE = "released"
_NO_CROP = str([1.0, 1.0])
_PRINTED_SIZE = {"model.image_size": "224", "model.context_length": "77"}


@dataclasses.dataclass(frozen=True)
class Part:
  """One part of a set-up, and how the run's compares with the printed one."""

  name: str
  verdict: Verdict
  text: str = ""


def printed_row(run: Run, table: Table) -> Row | None:
  """The row of a table that a run's objective and architecture stand for, if any.

  Where a table has one architecture only, a run of another one is still compared with it.
  """
  method = _METHODS.get(run.setting("objective.name") or "")
  rows = [row for row in table.rows if row.method == method]
  if len({row.architecture for row in table.rows}) > 1:
    rows = [row for row in rows if row.architecture == architecture(run)]
  return rows[0] if rows else None


def architecture(run: Run) -> str | None:
  """The image tower in the paper's words; None where config.json does not say."""
  name = run.setting("model.name")
  if name is None or name == "loaded":
    return None
  return name.removesuffix("-quickgelu").replace("ViT-B-32", "ViT-B/32")


def parts(run: Run, table: Table, used: Sequence[Result]) -> list[Part]:
  """Every part of the set-up of a table, for the results of a run that it shows."""
  if not run.config:
    training = [Part("training", "unknown", "config.json is missing")]
  else:
    training = [
      _data(run, table),
      _architecture(run, table),
      _start(run),
      _augmentation(run),
      _objective(run, table),
      _schedule(run),
    ]
  return [*training, *_evaluation(used)]


def _data(run: Run, table: Table) -> Part:
  source, paths = run.setting("data.source"), run.setting("data.train") or ""
  by_name = re.search(_DATA_NAMES[table.data], paths, re.IGNORECASE)
  if not by_name:
    given = paths or source or "not in config.json"
    return Part("training data", "differs", f"{given}, not {table.data}")
  if (subset := run.setting("data.subset")) not in (None, "0"):
    return Part("training data", "differs", f"{subset} examples of {paths}, not all")
  text = f"{paths} is {table.data} by its name; whether all of it, is not known"
  return Part("training data", "unknown", text)


def _architecture(run: Run, table: Table) -> Part:
  known = sorted({row.architecture for row in table.rows})
  ours = architecture(run)
  if ours is None:
    return Part("architecture", "unknown", "that of the loaded weights")
  if ours not in known:
    return Part("architecture", "differs", f"{ours}, not {' or '.join(known)}")
  changed = [
    f"{path.partition('.')[2]} {run.setting(path)}, not {size}"
    for path, size in _PRINTED_SIZE.items()
    if run.setting(path) not in (None, size)
  ]
  if run.setting("model.activation") == "gelu":
    changed.append("GELU, not QuickGELU")
  if changed:
    return Part("architecture", "differs", "; ".join(changed))
  return Part("architecture", "same", ours)


def _start(run: Run) -> Part:
  weights = run.setting("init.weights")
  if weights:
    return Part("start", "differs", f"from {weights}, not from scratch")
  return Part("start", "same")


def _augmentation(run: Run) -> Part:
  """The released code has none."""
  crop = run.setting("data.crop_scale") or _NO_CROP
  if crop != _NO_CROP or run.setting("data.flip") == "True":
    return Part("augmentation", "differs", "random crops or flips, not none")
  return Part("augmentation", "same")


def _objective(run: Run, table: Table) -> Part:
  name = run.setting("objective.name")
  method = _METHODS.get(name or "")
  if method not in {row.method for row in table.rows}:
    return Part("objective", "differs", f"{name} is not in the table")
  group: Any = run.config.get("objective")
  changed = [
    f"{field} {value}"
    for field, value in (group.items() if isinstance(group, Mapping) else ())
    if field != "name" and value is not None
  ]
  if changed:
    return Part("objective", "differs", f"{name} with {', '.join(changed)}")
  if method == "RankCLIP" and name != "rankclip_released":
    return Part("objective", "unknown", f"which form of the loss was run; here {name}")
  return Part("objective", "same", name or "")


def _schedule(run: Run) -> Part:
  """What the paper does not print."""
  ours = [
    f"{name} {run.setting(path) or 'not in config.json'}"
    for name, (path, _) in _RELEASED.items()
  ]
  released = ", ".join(f"{value:g}" for _, value in _RELEASED.values())
  text = f"{', '.join(ours)}; not printed, the released code's defaults are {released}"
  return Part("schedule", "unknown", text)


def _evaluation(used: Sequence[Result]) -> list[Part]:
  found = []
  protocols = {
    str(result.extras.get("protocol", "not said"))
    for result in used
    if result.task == "linear_probe"
  }
  for other in sorted(protocols - {_PRINTED_PROBE}):
    text = f"{other}, not {_PRINTED_PROBE}"
    found.append(Part("probe protocol", "differs", text))
  single = [r.dataset for r in used if r.extras.get("templates") == 1]
  if single:
    text = f"one for {', '.join(single)}, not an ensemble"
    found.append(Part("prompts", "differs", text))
  texts: Mapping[bool | None, tuple[Verdict, str]] = {
    False: ("differs", "not the whole test split of"),
    None: ("unknown", "whether it is the whole test split of"),
  }
  for complete, (verdict, text) in texts.items():
    named = [r.dataset for r in used if r.extras.get("complete") is complete]
    if named:
      names = ", ".join(dict.fromkeys(named))
      found.append(Part("test data", verdict, f"{text} {names}"))
  weights = sorted({str(r.extras["weights"]) for r in used if "weights" in r.extras})
  if len(weights) > 1:
    text = f"of several: {'; '.join(weights)}"
    found.append(Part("weights", "differs", text))
  return found
