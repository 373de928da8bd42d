"""The top of the page: what ran, with which settings, on which machine."""

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rankclip_jax.report import markup
from rankclip_jax.report.run import Run

# A row of the header: its name, and the config paths to look under, in order.
_SETTINGS: Mapping[str, tuple[str, ...]] = {
  "Objective": ("objective.name", "objective"),
  "Model": ("model.name", "model"),
  "Data": ("data.source", "data.name", "data"),
  "Batch size": ("data.batch_size", "train.batch_size", "batch_size"),
  "Epochs": ("optim.epochs", "train.epochs", "epochs"),
  "Learning rate": ("optim.learning_rate", "learning_rate"),
  "Steps": ("optim.steps", "train.steps", "steps"),
  "Seed": ("seed", "train.seed"),
}
# How main.py was called, not what was trained.
_NOT_COMPARED = ("mode", "report.compare")
# Longer lists of the environment (devices) are shortened to their length.
_LONGEST_LIST = 4


def header(runs: Sequence[Run]) -> str:
  """The title, the runs side by side, and the settings they differ in."""
  names = " and ".join(
    filter(None, [", ".join(r.name for r in runs[:-1]), runs[-1].name])
  )
  missing = "".join(
    markup.absent(run, part) for run in runs for part in ("config", "environment")
  )
  return (
    f'<header><p class="kicker">RankCLIP report</p><h1>{markup.escape(names)}</h1>\n'
    f"{_facts(runs)}\n{missing}{_differences(runs)}{_all_settings(runs)}</header>\n"
  )


def _facts(runs: Sequence[Run]) -> str:
  rows = {
    title: [run.setting(*paths) or markup.NOTHING for run in runs]
    for title, paths in _SETTINGS.items()
  }
  rows["Last logged step"] = [_last_step(run) for run in runs]
  rows["Logged for"] = [_logged(run.logged) for run in runs]
  rows["Throughput"] = [_throughput(run) for run in runs]
  cells = {
    title: [markup.escape(text) for text in texts]
    for title, texts in rows.items()
    if any(text != markup.NOTHING for text in texts)
  }
  if any(run.environment for run in runs):
    cells["Environment"] = [
      f"<small>{markup.escape(_environment(run.environment))}</small>" for run in runs
    ]
  return _table(runs, cells, "facts")


def _last_step(run: Run) -> str:
  steps = [int(curve.steps[-1]) for curve in run.curves.values()]
  return f"{max(steps):,}" if steps else markup.NOTHING


def _logged(times: tuple[float, float] | None) -> str:
  """How long the log spans, and when it ends."""
  if times is None:
    return markup.NOTHING
  minutes, seconds = divmod(round(times[1] - times[0]), 60)
  hours, minutes = divmod(minutes, 60)
  span = f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"
  end = datetime.datetime.fromtimestamp(times[1], datetime.UTC)
  return f"{span}, until {end:%Y-%m-%d %H:%M} UTC"


def _throughput(run: Run) -> str:
  curve = run.curves.get("examples_per_second")
  if curve is None or np.isnan(curve.values).all():
    return markup.NOTHING
  return f"{np.nanmedian(curve.values):,.0f} examples/s (median)"


def _environment(environment: Mapping[str, Any]) -> str:
  """The flat entries of environment.json on one line."""
  entries = []
  for key, value in environment.items():
    if isinstance(value, Mapping):
      continue
    if isinstance(value, list):
      shown = ", ".join(map(str, value[:_LONGEST_LIST]))
      value = f"{shown}, … ({len(value)})" if len(value) > _LONGEST_LIST else shown
    entries.append(f"{key} {markup.NOTHING if value is None else value}")
  return " · ".join(entries) or markup.NOTHING


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
  """The leaves of a nested config by dotted path, as JSON text."""
  leaves: dict[str, str] = {}
  for key, value in config.items():
    if isinstance(value, Mapping):
      leaves |= flatten(value, f"{prefix}{key}.")
    else:
      leaves[f"{prefix}{key}"] = json.dumps(value, ensure_ascii=False)
  return leaves


def _differences(runs: Sequence[Run]) -> str:
  """The settings that are not the same in all runs."""
  if len(runs) < 2 or any("config" in run.absent for run in runs):
    return ""
  rows = {
    path: texts
    for path, texts in _settings(runs).items()
    if path not in _NOT_COMPARED and len(set(texts)) > 1
  }
  if not rows:
    return '<p class="note">The configurations of these runs are the same.</p>'
  return (
    '<p class="note">The configurations differ in these settings and in no others. Only'
    " runs that match in all else compare.</p>" + _table(runs, _codes(rows), "settings")
  )


def _all_settings(runs: Sequence[Run]) -> str:
  if all("config" in run.absent for run in runs):
    return ""
  table = _table(runs, _codes(_settings(runs)), "settings")
  return f"<details><summary>Full configuration</summary>{table}</details>"


def _settings(runs: Sequence[Run]) -> dict[str, list[str]]:
  """Every setting of any run, and its text in each run."""
  flat = [flatten(run.config) for run in runs]
  paths = dict.fromkeys(path for leaves in flat for path in leaves)
  return {path: [leaves.get(path, markup.NOTHING) for leaves in flat] for path in paths}


def _codes(rows: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
  return {
    path: [f"<code>{markup.escape(text)}</code>" for text in texts]
    for path, texts in rows.items()
  }


def _table(runs: Sequence[Run], rows: Mapping[str, Sequence[str]], css: str) -> str:
  """A row a title (text), a column a run; the cells are HTML."""
  columns = "".join(
    f'<th scope="col">{markup.run_label(runs, place)}</th>' for place in range(len(runs))
  )
  body = "".join(
    f'<tr><th scope="row">{markup.escape(title)}</th>'
    + "".join(f"<td>{cell}</td>" for cell in cells)
    + "</tr>\n"
    for title, cells in rows.items()
  )
  return (
    f'<div class="wide"><table class="{css}"><thead><tr><td></td>{columns}</tr></thead>'
    f"<tbody>\n{body}</tbody></table></div>"
  )
