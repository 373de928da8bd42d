"""The numbers of a study, from results on disk: seeds put together, as Markdown."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from rankclip_jax.evals import results
from rankclip_jax.studies import disk
from rankclip_jax.studies.study import Metric, Run, Study, Variant

_NOTHING = "-"


@dataclasses.dataclass(frozen=True)
class Results:
  """The finished runs of a study.

  Attributes:
    study: of which.
    runs: of every variant by its name, those that are done.
    missing: names of runs that are not done, with their state.
    seeds: how many each variant should have.
  """

  study: Study
  runs: Mapping[str, Sequence[Run]]
  missing: Sequence[str]
  seeds: int

  def values(self, variant: Variant, metric: Metric) -> list[float]:
    """Of its finished runs; without those where the metric is undefined."""
    found = [disk.value(run, metric) for run in self.runs[variant.name]]
    return [value for value in found if value is not None]


def read(study: Study, runs: Sequence[Run], *, partial: bool = False) -> Results:
  """What is on disk of a study.

  Args:
    study: of which.
    runs: all of it.
    partial: go on where some are not done, as long as some are.

  Raises:
    ValueError: naming the runs that are not done.
  """
  done: dict[str, list[Run]] = {variant.name: [] for variant in study.variants}
  missing = []
  for run in runs:
    status = disk.status(run, study)
    if status.state == "done":
      done[run.variant.name].append(run)
    else:
      missing.append(f"{run.name} ({status.state})")
  if missing and not (partial and any(done.values())):
    raise ValueError(
      f"{len(missing)} of {len(runs)} runs are not done: {', '.join(missing)}. Run them, "
      "or draw what there is with --partial."
    )
  return Results(study, done, missing, seeds=len(runs) // len(study.variants))


def markdown(found: Results) -> str:
  """The metrics of the figure, every metric, and where they are from."""
  study = found.study
  heads = [metric.label.replace(" (%)", "") for metric in study.metrics]
  rows = []
  for variant in study.variants:
    done = len(found.runs[variant.name])
    part = "" if done == found.seeds else f" ({done} of {found.seeds} seeds)"
    cells = [cell(found.values(variant, metric), done) for metric in study.metrics]
    rows.append([f"{variant.name}{part}", str(variant.x), *cells])
  lines = [f"# {study.name}", "", *_note(found), ""]
  lines += _table(["variant", study.x_label, *heads], rows)
  lines += ["", "## Every metric", ""]
  lines += _table(["metric", *(v.name for v in study.variants)], list(_every(found)))
  return "\n".join(lines) + "\n"


def cell(values: Sequence[float], count: int) -> str:
  """Mean ± sample standard deviation, if the metric is defined in all `count` runs.

  Of one run there is no deviation.
  """
  if not count or len(values) != count:
    return _NOTHING
  mean = f"{np.mean(values):.4f}"
  return f"{mean} ± {spread(values):.4f}" if count > 1 else mean


def spread(values: Sequence[float]) -> float:
  """The sample standard deviation; NaN of a single value."""
  return float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")


def sentence(found: Results) -> str:
  """What means and error bars are, and how much of the study is missing."""
  text = f"Mean ± sample standard deviation of {found.seeds} seeds"
  if found.missing:
    whole = found.seeds * len(found.study.variants)
    text += f"; INCOMPLETE: {len(found.missing)} of {whole} runs are not done"
  return text


def _note(found: Results) -> Iterator[str]:
  yield sentence(found) + "."
  if found.missing:
    yield f"Not done: {', '.join(found.missing)}."
  facts = [disk.facts(run) for runs in found.runs.values() for run in runs]
  for name in ("commit", "device_kind", "devices", "host", "python", "jax"):
    different = sorted({str(each.get(name, "unknown")) for each in facts})
    yield f"{name.replace('_', ' ')}: {', '.join(different)}."


def _every(found: Results) -> Iterator[list[str]]:
  """A row for every metric of any result, a cell for every variant."""
  values: dict[tuple[str, str, str], dict[str, list[float | None]]] = {}
  for name, runs in found.runs.items():
    for run in runs:
      for result in results.read_all(run.workdir / "results"):
        for metric, value in result["metrics"].items():
          row = values.setdefault((result["dataset"], result["task"], metric), {})
          row.setdefault(name, []).append(value)
  for key, row in values.items():
    cells = []
    for name, runs in found.runs.items():
      numbers = [value for value in row.get(name, []) if value is not None]
      cells.append(cell(numbers, len(runs)))
    yield [" ".join(key), *cells]


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
  line = lambda cells: f"| {' | '.join(cells)} |"
  return [line(heads), f"|{'---|' * len(heads)}", *map(line, rows)]
