"""How long captions are, as a picture."""

import io

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

# The two first colours of the project's curves, apart for the colour-blind.
_WHOLE, _CUT = "#0072b2", "#d55e00"
_INK, _SOFT, _GRID = "#3c434d", "#667080", "#e6e8ec"
_FONT = 9  # points
_LEFT = 0.09  # of the axes, as a share of the width
# The axis ends where hardly a caption is longer; those are counted in words.
_LAST = 99.5  # per cent
_MOST_BARS = 120


def draw(lengths: np.ndarray, context_length: int) -> bytes:
  """A bar for each length in tokens, those that are cut off in another colour, as PNG.

  Args:
    lengths: of captions [captions], at least one.
    context_length: tokens that a model reads.
  """
  last = max(float(np.percentile(lengths, _LAST)), 1.1 * context_length)
  step = max(1, round(last / _MOST_BARS))
  # A border lies just after the context length, so that each bar is whole or cut.
  edges = np.arange((context_length + 1) % step, last + 2 * step, step)
  counts, _ = np.histogram(lengths, edges)
  cut = edges[:-1] > context_length

  figure = Figure(figsize=(7.2, 3.6), dpi=200)
  FigureCanvasAgg(figure)
  figure.subplots_adjust(left=_LEFT, right=0.97, bottom=0.14, top=0.76)
  axes = figure.add_subplot()
  axes.spines[["top", "right"]].set_visible(False)
  axes.spines[["left", "bottom"]].set_color(_GRID)
  axes.tick_params(colors=_INK, labelsize=_FONT, length=0)
  axes.grid(color=_GRID, lw=0.6, axis="y")
  axes.set_axisbelow(True)
  for chosen, colour in ((~cut, _WHOLE), (cut, _CUT)):
    axes.bar(
      edges[:-1][chosen] - 0.5,
      counts[chosen],
      width=0.88 * step,
      align="edge",
      color=colour,
    )
  axes.set_xlim(0, edges[-1])
  axes.set_ylim(0, 1.05 * max(counts.max(), 1))
  axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
  axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
  axes.set_xlabel("tokens, start and end included", fontsize=_FONT, color=_INK)
  _say(figure, lengths, context_length, edges[-1])
  axes.axvline(context_length + 0.5, color=_INK, lw=1, ls=(0, (4, 3)))
  axes.annotate(
    f"context length {context_length}",
    (context_length + 0.5, 1),
    (0, 4),
    xycoords=("data", "axes fraction"),
    textcoords="offset points",
    ha="right" if context_length > 0.85 * edges[-1] else "center",
    fontsize=_FONT - 1,
    color=_INK,
  )
  out = io.BytesIO()
  figure.savefig(out)
  return out.getvalue()


def _say(figure: Figure, lengths: np.ndarray, context_length: int, end: float) -> None:
  """Above the axes, where no bar goes: how many, how long, how many cut."""
  title = f"{len(lengths):,} captions, of {np.median(lengths):.0f} tokens in the median"
  figure.text(_LEFT, 0.955, title, fontsize=_FONT + 2, color=_INK, va="top")
  share = float((lengths > context_length).mean())
  text = f"{share:.2%} are" if share else "None is"
  text += f" cut off at {context_length} tokens"
  if beyond := int((lengths >= end - 0.5).sum()):
    text += f"; {beyond:,} beyond this axis, the longest {lengths.max():,}"
  figure.text(_LEFT, 0.885, text, fontsize=_FONT, color=_SOFT, va="top")
