"""Puts the sections together and writes the page."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from rankclip_jax.evals import results
from rankclip_jax.report import (
  curves,
  made,
  markup,
  numbers,
  panels,
  robustness,
  summary,
  tables,
)
from rankclip_jax.report.run import Run, read_runs
from rankclip_jax.report.style import CSS

_CONTENTS = (
  ("headline", "Numbers"),
  ("curves", "Training"),
  ("results", "Results"),
  ("paper", "Paper"),
  ("robustness", "Robustness"),
  ("text-to-image", "Text → image"),
  ("image-to-text", "Image → text"),
  ("map", "Map"),
  ("neighbours", "Neighbours"),
  ("made", "Made with it"),
)
_OPENMOJI_LICENCE = (
  "All emojis designed by OpenMoji \N{EN DASH} the open-source emoji and icon project."
  " License: CC BY-SA 4.0"
)


def build(workdirs: Sequence[Path], out_dir: Path) -> Path:
  """Writes `out_dir/index.html`, a page about one run or several side by side.

  Reads only files of the workdirs; the page needs no network and no other file. What
  a run lacks is said on the page, with the command that makes it.

  Raises:
    ValueError: no workdir, one that does not exist or holds no file of a run, or a
      file that breaks its format.
  """
  runs = read_runs(workdirs)
  out_dir = Path(out_dir)
  out_dir.mkdir(parents=True, exist_ok=True)
  path = out_dir / "index.html"
  with results.replacing(path) as unfinished:
    # A caption may hold half a surrogate pair, which UTF-8 cannot write.
    unfinished.write_text(_page(runs), encoding="utf-8", errors="xmlcharrefreplace")
  return path


def _page(runs: Sequence[Run]) -> str:
  body = (
    numbers.headline(runs)
    + curves.section(runs)
    + numbers.results_section(runs)
    + tables.section(runs)
    + robustness.section(runs)
    + panels.sections(runs)
    + made.section(runs)
  )
  contents = " ".join(
    f'<a href="#{anchor}">{markup.escape(title)}</a>'
    for anchor, title in _CONTENTS
    if f'<section id="{anchor}">' in body
  )
  title = markup.escape("RankCLIP: " + ", ".join(run.name for run in runs))
  return (
    '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8" />'
    '<meta name="viewport" content="width=device-width, initial-scale=1" />'
    f"<title>{title}</title><style>{CSS}</style></head><body>\n"
    f"{summary.header(runs)}<nav>{contents}</nav>\n{body}{_footer(runs)}"
    "</body></html>\n"
  )


def _footer(runs: Sequence[Run]) -> str:
  licence = ""
  shown = {run.embeddings.dataset for run in runs if run.embeddings}
  if "openmoji" in shown or any(r.setting("data.source") == "openmoji" for r in runs):
    licence = f"<p>{_OPENMOJI_LICENCE}</p>"
  command = runs[0].command("report")
  if len(runs) > 1:
    others = ",".join(str(run.workdir) for run in runs[1:])
    command += f" --config.report.compare={shlex.quote(others)}"
  return (
    f"<footer>{licence}<p>To make this page again:"
    f" <code>{markup.escape(command)}</code></p></footer>\n"
  )
