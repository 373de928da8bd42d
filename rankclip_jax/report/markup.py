"""The small pieces of HTML that every section is made of.

Everything that comes from a file goes through `escape`. The page is well-formed XML
too, so a test can parse it strictly.
"""

import base64
import html
import io
import math
import re
from collections.abc import Sequence

import numpy as np
from PIL import Image

from rankclip_jax.report import plots
from rankclip_jax.report.measured import is_fraction
from rankclip_jax.report.run import PARTS, Run

NOTHING = "\N{EN DASH}"
_MINUS = "\N{MINUS SIGN}"
# Thumbnails are shown at no more than this many CSS pixels; larger ones are reduced.
_THUMBNAIL_PIXELS = 72
_THUMBNAIL_QUALITY = 80

_RANK = re.compile(r"_rank$")


def escape(value: object) -> str:
  """Text that is safe in HTML, between tags and in attributes."""
  return html.escape(str(value), quote=True)


def run_label(runs: Sequence[Run], place: int) -> str:
  """The name of a run behind a spot of its colour, of another form in each round."""
  form = ("", " square", " diamond")[plots.colour_round(place)]
  spot = f'<i class="spot{form}" style="background:{plots.run_colour(place)}"></i>'
  return f'<span class="run">{spot}{escape(runs[place].name)}</span>'


def section(anchor: str, title: str, lead: str, body: str) -> str:
  """One section; `lead` and `body` are HTML, `title` is text."""
  lead = f'<p class="lead">{lead}</p>' if lead else ""
  return f'<section id="{anchor}"><h2>{escape(title)}</h2>\n{lead}\n{body}\n</section>\n'


def absent(run: Run, part: str) -> str:
  """Says that a part of a run is not there, and which command makes it; else "".

  Of a folder with results alone it only says that.
  """
  if part not in run.absent:
    return ""
  file, mode = PARTS[part]
  if not run.trained_here:
    # To train there would be to make another model.
    if part != "config":
      return ""
    return (
      f'<p class="absent"><b>{escape(run.name)}</b> was only evaluated here: without'
      " <code>config.json</code> it is not known how it was trained.</p>"
    )
  return (
    f'<p class="absent"><b>{escape(run.name)}</b>: <code>{escape(file)}</code>'
    f" {escape(run.absent[part])}. To make it:"
    f" <code>{escape(run.command(mode))}</code></p>"
  )


def png(data: bytes, alt: str) -> str:
  """A plot as an inlined picture."""
  encoded = base64.b64encode(data).decode()
  return f'<img src="data:image/png;base64,{encoded}" alt="{escape(alt)}" />'


class Thumbnails:
  """Turns pixels into inlined pictures, each only once."""

  def __init__(self) -> None:
    self._encoded: dict[bytes, str] = {}

  def __call__(self, pixels: np.ndarray, title: str) -> str:
    """A picture, uint8 [height, width, 3], with a title that also is its text."""
    found = pixels.tobytes()
    if found not in self._encoded:
      self._encoded[found] = _encode(pixels)
    text = escape(title)
    return (
      f'<img src="data:image/webp;base64,{self._encoded[found]}"'
      f' alt="{text}" title="{text}" />'
    )


def _encode(pixels: np.ndarray) -> str:
  picture = Image.fromarray(np.ascontiguousarray(pixels))
  picture.thumbnail((_THUMBNAIL_PIXELS, _THUMBNAIL_PIXELS), Image.Resampling.LANCZOS)
  buffer = io.BytesIO()
  picture.save(buffer, format="webp", quality=_THUMBNAIL_QUALITY, method=4)
  return base64.b64encode(buffer.getvalue()).decode()


def metric_value(metric: str, value: float | None, *, digits: int = 2) -> str:
  """A metric as text: a fraction in percent with `digits`, others with two more."""
  if value is None or math.isnan(value):
    return NOTHING
  if is_fraction(metric):
    return fixed(100 * value, digits) + " %"
  return fixed(value, _decimals(metric, digits))


def metric_difference(
  metric: str, first: float | None, second: float | None, *, digits: int = 2
) -> str:
  """`second - first` as text with its sign; of fractions in percentage points."""
  if first is None or second is None or math.isnan(second - first):
    return NOTHING
  if is_fraction(metric):
    return fixed(100 * (second - first), digits, sign="+") + " pp"
  return fixed(second - first, _decimals(metric, digits), sign="+")


def fixed(value: float, decimals: int, *, sign: str = "") -> str:
  """A number with so many decimals and a true minus; what rounds to 0 has no sign."""
  text = f"{value:{sign}.{decimals}f}"
  return text.lstrip("+-") if float(text) == 0 else text.replace("-", _MINUS)


def short_number(value: float) -> str:
  """A logged value with four figures."""
  return f"{value:.4g}".replace("-", _MINUS)


def _decimals(metric: str, digits: int) -> int:
  return 1 if _RANK.search(metric) else digits + 2
