"""The figure of a study: a panel a metric, means with error bars, and every seed."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rankclip_jax.report import plots
from rankclip_jax.studies import table
from rankclip_jax.studies.study import Metric, Study
from rankclip_jax.studies.table import Results

_COLUMNS = 2
_PANEL = (3.6, 2.3)  # inches
_DPI = 160
_BESIDE = 0.015  # of the axis: how far apart series are that stand at one place


def draw(found: Results) -> bytes:
  """A PNG with one panel for each metric of the study."""
  study = found.study
  rows = math.ceil(len(study.metrics) / _COLUMNS)
  width, height = _PANEL[0] * _COLUMNS, _PANEL[1] * rows + 0.7
  figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
  panels = list(figure.subplots(rows, _COLUMNS, squeeze=False).flat)
  for axes, metric in zip(panels, study.metrics, strict=False):
    _panel(axes, found, metric)
  for axes in panels[len(study.metrics) :]:
    axes.set_visible(False)
  # Where every place has a series of its own, the axis names them.
  if {v.series for v in study.variants} != {v.x for v in study.variants}:
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(
      handles, labels, loc="outside upper center", ncols=6, fontsize=9, frameon=False
    )
  note = f"{table.sentence(found)}. Small dots: single seeds."
  colour = "#b00020" if found.missing else plots.INK
  figure.supxlabel(note, fontsize=7.5, color=colour)
  return plots.png(figure)


def _panel(axes: Axes, found: Results, metric: Metric) -> None:
  study = found.study
  plots.style(axes)
  axes.set_title(metric.label, fontsize=8.5, loc="left", color=plots.INK)
  if study.log_x:
    axes.set_xscale("log")
  scale = 100 if metric.percent else 1
  places = _places(study)
  for number, series in enumerate(dict.fromkeys(v.series for v in study.variants)):
    values = {
      places[variant.name]: scale * np.array(found.values(variant, metric))
      for variant in study.variants
      if variant.series == series
    }
    values = {x: numbers for x, numbers in values.items() if len(numbers)}
    if not values:  # nothing of it is done
      continue
    colour = plots.run_colour(number)
    spreads = [table.spread(x.tolist()) for x in values.values()]
    axes.errorbar(
      list(values),
      [x.mean() for x in values.values()],
      spreads,
      fmt="o" if study.in_words else "o-",
      color=colour,
      ms=4.5,
      lw=1.3,
      capsize=3,
      label=series,
    )
    single = [(x, number) for x, numbers in values.items() for number in numbers]
    axes.scatter(*zip(*single, strict=True), s=7, color=colour, alpha=0.4, lw=0)
  _ticks(axes, study)


def _places(study: Study) -> Mapping[str, float]:
  """Where each variant stands: those of one x side by side."""
  xs = _axis(study)
  series = list(dict.fromkeys(variant.series for variant in study.variants))
  forth, back = (np.log, np.exp) if study.log_x else (lambda x: x, lambda x: x)
  crowded = len({v.x for v in study.variants}) < len(study.variants)
  step = _BESIDE * float(forth(max(xs.values())) - forth(min(xs.values()))) * crowded
  return {
    v.name: float(
      back(forth(xs[v.x]) + step * (series.index(v.series) - (len(series) - 1) / 2))
    )
    for v in study.variants
  }


def _axis(study: Study) -> Mapping[float | str, float]:
  """Every x and where its tick is: words stand one beside the other."""
  xs: Sequence[float | str] = list(dict.fromkeys(v.x for v in study.variants))
  return {x: i if isinstance(x, str) else float(x) for i, x in enumerate(xs)}


def _ticks(axes: Axes, study: Study) -> None:
  xs = _axis(study)
  shown = [x if isinstance(x, str) else f"{x:,g}" for x in xs]
  axes.set_xticks(list(xs.values()), shown)
  axes.minorticks_off()
  axes.margins(x=0.12, y=0.12)
  axes.set_xlabel(study.x_label, fontsize=8, color=plots.INK)
