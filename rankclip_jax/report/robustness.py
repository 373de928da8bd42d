"""Accuracy under distribution shift against accuracy on ImageNet, a point a run."""

from collections.abc import Mapping, Sequence

import numpy as np

from rankclip_jax.report import markup, measured, plots, printed
from rankclip_jax.report.run import Run

REFERENCE = "imagenet1k"
# The shifted sets that Table 2 prints, over which the mean is taken, and further ones.
PRINTED_SHIFTS: Mapping[str, str] = {
  "imagenetv2": "ImageNetV2 (matched frequency)",
  "imagenetv2/threshold-0.7": "ImageNetV2 (threshold 0.7)",
  "imagenetv2/top-images": "ImageNetV2 (top images)",
  "imagenet-r": "ImageNet-R",
}
SHIFTS: Mapping[str, str] = {
  **PRINTED_SHIFTS,
  "imagenet_sketch": "ImageNet-Sketch",
  "imagenet-a": "ImageNet-A",
}


# Top-1 as fractions: on ImageNet, and under shift.
_Point = tuple[float, float]


def section(runs: Sequence[Run]) -> str:
  """The plots, or "" where no run has ImageNet and a shifted set."""
  accuracies = [_of_run(run) for run in runs]
  theirs = {row.method: of_print(row.method) for row in printed.TABLE_2.rows}
  panels = {"Mean of the four sets of Table 2": tuple(PRINTED_SHIFTS)}
  panels |= {title: (dataset,) for dataset, title in SHIFTS.items()}
  figures = "".join(
    _figure(runs, accuracies, theirs, title, datasets)
    for title, datasets in panels.items()
  )
  if not figures:
    return ""
  legend = " ".join(markup.run_label(runs, place) for place in range(len(runs)))
  lead = (
    f'<span class="legend">{legend}</span> Zero-shot top-1 under shift against that on'
    " ImageNet-1K, the plot of CLIP and CyCLIP. The dashed line is y = x, where a shift"
    " costs nothing. Both axes are logit-scaled, log(p / (1 \N{MINUS SIGN} p)): Taori et"
    " al. (2020) and Miller et al. (2021) find that models that differ only in how good"
    " they are lie near one straight line on such axes, which is not y = x, is not drawn"
    " here, and needs many models to be known. Hollow: what the paper prints (Tables 1"
    " and 2, CC3M). ImageNet-R and ImageNet-A are measured on their 200 classes,"
    " ImageNet-1K on all 1,000, so there the dashed line only guides the eye."
  )
  body = f'<div class="panels">{figures}</div>'
  return markup.section("robustness", "Robustness", lead, body)


def _of_run(run: Run) -> dict[str, float | None]:
  return {
    dataset: value
    for (dataset, task, metric), value in measured.by_key(run.results).items()
    if (task, metric) == ("zeroshot_classification", "acc1")
  }


def of_print(method: str) -> dict[str, float | None]:
  """The printed top-1 of a method by data set, as fractions."""
  return {
    key[0]: value / 100
    for table in (printed.TABLE_1, printed.TABLE_2)
    for row in table.rows
    for column, value in zip(table.columns, row.values, strict=True)
    for key in column.keys
    if row.method == method and key[2] == "acc1"
  }


def _point(
  accuracies: Mapping[str, float | None], datasets: Sequence[str]
) -> _Point | None:
  """The point of a model, the mean over data sets; None unless it has all of them."""
  reference = accuracies.get(REFERENCE)
  shifted = [accuracies.get(dataset) for dataset in datasets]
  known = [value for value in shifted if value is not None]
  if reference is None or len(known) < len(datasets):
    return None
  return reference, float(np.mean(known))


def _figure(
  runs: Sequence[Run],
  accuracies: Sequence[Mapping[str, float | None]],
  theirs: Mapping[str, Mapping[str, float | None]],
  title: str,
  datasets: Sequence[str],
) -> str:
  points = {
    place: point
    for place, each in enumerate(accuracies)
    if (point := _point(each, datasets))
  }
  if not points:
    return ""
  hollow = {
    method: point for method, each in theirs.items() if (point := _point(each, datasets))
  }
  alt = f"{title} against ImageNet-1K, top-1: " + ", ".join(
    f"{runs[place].name} {100 * y:.1f} % at {100 * x:.1f} %"
    for place, (x, y) in points.items()
  )
  return (
    f"<figure><figcaption><span>{markup.escape(title)}</span></figcaption>"
    f"{markup.png(plots.robustness(points, hollow), alt)}</figure>\n"
  )
