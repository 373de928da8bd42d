"""The figure of a study: a panel a metric, means with error bars, and every seed."""

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation

from rankclip_jax.report import plots
from rankclip_jax.studies import table
from rankclip_jax.studies.study import Metric
from rankclip_jax.studies.table import Results

_COLUMNS = 2
_PANEL = (3.6, 2.3)  # inches
_DPI = 160
_BESIDE = 3.5  # points between series that stand at one place


def draw(found: Results) -> bytes:
  """A PNG with one panel for each metric of the study."""
  study = found.study
  rows = math.ceil(len(study.metrics) / _COLUMNS)
  width, height = _PANEL[0] * _COLUMNS, _PANEL[1] * rows + 0.7
  figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
  panels = figure.subplots(rows, _COLUMNS, squeeze=False).flat
  for axes, metric in zip(panels, study.metrics, strict=False):
    _panel(figure, axes, found, metric)
  for axes in list(panels)[len(study.metrics) :]:
    axes.set_visible(False)
  handles, labels = figure.axes[0].get_legend_handles_labels()
  figure.legend(
    handles, labels, loc="outside upper center", ncols=6, fontsize=9, frameon=False
  )
  colour = "#b00020" if found.missing else plots.INK
  small = f"{table.sentence(found)}. Small dots: single seeds."
  figure.supxlabel(small, fontsize=7.5, color=colour)
  return plots.png(figure)


def _panel(figure: Figure, axes: Axes, found: Results, metric: Metric) -> None:
  study = found.study
  plots.style(axes)
  axes.set_title(metric.label, fontsize=8.5, loc="left", color=plots.INK)
  places = list(dict.fromkeys(variant.x for variant in study.variants))
  series = list(dict.fromkeys(variant.series for variant in study.variants))
  if study.log_x:
    axes.set_xscale("log")
  scale = 100 if metric.percent else 1
  for number, name in enumerate(series):
    right = (number - (len(series) - 1) / 2) * _BESIDE / 72
    beside = axes.transData + ScaledTranslation(right, 0, figure.dpi_scale_trans)
    xs, means, spreads, single = [], [], [], []
    for variant in study.variants:
      values = [scale * value for value in found.values(variant, metric)]
      if variant.series != name or not values:
        continue
      x = places.index(variant.x) if study.in_words else float(variant.x)
      xs.append(x)
      means.append(sum(values) / len(values))
      spreads.append(table.spread(values) if len(values) > 1 else 0.0)
      single += [(x, value) for value in values]
    if not xs:  # nothing of it is done
      continue
    colour = plots.run_colour(number)
    axes.errorbar(
      xs,
      means,
      spreads,
      fmt="o" if study.in_words else "o-",
      color=colour,
      ms=4.5,
      lw=1.3,
      capsize=3,
      label=name,
      transform=beside,
    )
    axes.scatter(
      *zip(*single, strict=True), s=7, color=colour, alpha=0.4, lw=0, transform=beside
    )
  _ticks(axes, study.in_words, places)
  axes.set_xlabel(study.x_label, fontsize=8, color=plots.INK)


def _ticks(axes: Axes, in_words: bool, places: list) -> None:
  axes.set_xticks(range(len(places)) if in_words else places)
  axes.set_xticklabels([x if in_words else f"{x:,g}" for x in places])
  axes.minorticks_off()
  axes.margins(x=0.12, y=0.12)
