"""The results: headline numbers as cards, data sets as tables, and every metric."""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

from rankclip_jax.report import datasets, markup, matrix, measured
from rankclip_jax.report.measured import Key
from rankclip_jax.report.run import Run

# The metrics one asks for first, in the words of a reader.
HEADLINES: Mapping[str, str] = {
  "image_retrieval_recall@1": "Text → image recall@1",
  "text_retrieval_recall@1": "Image → text recall@1",
  "image_retrieval_recall@10": "Text → image recall@10",
  "text_retrieval_recall@10": "Image → text recall@10",
  "acc1": "Zero-shot top-1",
  "rank_consistency_cross_modal_kendall_tau": "Cross-modal rank agreement τ",
  "rank_consistency_in_modal_kendall_tau": "In-modal rank agreement τ",
  "modality_gap": "Modality gap",
}
_MOST_CARDS = 12
_MOST_OF_METRIC = 3
# The same metrics of fewer captions.
_NOT_HEADLINES = ("zeroshot_retrieval_main_caption",)
# Of many data sets the one that is asked for first.
_FIRST_DATASET = "imagenet1k"


def headline(runs: Sequence[Run]) -> str:
  """The section of headline numbers: a card a metric, a line a run."""
  by_run = [measured.by_key(run.results) for run in runs]
  chosen = foremost(_keys(by_run), HEADLINES, _MOST_CARDS)
  cards = "".join(_card(runs, by_run, key) for key in chosen)
  missing = "".join(markup.absent(run, "results") for run in runs)
  css = "cards single" if len(runs) == 1 else "cards"
  body = f'{missing}<div class="{css}">{cards}</div>'
  return markup.section("headline", "Headline numbers", "", body)


def foremost(keys: Iterable[Key], metrics: Iterable[str], most: int) -> list[Key]:
  """At most so many of `keys`, by the order of `metrics`, in which they share the room.

  Every metric has one before any has two, and none has more than three.
  """
  order = list(metrics)
  keys = [k for k in keys if k[2] in order and k[1] not in _NOT_HEADLINES]
  keys.sort(key=lambda key: key[0] != _FIRST_DATASET)
  by_metric = [[k for k in keys if k[2] == metric][:_MOST_OF_METRIC] for metric in order]
  in_turns = itertools.chain(*itertools.zip_longest(*by_metric))
  chosen = [key for key in in_turns if key is not None][:most]
  return sorted(chosen, key=lambda key: order.index(key[2]))


def _card(
  runs: Sequence[Run], by_run: Sequence[Mapping[Key, float | None]], key: Key
) -> str:
  dataset, _, metric = key
  values = [results.get(key) for results in by_run]
  lines = "".join(
    f'<p class="value">{markup.run_label(runs, place) if len(runs) > 1 else ""}'
    f"<b>{markup.metric_value(metric, value, digits=1)}</b></p>"
    for place, value in enumerate(values)
  )
  if len(runs) == 2:
    difference = markup.metric_difference(metric, *values, digits=1)
    lines += f'<p class="value change"><span>difference</span><b>{difference}</b></p>'
  below = " · ".join(filter(None, [markup.escape(dataset), _chance(runs, key)]))
  return (
    f'<div class="card"><h3>{markup.escape(HEADLINES[metric])}</h3>{lines}'
    f"<small>{below}</small></div>\n"
  )


def _chance(runs: Sequence[Run], key: Key) -> str:
  """What random embeddings would score, where the number of items is known."""
  dataset, _, metric = key
  held_out = _held_out(runs)
  if held_out is None or datasets.canonical(held_out[0]) != dataset:
    return ""
  if not metric.endswith("_retrieval_recall@1"):
    return ""
  return f"chance {100 / held_out[1]:.2g} %"


def _held_out(runs: Sequence[Run]) -> tuple[str, int] | None:
  """The name and number of the held-out pictures, where all runs agree."""
  found = {(e.dataset, len(e.keys)) for e in (run.embeddings for run in runs) if e}
  return found.pop() if len(found) == 1 else None


def results_section(runs: Sequence[Run]) -> str:
  """The section of all results; "" without any."""
  by_run = [measured.by_key(run.results) for run in runs]
  left_out = matrix.skipped(runs)
  if not any(by_run) and not left_out:
    return ""
  body = left_out + matrix.matrices(runs) + matrix.behind(runs) + _every(runs, by_run)
  return markup.section("results", "All results", _lead(runs), body)


def _every(runs: Sequence[Run], by_run: Sequence[Mapping[Key, float | None]]) -> str:
  """Every metric: a row a metric, a column a run."""
  two = len(runs) == 2
  heads = [markup.run_label(runs, place) for place in range(len(runs))]
  if two:
    heads.append("difference")
  columns = "".join(f'<th scope="col">{head}</th>' for head in heads)
  body, group = [], None
  for key in _keys(by_run):
    if key[:2] != group:
      group = key[:2]
      title = " · ".join(map(markup.escape, group))
      body.append(f'<tr class="group"><th colspan="{len(heads) + 1}">{title}</th></tr>\n')
    body.append(_row(key, [results.get(key) for results in by_run], two))
  if not body:
    return ""
  return (
    "<details><summary>Every metric</summary>"
    f'<div class="wide"><table class="results"><thead><tr><td></td>{columns}</tr>'
    f"</thead><tbody>\n{''.join(body)}</tbody></table></div></details>\n"
  )


def _row(key: Key, values: Sequence[float | None], two: bool) -> str:
  metric = key[2]
  cells = [markup.metric_value(metric, value) for value in values]
  if two:
    cells.append(markup.metric_difference(metric, *values))
  row = "".join(f"<td>{cell}</td>" for cell in cells)
  # A narrow screen may break the long names of metrics behind an underscore.
  name = markup.escape(metric).replace("_", "_<wbr />")
  return f'<tr><th scope="row">{name}</th>{row}</tr>\n'


def _lead(runs: Sequence[Run]) -> str:
  lead = f"“{markup.NOTHING}”: not measured in this run, or undefined."
  if len(runs) == 2:
    lead += (
      f" The difference is {markup.run_label(runs, 1)} minus"
      f" {markup.run_label(runs, 0)}; pp: percentage points."
    )
  if held_out := _held_out(runs):
    name, size = held_out
    lead += (
      f" With the {size} pictures of {markup.escape(name)}, a recall near 50 % has a"
      f" standard error of {100 * math.sqrt(0.25 / size):.1f} pp."
    )
  return lead


def _keys(by_run: Sequence[Mapping[Key, float | None]]) -> list[Key]:
  """Every metric of any run, by data set and task, as first met within a task."""

  def first_met() -> Iterator[Key]:
    for results in by_run:
      yield from results

  return sorted(dict.fromkeys(first_met()), key=lambda key: key[:2])
