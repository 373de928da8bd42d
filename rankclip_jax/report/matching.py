"""Whether a run is what the paper's tables print: its set-up, part by part."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from rankclip_jax.report import datasets
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
# What paths of a training set are called by, as a whole word.
_DATA_NAMES: Mapping[str, str] = {
  "CC3M": r"g?cc[-_]?3m|conceptual[-_]?captions[-_]?3m",
  "YFCC15M": r"yfcc[-_]?15m",
}
# Not printed; the released code's defaults. Of several settings the first that is set.
_RELEASED: Mapping[str, tuple[tuple[str, ...], str]] = {
  "batch size": (("data.batch_size",), "128"),
  "epochs": (("optim.epochs",), "64"),
  "learning rate": (("optim.learning_rate",), "0.0005"),
  "weight decay": (("optim.weight_decay",), "0.1"),
  "warm-up": (
    ("optim.warmup_steps", "optim.warmup_fraction"),
    "10000 steps",
  ),
  "beta 1": (("optim.b1",), "0.9"),
  "beta 2": (("optim.b2",), "0.999"),
  "clipping": (("optim.clip_norm",), "none"),
}
# What the released code has not, by the value that switches it off.
_NOT_RELEASED: Mapping[str, str] = {
  "data.mask_duplicates": "none",
  "optim.frozen": "none",
  "optim.layer_decay": "1",
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


def printed_rows(run: Run, table: Table, used: Sequence[Result]) -> list[Row]:
  """The rows of a table to compare a run with: of its objective and architecture.

  Where a table has one architecture only, a run of another one is still compared with it.
  Where the objective is not known (foreign weights), they are those of CLIP and RankCLIP,
  and of the same architecture only.
  """
  ours = architecture(run, used)
  if not run.config:
    methods = ("CLIP", "RankCLIP")
    return [r for r in table.rows if r.method in methods and r.architecture == ours]
  method = _METHODS.get(run.setting("objective.name") or "")
  rows = [row for row in table.rows if row.method == method]
  if len({row.architecture for row in table.rows}) > 1:
    rows = [row for row in rows if row.architecture == ours]
  return rows[:1]


def architecture(run: Run, used: Sequence[Result]) -> str | None:
  """The image tower in the paper's words; None where nothing says it.

  Where config.json does not, the results may, if they all say the same.
  """
  name = run.setting("model.name")
  if name in (None, "loaded"):
    said = _models(used)
    name = said[0] if len(said) == 1 else None
  if name is None:
    return None
  name = name.removesuffix("-quickgelu").removesuffix("-quick_gelu")
  return name.replace("ViT-B-32", "ViT-B/32")


def _models(used: Sequence[Result]) -> list[str]:
  """What results call their models, "" where one does not say."""
  models = {"" if result.model == "loaded" else result.model for result in used}
  return [] if models <= {""} else sorted(models)


def parts(run: Run, table: Table, used: Sequence[Result]) -> list[Part]:
  """Every part of the set-up of a table, for the results of a run that it shows."""
  if not run.config:
    text = "config.json is missing: data, objective and schedule are not known"
    training = [Part("training", "unknown", text), _architecture(run, table, used)]
  else:
    training = [
      _data(run, table),
      _architecture(run, table, used),
      _start(run),
      _augmentation(run),
      _objective(run, table),
      _more(run),
      _schedule(run),
    ]
  return [*training, *_evaluation(used)]


def _data(run: Run, table: Table) -> Part:
  source, paths = run.setting("data.source"), run.setting("data.train") or ""
  name = rf"(?<![^\W_])({_DATA_NAMES[table.data]})(?![^\W_])"
  others = [p for p in paths.split("::") if not re.search(name, p, re.IGNORECASE)]
  if others:
    given = ", ".join(filter(None, others)) or source or "not in config.json"
    return Part("training data", "differs", f"{given}, not {table.data}")
  if (subset := run.setting("data.subset")) not in (None, "0"):
    return Part("training data", "differs", f"{subset} examples of {paths}, not all")
  text = f"{paths} is {table.data} by its name; whether all of it, is not known"
  return Part("training data", "unknown", text)


def _architecture(run: Run, table: Table, used: Sequence[Result]) -> Part:
  known = sorted({row.architecture for row in table.rows})
  ours = architecture(run, used)
  if ours is None:
    said = " and ".join(name or "none" for name in _models(used))
    text = f"the results name {said}" if said else "that of the loaded weights"
    return Part("architecture", "unknown", text)
  if ours not in known:
    return Part("architecture", "differs", f"{ours}, not {' or '.join(known)}")
  changed = [
    f"{path.partition('.')[2]} {run.setting(path)}, not {size}"
    for path, size in _PRINTED_SIZE.items()
    if run.setting(path) not in (None, size)
  ]
  if run.setting("model.activation") == "gelu":
    changed.append("GELU, not QuickGELU")
  if run.setting("model.batch_norm") == "frozen":
    changed.append("batch_norm frozen")
  if changed:
    return Part("architecture", "differs", "; ".join(changed))
  if run.setting("model.name") in (None, "loaded"):
    text = f"{ours} by the results; its size of pictures and activation are not said"
    return Part("architecture", "unknown", text)
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


def _more(run: Run) -> Part:
  changed = [
    f"{path.partition('.')[2]} {value}"
    for path, off in _NOT_RELEASED.items()
    if (value := run.setting(path)) is not None and value not in (off, f"{off}.0")
  ]
  if changed:
    text = f"{', '.join(changed)}: the released code has none of it"
    return Part("training", "differs", text)
  return Part("training", "same")


def _schedule(run: Run) -> Part:
  """What the paper does not print."""
  ours = [
    f"{name} {run.setting(*paths) or 'not in config.json'} ({released})"
    for name, (paths, released) in _RELEASED.items()
  ]
  text = f"{', '.join(ours)}; not printed, in brackets the released code's defaults"
  return Part("schedule", "unknown", text)


def _evaluation(used: Sequence[Result]) -> list[Part]:
  """What the results say of themselves; what one does not say, is not known."""
  probes = [r for r in used if r.task == "linear_probe"]
  zero_shot = [r for r in used if r.task == "zeroshot_classification"]
  weights = sorted({str(r.extras["weights"]) for r in used if "weights" in r.extras})
  found = [
    *_said("probe protocol", "protocol", probes, lambda _: _PRINTED_PROBE),
    *_said("prompts", "templates", zero_shot, _prompts),
    *_said("test data", "complete", used, lambda _: True, "the whole test split"),
  ]
  if len(weights) > 1:
    text = f"of several: {'; '.join(weights)}"
    found.append(Part("weights", "differs", text))
  if silent := [r.dataset for r in used if "weights" not in r.extras]:
    found.append(Part("weights", "unknown", f"of which {_names(silent)} is"))
  return found


def _prompts(result: Result) -> int | None:
  known = datasets.KNOWN.get(result.dataset)
  return known.prompts if known else None


def _said(
  name: str,
  key: str,
  used: Sequence[Result],
  printed: Callable[[Result], Any],
  words: str = "",
) -> list[Part]:
  """How an extra of results compares with what is printed.

  Args:
    name: of the part.
    key: of the extra.
    used: the results that should have it.
    printed: the extra's value of a result like the printed one, None if not known.
    words: what it means where it is printed; "" is the value itself.
  """
  found: dict[tuple[Verdict, str], list[str]] = {}
  for result in used:
    ours, theirs = result.extras.get(key), printed(result)
    if ours is None or theirs is None:
      said: tuple[Verdict, str] = (
        "unknown",
        f"not said{f' whether {words}' * bool(words)}",
      )
    elif ours != theirs:
      said = ("differs", f"not {words}" if words else f"{ours}, not {theirs}")
    else:
      continue
    found.setdefault(said, []).append(result.dataset)
  return [
    Part(name, verdict, f"{text}: {_names(those)}")
    for (verdict, text), those in found.items()
  ]


def _names(those: Sequence[str]) -> str:
  return ", ".join(dict.fromkeys(those))
