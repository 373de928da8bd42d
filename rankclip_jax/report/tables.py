"""The paper's tables: what it prints, what the runs reach, and the difference."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from rankclip_jax.report import markup, matching, measured, printed
from rankclip_jax.report.measured import Key, Result
from rankclip_jax.report.printed import Column, Row, Table
from rankclip_jax.report.run import Run

_ANCHOR, _TITLE = "paper", "The paper's tables"
_VERDICTS: Mapping[matching.Verdict, str] = {
  "differs": "Differs",
  "unknown": "Not known",
}

_Values = Mapping[Key, float | None]


def section(runs: Sequence[Run]) -> str:
  """Tables 1 to 4 with a row and a difference for every run.

  Without any such result it is one line, with the command that makes them.
  """
  values = [measured.by_key(run.results) for run in runs]
  keys = {key for table in printed.TABLES for c in table.columns for key in c.keys}
  if not any(keys & found.keys() for found in values):
    return markup.section(_ANCHOR, _TITLE, "", _how_to(runs[0], keys))
  body = "".join(_table(runs, values, table) for table in printed.TABLES) + _figure_4()
  lead = (
    "RankCLIP (ICCV 2025), in per cent. Below the printed rows are ours, and the"
    " difference, ours minus printed in percentage points, to the row of the same"
    " objective and architecture; where no config.json says the objective, to CLIP's and"
    f" RankCLIP's. “{markup.NOTHING}”: not measured, or no such row. A difference means"
    " something only where the set-up matches, which the line below each table judges by"
    " config.json and the results; the paper's baselines are weak next to others' of the"
    " same name, so only matched runs compare."
  )
  return markup.section(_ANCHOR, _TITLE, lead, body)


def _how_to(run: Run, keys: set[Key]) -> str:
  names = ",".join(sorted({dataset for dataset, _, _ in keys}))
  command = run.command(
    "eval", f"--config.eval.datasets={names}", "--config.eval.probe=released"
  )
  return (
    '<p class="note">No run here has a result on their data sets. To make them:'
    f" <code>{markup.escape(command)}</code></p>"
  )


def _table(runs: Sequence[Run], values: Sequence[_Values], table: Table) -> str:
  several = len({row.architecture for row in table.rows}) > 1
  rows = [
    _row(table, _name(row, several), row.values, css="printed") for row in table.rows
  ]
  notes = []
  for place, run in enumerate(runs):
    ours = [_ours(column, values[place]) for column in table.columns]
    rows.append(_row(table, markup.run_label(runs, place), ours, css="ours"))
    if all(value is None for value in ours):
      continue
    used = _used(run, table)
    for row in matching.printed_rows(run, table, used):
      difference = [
        None if value is None else value - theirs
        for value, theirs in zip(ours, row.values, strict=True)
      ]
      unknown = "" if run.config else ", objective not known"
      name = f"<small>minus {_name(row, several)}{unknown}</small>"
      rows.append(_row(table, name, difference, css="difference", sign="+"))
    notes.append(_judged(runs, place, table, used))
  data = table.data + (f" ({table.data_mark})" if table.data_mark else "")
  towers = " and ".join(dict.fromkeys(row.architecture for row in table.rows))
  title = f"{table.name}: {table.title}"
  notes += [f'<p class="note">{markup.escape(note)}</p>' for note in table.notes]
  return (
    f"<h3>{markup.escape(title)} <small>{markup.escape(f'{towers}, {data}')}</small></h3>"
    f'<div class="wide"><table class="paper">{_head(table.columns)}'
    f"<tbody>\n{''.join(rows)}</tbody></table></div>{''.join(notes)}\n"
  )


def _ours(column: Column, values: _Values) -> float | None:
  """Our number for a column in per cent; None unless every part is measured."""
  found = [values.get(key) for key in column.keys]
  known = [value for value in found if value is not None]
  return 100 * float(np.mean(known)) if len(known) == len(found) else None


def _name(row: Row, several: bool) -> str:
  return markup.escape(f"{row.method} {row.architecture}" if several else row.method)


def _head(columns: Sequence[Column]) -> str:
  groups: dict[str, int] = {}
  for column in columns:
    groups[column.group] = groups.get(column.group, 0) + 1
  over = "".join(
    f'<th colspan="{count}" scope="colgroup">{markup.escape(group)}</th>'
    for group, count in groups.items()
  )
  heads = "".join(
    f'<th scope="col"{css}>{markup.escape(column.head)}</th>'
    for column, css in zip(columns, _firsts(columns), strict=True)
  )
  return f"<thead><tr><td></td>{over}</tr><tr><td></td>{heads}</tr></thead>"


def _firsts(columns: Sequence[Column]) -> list[str]:
  """Marks the first column of each group, which stands a little apart."""
  groups = [None, *(column.group for column in columns)]
  return [
    ' class="first"' if before != group else "" for before, group in pairwise(groups)
  ]


def _row(
  table: Table,
  head: str,
  values: Sequence[float | None],
  *,
  css: str,
  sign: str = "",
) -> str:
  cells = "".join(
    f"<td{first}>{_number(value, table.decimals, sign)}</td>"
    for value, first in zip(values, _firsts(table.columns), strict=True)
  )
  return f'<tr class="{css}"><th scope="row">{head}</th>{cells}</tr>\n'


def _number(value: float | None, decimals: int, sign: str) -> str:
  return markup.NOTHING if value is None else markup.fixed(value, decimals, sign=sign)


def _used(run: Run, table: Table) -> list[Result]:
  """The results of a run that a table shows."""
  tested = {key[:2] for column in table.columns for key in column.keys}
  return [r for r in run.results if (r.dataset, r.task) in tested]


def _judged(runs: Sequence[Run], place: int, table: Table, used: Sequence[Result]) -> str:
  """A line that says whether a run's set-up is the printed one."""
  parts = matching.parts(runs[place], table, used)
  differs = any(part.verdict == "differs" for part in parts)
  if differs:
    mark = "does not match the printed set-up"
  elif not runs[place].config:
    mark = "may or may not match the printed set-up"
  else:
    mark = "matches in all that is known"
  said = [
    f"{title}: "
    + "; ".join(f"{part.name} ({part.text})" for part in parts if part.verdict == verdict)
    for verdict, title in _VERDICTS.items()
    if any(part.verdict == verdict for part in parts)
  ]
  return (
    f'<p class="note judged">{markup.run_label(runs, place)} <b>{mark}</b>.'
    f" {markup.escape('. '.join(said))}.</p>"
  )


def _figure_4() -> str:
  heads, *rows = printed.FIGURE_4.items()
  columns = "".join(f'<th scope="col">{pairs:,.0f}</th>' for pairs in heads[1])
  body = "".join(
    f'<tr class="printed"><th scope="row">{name}</th>'
    + "".join(f"<td>{_number(value, 1, '')}</td>" for value in values)
    + "</tr>\n"
    for name, values in rows
  )
  return (
    "<details><summary>Figure 4: top-1 on ImageNet-1K of RN50 by training pairs"
    f" ({printed.FIGURE_4_MARK}, ±{printed.FIGURE_4_ERROR})</summary>"
    '<div class="wide"><table class="paper"><thead><tr>'
    f'<th scope="row">{heads[0]}</th>{columns}</tr></thead>'
    f"<tbody>\n{body}</tbody></table></div></details>\n"
  )
