"""The benchmarks' pictures: PNGs that read at half their size on a README page."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from rankclip_jax.report.plots import run_colour

_INK, _SOFT, _GRID = "#3c434d", "#8a929e", "#e6e8ec"
_OVER_GRID = dict(boxstyle="square,pad=0.15", fc="white", ec="none")
_DPI = 200
_FONT = 8  # points
_LABEL_GAP = 11.0  # points between the middles of two labels, a line of text more if two


@dataclasses.dataclass(frozen=True)
class Line:
  """Points (x, y) of one contender; `place` chooses its colour."""

  label: str
  place: int
  points: Sequence[tuple[float, float]]


@dataclasses.dataclass(frozen=True)
class Panel:
  """Lines against one axis, whose ticks `form` writes."""

  title: str
  form: Callable[[float], str]
  lines: Sequence[Line]


@dataclasses.dataclass(frozen=True)
class Bars:
  """One group of bars: a value and its low and high, by name."""

  title: str
  values: dict[str, tuple[float, float, float]]


def count(n: float) -> str:
  """2048 as 2k, 512 as 512."""
  return f"{n / 1024:g}k" if n >= 1024 else f"{n:g}"


def seconds(x: float) -> str:
  """With the unit that suits the size."""
  return f"{x:g} s" if x >= 1 else f"{1e3 * x:g} ms"


def bytes_(x: float) -> str:
  """With the unit that suits the size."""
  return f"{x / 2**30:g} GiB" if x >= 2**30 else f"{x / 2**20:g} MiB"


def scaling(path: Path, panels: Sequence[Panel], *, x_label: str, guide: float) -> None:
  """Panels side by side, both axes logarithmic, every line named at its end.

  Args:
    guide: the exponent of a grey line beside the measured ones.
  """
  figure = Figure(figsize=(4.7 * len(panels), 3.5), dpi=_DPI)
  canvas = FigureCanvasAgg(figure)
  figure.subplots_adjust(left=0.065, right=0.845, bottom=0.13, top=0.9, wspace=0.65)
  for axes, panel in zip(np.ravel(figure.subplots(1, len(panels))), panels, strict=True):
    _quiet(axes)
    axes.set_title(panel.title, fontsize=_FONT + 1.5, color=_INK, loc="left")
    axes.set_xlabel(x_label, fontsize=_FONT, color=_INK)
    axes.set(xscale="log", yscale="log")
    for line in panel.lines:
      axes.plot(*zip(*line.points, strict=True), color=run_colour(line.place), lw=1.8,
                marker="o", ms=3.5)  # fmt: skip
    xs = sorted({x for line in panel.lines for x, _ in line.points})
    ys = [y for line in panel.lines for _, y in line.points]
    axes.set_xlim(xs[0] / 1.1, xs[-1] * 1.1)
    base = 4 if panel.form is bytes_ else 10
    _ticks(axes, xs, ys, base, panel.form)
    _guide(axes, xs, ys, guide)
    canvas.draw()  # fixes the scale that labels are placed by
    _name_ends(axes, panel.lines)
  figure.savefig(path)


def bars(path: Path, groups: Sequence[Bars], *, y_label: str) -> None:
  """Groups side by side, each with an axis of its own; whiskers are low and high."""
  widths = [max(3.0, 0.8 * len(group.values)) for group in groups]  # labels have room
  figure = Figure(figsize=(0.9 + sum(widths), 2.9), dpi=_DPI, layout="constrained")
  FigureCanvasAgg(figure)
  places = figure.subplots(1, len(groups), width_ratios=widths)
  for axes, group in zip(np.ravel(places), groups, strict=True):
    _quiet(axes)
    axes.grid(visible=False, axis="x")
    axes.set_title(group.title, fontsize=_FONT + 1, color=_INK, loc="left", pad=10)
    middle, low, high = np.array(list(group.values.values())).T
    places = np.arange(len(middle))
    axes.bar(
      places, middle, width=0.66, color=[run_colour(i) for i in range(len(middle))]
    )
    axes.errorbar(places, middle, yerr=(middle - low, high - middle), fmt="none",
                  ecolor=_INK, elinewidth=0.9, capsize=2.5)  # fmt: skip
    for x, y, top in zip(places, middle, high, strict=True):
      axes.annotate(f"{y:,.0f}", (x, top), (0, 3), textcoords="offset points",
                    ha="center", fontsize=_FONT, color=_INK, bbox=_OVER_GRID)  # fmt: skip
    axes.set_xticks(places, list(group.values))
    axes.set_ylim(0, 1.12 * high.max())
    axes.set_ylabel(y_label if axes.get_subplotspec().is_first_col() else "",
                    fontsize=_FONT, color=_INK)  # fmt: skip
  figure.savefig(path)


def _quiet(axes: Axes) -> None:
  """A pale grid, no box, no tick marks."""
  axes.spines[["top", "right"]].set_visible(False)
  axes.spines[["left", "bottom"]].set_color(_GRID)
  axes.tick_params(which="both", colors=_INK, labelsize=_FONT, length=0)
  axes.grid(color=_GRID, lw=0.6)
  axes.set_axisbelow(True)


def _ticks(axes: Axes, xs, ys, base: int, form: Callable[[float], str]) -> None:
  axes.xaxis.set_major_locator(FixedLocator(xs))
  axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: count(x)))
  low, high = (math.log(f(ys), base) for f in (min, max))
  powers = np.arange(math.floor(low), math.ceil(high) + 1)
  axes.set_ylim(base ** (low - 0.1), base ** (high + 0.1))
  axes.yaxis.set_major_locator(FixedLocator(np.power(float(base), powers).tolist()))
  axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: form(y)))
  for axis in (axes.xaxis, axes.yaxis):
    axis.set_minor_locator(NullLocator())


def _guide(axes: Axes, xs, ys, exponent: float) -> None:
  """A short piece of x^exponent in the upper left corner, where no line goes."""
  x = np.array([xs[0], xs[0] * (xs[-1] / xs[0]) ** 0.3])
  top = max(ys) / 1.6
  axes.plot(x, top * (x / x[-1]) ** exponent, color=_SOFT, lw=1, ls=(0, (4, 3)))
  axes.annotate(f"N$^{exponent:g}$", (x[-1], top), (3, 0), textcoords="offset points",
                fontsize=_FONT, color=_SOFT, va="center")  # fmt: skip


def _name_ends(axes: Axes, lines: Sequence[Line]) -> None:
  """Labels in a column right of the axes, as near to their lines' ends as they fit."""
  points = 72 / _DPI
  right = axes.get_xlim()[1]
  ordered = sorted(lines, key=lambda line: line.points[-1][1])
  ends = [axes.transData.transform(line.points[-1]) * points for line in ordered]
  column = axes.transData.transform((right, 1))[0] * points + 8
  gaps = [_LABEL_GAP * (1 + line.label.count("\n")) for line in ordered]
  for line, end, y in zip(ordered, ends, spread([e[1] for e in ends], gaps), strict=True):
    colour = run_colour(line.place)
    axes.annotate(
      line.label,
      line.points[-1],
      (column - end[0], y - end[1]),
      textcoords="offset points",
      fontsize=_FONT,
      color=colour,
      va="center",
      annotation_clip=False,
      arrowprops=dict(arrowstyle="-", color=colour, lw=0.6, alpha=0.5, shrinkA=1,
                      shrinkB=3),
    )  # fmt: skip


def spread(wanted: Sequence[float], gaps: Sequence[float]) -> list[float]:
  """Ascending places near the `wanted` ones, neighbours at least their mean gap apart.

  Neighbours that are too close become a block about the mean of what its members want.
  """
  blocks: list[tuple[float, list[float]]] = []  # the first place, offsets of all
  for place in wanted:
    block = (place, [0.0])
    while blocks:
      start, offsets = blocks[-1]
      index = sum(len(o) for _, o in blocks) - 1
      step = (gaps[index] + gaps[index + 1]) / 2
      if block[0] - (start + offsets[-1]) >= step:
        break
      blocks.pop()
      joined = [*offsets, *(offsets[-1] + step + o for o in block[1])]
      first = index - len(offsets) + 1
      mine = wanted[first : first + len(joined)]
      block = (float(np.mean(np.subtract(mine, joined))), joined)
    blocks.append(block)
  return [start + o for start, offsets in blocks for o in offsets]
