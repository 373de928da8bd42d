"""The results at a glance: for each task a table of data sets, and what is behind."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rankclip_jax.evals.classification import CALIBRATION_BINS
from rankclip_jax.report import markup
from rankclip_jax.report.run import Run

# The columns of a task: metric and head. Tasks that are not here show what they have.
_COLUMNS: Mapping[str, Mapping[str, str]] = {
  "zeroshot_classification": {
    "acc1": "top-1",
    "acc3": "top-3",
    "acc5": "top-5",
    "mean_per_class_recall": "mean per class",
  },
  "zeroshot_retrieval": {
    "text_retrieval_recall@1": "image → text R@1",
    "text_retrieval_recall@5": "R@5",
    "text_retrieval_recall@10": "R@10",
    "image_retrieval_recall@1": "text → image R@1",
    "image_retrieval_recall@5": "R@5",
    "image_retrieval_recall@10": "R@10",
  },
  "linear_probe": {
    "lp_acc1": "top-1",
    "lp_acc5": "top-5",
    "lp_mean_per_class_recall": "mean per class",
  },
  "geometry": {
    "modality_gap": "gap",
    "alignment": "alignment",
    "uniformity_cross_modal": "uniformity, image to text (CyCLIP)",
    "uniformity_image": "uniformity of images (Wang & Isola)",
    "uniformity_text": "uniformity of texts (Wang & Isola)",
    "rank_consistency_cross_modal_kendall_tau": "cross-modal τ",
    "rank_consistency_in_modal_kendall_tau": "in-modal τ",
    "rank_consistency_cross_modal_top10_overlap": "cross-modal top-10",
    "rank_consistency_in_modal_top10_overlap": "in-modal top-10",
  },
}
_COLUMNS = _COLUMNS | {
  "zeroshot_retrieval_main_caption": _COLUMNS["zeroshot_retrieval"],
}
# Accuracy from k examples a class: the mean over draws, shown with their spread.
_FEW_SHOT = re.compile(r"lp_acc1_k(\d+)_mean$")
_MEAN, _SPREAD = "_mean", "_std"
_MOST_COLUMNS = 8
_CONFUSIONS = 5
_PART = "†"

# The metrics and extras of a run by (data set, task).
_Found = Mapping[tuple[str, str], tuple[Mapping[str, float | None], Mapping[str, Any]]]


def matrices(runs: Sequence[Run]) -> str:
  """A table a task: a row for every data set and run, and their difference if two."""
  found = _found(runs)
  tasks = sorted({task for each in found for _, task in each}, key=_order)
  body = "".join(_matrix(runs, found, task) for task in tasks)
  extras = [e for each in found for _, e in each.values()]
  if "<b>" in body:
    body += '<p class="note">Bold: the metric that the field reports of a data set.</p>'
  if any("uniformity_cross_modal" in m for each in found for m, _ in each.values()):
    body += (
      '<p class="note">Uniformity is the logarithm of the mean of exp(\N{MINUS SIGN}2 d²)'
      " over distances d of unpaired embeddings; lower is more uniform. CyCLIP takes an"
      " image and a text, Wang &amp; Isola (2020, t = 2) two of one modality.</p>"
    )
  if any(e.get("complete") is False for e in extras):
    body += (
      f'<p class="note">{_PART} Not the whole test split; not to be compared with'
      " published numbers.</p>"
    )
  return body


def behind(runs: Sequence[Run]) -> str:
  """Calibration and the most confused classes, where results have them."""
  rows = []
  found = _found(runs)
  for dataset, task in _pairs(found):
    for place, each in enumerate(found):
      _, extras = each.get((dataset, task), ({}, {}))
      if "calibration_error" in extras or "confusions" in extras:
        label = f"{markup.run_label(runs, place)} " if len(runs) > 1 else ""
        rows.append(
          f'<tr><th scope="row">{label}{markup.escape(dataset)}</th>'
          f"<td>{_points(extras.get('calibration_error'))}</td>"
          f"<td>{_confused(extras.get('confusions') or [])}</td></tr>\n"
        )
  if not rows:
    return ""
  return (
    "<details><summary>Calibration and the most confused classes</summary>"
    '<p class="note">Calibration error: how far the probability of a prediction, by the'
    " model's own temperature, is from how often such predictions are right, in"
    f" percentage points, the mean over {CALIBRATION_BINS} bins of equal width weighted"
    " by their examples (Guo et al. 2017). 0 is a model whose probabilities can be relied"
    " upon; one number does not say whether it is too sure or too unsure. Confusions are"
    " directed: class → what it was taken for, and how many of the class were.</p>"
    '<div class="wide"><table class="behind"><thead><tr><td></td>'
    '<th scope="col">Calibration error</th><th scope="col">Most confused</th></tr>'
    f"</thead><tbody>\n{''.join(rows)}</tbody></table></div></details>\n"
  )


def skipped(runs: Sequence[Run]) -> str:
  """What jobs left out, with their reasons."""
  body = []
  for place, run in enumerate(runs):
    if not run.skipped:
      continue
    tasks: dict[tuple[str, str], list[str]] = {}
    for skip in run.skipped:
      tasks.setdefault((skip.dataset, skip.reason), []).append(skip.task)
    items = "".join(
      f"<li><b>{markup.escape(dataset)}</b> ({markup.escape(', '.join(names))}):"
      f" {markup.escape(reason)}</li>"
      for (dataset, reason), names in tasks.items()
    )
    count = len(run.skipped)
    body.append(
      f'<div class="absent">{markup.run_label(runs, place)}: {count}'
      f" {'task was' if count == 1 else 'tasks were'} skipped."
      f"<details><summary>Which, and why</summary><ul>{items}</ul></details></div>"
    )
  return "".join(body)


def _found(runs: Sequence[Run]) -> list[_Found]:
  return [
    {(r.dataset, r.task): (r.metrics, r.extras) for r in run.results} for run in runs
  ]


def _pairs(found: Sequence[_Found]) -> list[tuple[str, str]]:
  return sorted({pair for each in found for pair in each})


def _order(task: str) -> tuple[int, str]:
  known = list(_COLUMNS)
  return (known.index(task) if task in known else len(known), task)


def _columns(found: Sequence[_Found], task: str) -> Mapping[str, str]:
  """The columns of a task in which any run has a number."""
  measured = list(
    dict.fromkeys(
      metric
      for each in found
      for (_, other), (metrics, _) in each.items()
      if other == task
      for metric, value in metrics.items()
      if value is not None
    )
  )
  known = _COLUMNS.get(task, {})
  shown = {metric: head for metric, head in known.items() if metric in measured}
  shots = {int(k[1]): m for m in measured if (k := _FEW_SHOT.match(m))}
  shown |= {shots[k]: f"top-1, k = {k}" for k in sorted(shots)}
  return shown or {metric: metric for metric in measured[:_MOST_COLUMNS]}


def _matrix(runs: Sequence[Run], found: Sequence[_Found], task: str) -> str:
  columns = _columns(found, task)
  if not columns:
    return ""
  heads = "".join(f'<th scope="col">{_breakable(head)}</th>' for head in columns.values())
  several = '<th scope="col" class="of-run">Run</th>' if len(runs) > 1 else ""
  datasets = [dataset for dataset, other in _pairs(found) if other == task]
  body = "".join(
    _rows(runs, [each.get((d, task)) for each in found], d, columns) for d in datasets
  )
  title = markup.escape(task.replace("_", " ").replace("zeroshot", "zero-shot"))
  return (
    f'<h3>{title[0].upper()}{title[1:]}</h3><div class="wide"><table class="matrix">'
    f'<thead><tr><th scope="col" class="name">Data set</th>{several}{heads}</tr></thead>'
    f"<tbody>\n{body}</tbody></table></div>\n"
  )


def _rows(
  runs: Sequence[Run],
  found: Sequence[tuple[Mapping[str, float | None], Mapping[str, Any]] | None],
  dataset: str,
  columns: Mapping[str, str],
) -> str:
  """The rows of a data set, a run each."""
  several = len(runs) > 1
  rows, parts = [], []
  for place, each in enumerate(found):
    metrics, extras = each or ({}, {})
    parts.append(f" {_PART}" if extras.get("complete") is False else "")
    label = markup.run_label(runs, place) + parts[-1]
    # Of a probe the same metric is called "lp_acc1".
    ours = (extras.get("metric"), f"lp_{extras.get('metric')}")
    cells = [(_value(metric, metrics), metric in ours) for metric in columns]
    rows.append((label, [f"<b>{x}</b>" if bold else x for x, bold in cells]))
  if len(found) == 2:
    first, second = (each[0] if each else {} for each in found)
    changes = [markup.metric_difference(m, first.get(m), second.get(m)) for m in columns]
    rows.append(("<small>difference</small>", changes))
  name = _breakable(dataset) + ("" if several else parts[0])
  out = []
  for place, (label, cells) in enumerate(rows):
    css = ' class="inner"' if place + 1 < len(rows) else ""
    head = f'<th scope="rowgroup" rowspan="{len(rows)}" class="name">{name}</th>'
    line = head if place == 0 else ""
    if several:
      line += f'<th class="of-run{" inner" if css else ""}">{label}</th>'
    out.append(f"<tr>{line}{''.join(f'<td{css}>{cell}</td>' for cell in cells)}</tr>\n")
  return "".join(out)


def _value(metric: str, metrics: Mapping[str, float | None]) -> str:
  """A metric as text, with the spread over draws where it is a mean over them."""
  value = markup.metric_value(metric, metrics.get(metric))
  spread = metrics.get(metric.removesuffix(_MEAN) + _SPREAD)
  if not metric.endswith(_MEAN) or spread is None:
    return value
  return f"{value} ± {markup.fixed(100 * spread, 2)}"


def _breakable(name: str) -> str:
  """A name that a narrow screen may break behind an underscore or a slash."""
  return re.sub(r"([_/])", r"\1<wbr />", markup.escape(name))


def _points(error: float | None) -> str:
  return markup.NOTHING if error is None else f"{markup.fixed(100 * error, 1)} pp"


def _confused(confusions: Sequence[Mapping[str, Any]]) -> str:
  return (
    "; ".join(
      markup.escape(
        f"{each['label']} → {each['prediction']} {each['count']}"
        f" ({100 * each['fraction']:.0f} %)"
      )
      for each in confusions[:_CONFUSIONS]
    )
    or markup.NOTHING
  )
