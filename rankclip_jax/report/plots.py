"""Pictures of curves and embeddings as PNG, by matplotlib's object interface.

`Figure` is used without pyplot: no global state, no window system, no leak.
"""

import functools
import io
from collections.abc import Mapping

import numpy as np
import scipy.special
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import (
  EngFormatter,
  FixedLocator,
  FuncFormatter,
  LogLocator,
  MaxNLocator,
  NullLocator,
  StrMethodFormatter,
)
from PIL import Image

from rankclip_jax.report.logged import Curve

# Okabe and Ito's colours that stay apart in the common forms of colour blindness.
RUN_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
# More runs than colours: the colours start again with the next pattern.
_DASHES = ("solid", "dashed", "dotted")
# Two colours of Paul Tol's "muted" set, apart from those of the first runs; the
# markers differ as well.
_IMAGE_COLOUR, _IMAGE_MARKER = "#332288", "o"
_TEXT_COLOUR, _TEXT_MARKER = "#ddaa33", "^"

INK = "#3c434d"
_GRID = "#e6e8ec"
_DPI = 200
_COLOURS = 128
# Fixed margins (with room for tick labels of six figures) line the panels up, and cost
# half the time of a layout that measures every label.
_CURVE_MARGINS = {"left": 0.12, "right": 0.975, "bottom": 0.12, "top": 0.92}
_MAP_MARGINS = {"left": 0.13, "right": 0.985, "bottom": 0.11, "top": 0.94}
# Curves with more points than this are drawn pale, with a running mean on top.
_SMOOTH_FROM = 150
# Curves with fewer points than this show each of them.
_MARKED_BELOW = 40
# The running mean spans this fraction of a curve.
SMOOTH_SPAN = 0.03
# Where one slow first step (compilation) would flatten the rest of a curve.
CUT_QUANTILE = 0.99
# The odds of 0 and of 1 lie at infinity: accuracies are drawn no further out than this.
_LEAST_ACCURACY = 5e-4
# Where a logit-scaled axis may have a tick, in per cent.
_PERCENTS = (0.1, 0.2, 0.5, 1, 2, 3, 5, 7, 10, 15, 20, 30, 40, 50, 60, 70, 80, 90, 95, 98)
_PRINTED_MARKERS = ("s", "^", "D", "v")


def run_colour(place: int) -> str:
  """The colour of the run at this place of the list."""
  return RUN_COLOURS[place % len(RUN_COLOURS)]


def curves(
  by_run: Mapping[int, Curve],
  *,
  log: bool = False,
  cut: bool = False,
  smooth: bool = True,
) -> bytes:
  """One panel: a quantity against the step, a line a run, as PNG.

  Args:
    by_run: the curve of each run that has one, by the run's place.
    log: a logarithmic axis, where every value is positive.
    cut: the axis ends a little above `CUT_QUANTILE`.
    smooth: long curves get a running mean.
  """
  figure = Figure(figsize=(3.6, 2.0), dpi=_DPI)
  figure.subplots_adjust(**_CURVE_MARGINS)
  axes = figure.add_subplot()
  style(axes)
  axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
  axes.xaxis.set_major_formatter(EngFormatter(sep=""))
  for order, (place, curve) in enumerate(by_run.items()):
    # Wider below, narrower above: equal curves do not hide each other.
    width = min(3.0, 1.4 + 0.8 * (len(by_run) - 1 - order))
    dash = _DASHES[place // len(RUN_COLOURS) % len(_DASHES)]
    line = functools.partial(axes.plot, color=run_colour(place), linestyle=dash)
    values = curve.values
    if smooth and len(values) > _SMOOTH_FROM:
      line(curve.steps, values, lw=0.7, alpha=0.3)
      values = running_mean(values)
    marker = "." if len(values) < _MARKED_BELOW else None
    line(curve.steps, values, lw=width, marker=marker)
  _scale(axes, np.concatenate([c.values for c in by_run.values()]), log=log, cut=cut)
  return png(figure)


def _scale(axes: Axes, values: np.ndarray, *, log: bool, cut: bool) -> None:
  """The vertical axis, for all the values of a panel."""
  values = values[np.isfinite(values)]
  if log and values.min(initial=np.inf) > 0:
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=8))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    return
  axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 5))
  axes.yaxis.get_offset_text().set(fontsize=7, color=INK)
  if cut:
    top = float(np.quantile(values, CUT_QUANTILE)) if values.size else 0.0
    axes.set_ylim(0, 1.15 * top if top > 0 else 1)


def running_mean(values: np.ndarray) -> np.ndarray:
  """Centred mean over `SMOOTH_SPAN` of the points [points], shorter at the ends.

  Values that are not finite take no part, and stay gaps.
  """
  half = max(1, round(SMOOTH_SPAN * len(values) / 2))
  finite = np.isfinite(values)
  sums = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])
  counts = np.concatenate([[0], np.cumsum(finite)])
  places = np.arange(len(values))
  low, high = np.maximum(places - half, 0), np.minimum(places + half + 1, len(values))
  means = (sums[high] - sums[low]) / np.maximum(counts[high] - counts[low], 1)
  return np.where(finite, means, np.nan)


def embedding_map(
  images: np.ndarray,
  texts: np.ndarray,
  pairs: np.ndarray,
  *,
  labels: tuple[str, str] = ("", ""),
  gap: str,
  centres: np.ndarray | None = None,
) -> bytes:
  """Both modalities on a plane, some pairs joined, as PNG.

  Args:
    images: [images, 2].
    texts: [texts, 2].
    pairs: [pairs, 2] rows of images and of texts that belong together, to be joined.
    labels: of the axes; "" is an axis whose scale means nothing.
    gap: between the modalities, in words.
    centres: of images and of texts [2, 2], to be joined where their distance is the gap.
  """
  figure = Figure(figsize=(5.2, 4.4), dpi=_DPI * 0.8)
  figure.subplots_adjust(**_MAP_MARGINS)
  axes = figure.add_subplot()
  style(axes)
  joined = np.stack([images[pairs[:, 0]], texts[pairs[:, 1]]], axis=1)
  axes.plot(joined[..., 0].T, joined[..., 1].T, color="#9aa1ab", lw=0.5, alpha=0.6)
  for places, colour, marker, label in (
    (images, _IMAGE_COLOUR, _IMAGE_MARKER, "images"),
    (texts, _TEXT_COLOUR, _TEXT_MARKER, "captions"),
  ):
    axes.scatter(
      *places.T, s=10, c=colour, marker=marker, label=label, linewidths=0, alpha=0.75
    )
  if centres is not None:
    _join_centres(axes, *centres)
  axes.set_aspect("equal", adjustable="datalim")
  axes.set_xlabel(labels[0], fontsize=8)
  axes.set_ylabel(labels[1], fontsize=8)
  if not any(labels):
    axes.tick_params(labelbottom=False, labelleft=False)
  # Above the axes: inside, they would hide points.
  axes.set_title(gap, loc="right", fontsize=8, color=INK, pad=5)
  axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, fontsize=8, frameon=False)
  return png(figure)


def _join_centres(axes: Axes, first: np.ndarray, second: np.ndarray) -> None:
  """Rings and a line between them, which hide no points within, on a pale edge."""
  for colour, width in (("white", 3.2), (INK, 1.4)):
    shape = {"arrowstyle": "-", "shrinkA": 4.5, "shrinkB": 4.5, "lw": width}
    ends = tuple(first), tuple(second)
    axes.annotate("", *ends, arrowprops=shape | {"color": colour})
    axes.plot(*np.stack([first, second]).T, "o", ms=9, mfc="none", mec=colour, mew=width)


def robustness(
  points: Mapping[int, tuple[float, float]], printed: Mapping[str, tuple[float, float]]
) -> bytes:
  """Accuracy under shift against that without, on logit-scaled axes, as PNG.

  Args:
    points: fractions (without, under shift) of each run, by the run's place.
    printed: likewise of each printed method; drawn hollow.
  """
  figure = Figure(figsize=(3.6, 3.1), dpi=_DPI)
  figure.subplots_adjust(left=0.15, right=0.975, bottom=0.15, top=0.9)
  axes = figure.add_subplot()
  style(axes)
  inside = {
    name: np.clip(point, _LEAST_ACCURACY, 1 - _LEAST_ACCURACY)
    for name, point in (*printed.items(), *points.items())
  }
  low, high = _scale_by_odds(axes, np.concatenate(list(inside.values())))
  axes.plot([low, high], [low, high], color="#9aa1ab", lw=0.9, dashes=(4, 3))
  for name, marker in zip(printed, _PRINTED_MARKERS, strict=False):
    axes.plot(
      *inside[name], marker, ms=5.5, mfc="none", mec=INK, mew=0.9, ls="", label=name
    )
  for place in points:
    axes.plot(*inside[place], "o", ms=7, color=run_colour(place), mec="white", mew=0.8)
  axes.set_xlabel("ImageNet-1K, top-1 (%)", fontsize=7.5, labelpad=2)
  axes.set_ylabel("under shift, top-1 (%)", fontsize=7.5, labelpad=2)
  if printed:
    axes.legend(
      loc="lower left",
      bbox_to_anchor=(-0.02, 0.99),
      ncols=len(printed),
      fontsize=7,
      frameon=False,
      handletextpad=0.1,
      columnspacing=0.9,
    )
  return png(figure)


def _scale_by_odds(axes: Axes, fractions: np.ndarray) -> tuple[float, float]:
  """Gives both axes one logit scale, with room around `fractions`; returns its ends."""
  low, high = (scipy.special.logit(x) for x in (fractions.min(), fractions.max()))
  low, high = (scipy.special.expit(x) for x in (low - 0.5, high + 0.5))
  for scale, limits, axis in (
    (axes.set_xscale, axes.set_xlim, axes.xaxis),
    (axes.set_yscale, axes.set_ylim, axes.yaxis),
  ):
    scale("logit")
    limits(low, high)
    ticks = [p / 100 for p in _PERCENTS if low <= p / 100 <= high]
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda x, _: f"{100 * x:g}"))
  return low, high


def style(axes: Axes) -> None:
  """Quiet axes: a pale grid, no box, few ticks, steps as 5k."""
  axes.spines[["top", "right"]].set_visible(False)
  axes.spines[["left", "bottom"]].set_color(_GRID)
  axes.tick_params(colors=INK, labelsize=7.5, length=0)
  axes.grid(color=_GRID, lw=0.6)
  axes.set_axisbelow(True)
  for label in (axes.xaxis.label, axes.yaxis.label):
    label.set_color(INK)


def png(figure: Figure) -> bytes:
  canvas = FigureCanvasAgg(figure)
  canvas.draw()
  picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
  # A palette makes a third of the bytes; lines on white need no more colours.
  palette = picture.quantize(_COLOURS, dither=Image.Dither.NONE)
  buffer = io.BytesIO()
  palette.save(buffer, format="png")
  return buffer.getvalue()
