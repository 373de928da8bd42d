"""The training curves: every logged quantity in a small panel, the runs overlaid."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from rankclip_jax.report import markup, measured, numbers, plots
from rankclip_jax.report.logged import Curve
from rankclip_jax.report.run import Run

# Of checkpoints that the suite measured.
_OF_CHECKPOINTS = {**numbers.HEADLINES, "lp_acc1": "Linear probe top-1"}
_MOST_OF_CHECKPOINTS = 12
# What is logged once, when a run starts or goes on, and is no curve.
_ONCE = ("compile_",)


@dataclasses.dataclass(frozen=True)
class Panel:
  """One panel: the key in metrics.jsonl and how to draw it."""

  key: str
  title: str
  log: bool = False
  cut: bool = False
  smooth: bool = True


# In the order of the page; what is logged beyond these comes after them.
PANELS = (
  Panel("train/loss", "Loss"),
  Panel("train/contrastive_loss", "Contrastive term"),
  Panel("train/rank_loss", "Ranking terms, summed"),
  Panel("train/cross_modal_loss", "Cross-modal ranking term"),
  Panel("train/in_modal_loss", "In-modal ranking term"),
  Panel("train/rank_weight", "Rank weight (ramp)", smooth=False),
  Panel("logit_scale", "Logit scale", smooth=False),
  Panel("grad_norm", "Gradient norm", log=True),
  Panel("lr", "Learning rate", smooth=False),
  Panel("examples_per_second", "Examples per second", cut=True),
  Panel("mfu", "Model FLOP/s of the peak (MFU)", cut=True),
  Panel("model_flops_per_second_per_device", "Model FLOP/s of a device", cut=True),
  Panel("data_wait_seconds", "Data wait (s)", cut=True),
  Panel("step_seconds", "Step time (s)", cut=True),
  Panel("device_memory_gib", "Device memory (GiB)", smooth=False),
  Panel("device_memory_peak_gib", "Device memory, most so far (GiB)", smooth=False),
  Panel("host_memory_gib", "Host memory (GiB)", smooth=False),
)


def section(runs: Sequence[Run]) -> str:
  """The section of training curves, and of held-out metrics logged on the way."""
  figures = "".join(_figure(runs, panel) for panel in (*PANELS, *_further(runs)))
  evaluations = "".join(_figure(runs, panel) for panel in _evaluations(runs))
  if evaluations:
    evaluations = (
      f'<h3>Held-out metrics while training</h3><div class="panels">{evaluations}</div>'
    )
  evaluations += _checkpoints(runs)
  notes = "".join(
    markup.absent(run, "metrics") + _not_finite(runs, place)
    for place, run in enumerate(runs)
  )
  legend = " ".join(markup.run_label(runs, place) for place in range(len(runs)))
  lead = (
    f'<span class="legend">{legend}</span> Against the step; the number is the last'
    " value. Of long, noisy curves the pale line is every logged point and the heavy line"
    f" their mean over {plots.SMOOTH_SPAN:.0%} of the run. The axes of times and of"
    f" throughput end near their {plots.CUT_QUANTILE:.0%} quantile."
  )
  if not figures + evaluations:
    lead = ""
  body = f'{notes}<div class="panels">{figures}</div>{evaluations}'
  return markup.section("curves", "Training, term by term", lead, body)


def _checkpoints(runs: Sequence[Run]) -> str:
  """Panels of the headline metrics that were measured of several checkpoints."""
  keys = sorted({key for run in runs for key in run.by_step})
  chosen = numbers.foremost(keys, _OF_CHECKPOINTS, _MOST_OF_CHECKPOINTS)
  of_runs = [{"/".join(key): c for key, c in run.by_step.items()} for run in runs]
  figures = "".join(
    _figure(runs, Panel("/".join(key), f"{_OF_CHECKPOINTS[key[2]]}: {key[0]}"), of_runs)
    for key in chosen
  )
  if not figures:
    return ""
  left_out = len(chosen) - _MOST_OF_CHECKPOINTS
  more = (
    f'<p class="note">{left_out} more are in <code>results/step_*</code>.</p>'
    if left_out > 0
    else ""
  )
  return f'<h3>Evaluations of checkpoints</h3><div class="panels">{figures}</div>\n{more}'


def _figure(
  runs: Sequence[Run],
  panel: Panel,
  of_runs: Sequence[Mapping[str, Curve]] | None = None,
) -> str:
  """A panel of the curves that were logged, or of others, for each run."""
  found = [run.curves for run in runs] if of_runs is None else of_runs
  by_run = {
    place: each[panel.key]
    for place, each in enumerate(found)
    if panel.key in each and np.isfinite(each[panel.key].values).any()
  }
  if not by_run:
    return ""
  last = {place: _last(curve, panel.key) for place, curve in by_run.items()}
  numbers = " ".join(
    f'<b><i class="spot" style="background:{plots.run_colour(place)}"></i>{value}</b>'
    for place, value in last.items()
  )
  alt = f"{panel.title} by step; last value: " + ", ".join(
    f"{runs[place].name} {value}" for place, value in last.items()
  )
  if measured.is_fraction(panel.key):
    by_run = {
      place: Curve(curve.steps, 100 * curve.values) for place, curve in by_run.items()
    }
  picture = plots.curves(by_run, log=panel.log, cut=panel.cut, smooth=panel.smooth)
  return (
    f'<figure data-key="{markup.escape(panel.key)}"><figcaption>'
    f"<span>{markup.escape(panel.title)}</span> {numbers}</figcaption>"
    f"{markup.png(picture, alt)}</figure>\n"
  )


def _last(curve: Curve, key: str) -> str:
  """The last value that was logged as a number."""
  value = float(curve.values[np.isfinite(curve.values)][-1])
  if measured.is_fraction(key):
    return markup.metric_value(key, value, digits=1)
  return markup.short_number(value)


def _further(runs: Sequence[Run]) -> list[Panel]:
  """Panels for what was logged and is neither in `PANELS` nor an evaluation."""
  known = {panel.key for panel in PANELS}
  keys = {key for run in runs for key in run.curves if not key.startswith("eval/")}
  known |= {key for key in keys if key.startswith(_ONCE)}
  return [
    Panel(key, key.removeprefix("train/").replace("_", " ").capitalize())
    for key in sorted(keys - known)
  ]


def _evaluations(runs: Sequence[Run]) -> list[Panel]:
  """Panels for the headline metrics that were logged as eval/TASK/METRIC."""
  keys = sorted({key for run in runs for key in run.curves if key.startswith("eval/")})
  panels = []
  for metric, title in numbers.HEADLINES.items():
    found = [key for key in keys if key.rpartition("/")[2] == metric]
    for key in found:
      task = key.removeprefix("eval/").rpartition("/")[0]
      panels.append(Panel(key, f"{title} ({task})" if len(found) > 1 else title))
  return panels


def _not_finite(runs: Sequence[Run], place: int) -> str:
  """Names the training curves that hold infinities or NaN: the run diverged."""
  notes = []
  for key, curve in runs[place].curves.items():
    broken = curve.steps[~np.isfinite(curve.values)]
    if len(broken) and not key.startswith("eval/"):
      notes.append(
        f"{markup.escape(key)} at {len(broken)} logged steps, first at {broken[0]:,}"
      )
  if not notes:
    return ""
  return (
    f'<p class="absent">{markup.run_label(runs, place)} logged values that are not'
    f" finite: {'; '.join(notes)}.</p>"
  )
