"""The printed numbers: whole, plausible, and about the data sets of the evaluation."""

import re

import numpy as np
import pytest

from rankclip_jax.data.benchmarks.table import BENCHMARKS
from rankclip_jax.evals import classification, retrieval
from rankclip_jax.report import printed, robustness

_TASKS = {
  "zeroshot_classification": "classification",
  "linear_probe": "classification",
  "zeroshot_retrieval": "retrieval",
}


def _columns():
  return [column for table in printed.TABLES for column in table.columns]


def test_data_sets_and_tasks_are_those_of_the_evaluation():
  for dataset, task, _ in {key for column in _columns() for key in column.keys}:
    assert BENCHMARKS[dataset].task == _TASKS[task], dataset
  for dataset in (robustness.REFERENCE, *robustness.SHIFTS):
    assert BENCHMARKS[dataset].task == "classification"


def test_metrics_are_those_that_the_evaluation_writes():
  pairs = np.eye(3, dtype=np.float32)
  written = set(retrieval.evaluate(pairs, pairs, np.arange(3)))
  accuracies = {f"acc{k}" for k in classification.ACCURACY_AT}
  written |= accuracies | {f"lp_{name}" for name in accuracies}
  assert {key[2] for column in _columns() for key in column.keys} <= written


@pytest.mark.parametrize("table", printed.TABLES, ids=lambda table: table.name)
def test_rows_are_whole_and_grow_with_k(table):
  for row in table.rows:
    by_group = {}
    for column, value in zip(table.columns, row.values, strict=True):
      assert 0 < value < 100
      if column.head.lstrip("R").startswith("@"):
        by_group.setdefault(column.group, []).append(value)
    assert all(values == sorted(values) for values in by_group.values())
  # RankCLIP is the method of the paper: no table is without it.
  assert "RankCLIP" in {row.method for row in table.rows}


def test_printed_mean_of_probes_is_the_mean_of_the_printed_probes():
  for row in printed.TABLE_3.rows:
    *probes, mean = row.values
    assert len(probes) == 10
    assert np.mean(probes) == pytest.approx(mean, abs=0.0501)


def test_points_of_the_figure_are_as_many_as_its_sizes():
  assert {len(values) for values in printed.FIGURE_4.values()} == {5}
  assert printed.FIGURE_4_MARK == "read off a plot"


# The same numbers as they were copied from the paper before, in another layout: what is
# mistyped in one of the two is found.
_COPIED = {
  "Table 1": """
| CLIP | 9.06/16.94/21.63 | 6.68/18.36/26.94 | 3.70/9.74/14.04 |
| CyCLIP | 9.40/17.32/21.72 | 6.50/19.34/29.14 | 3.72/11.16/16.06 |
| ALIP | 9.71/18.31/23.07 | 6.04/18.04/26.92 | 3.70/10.22/14.38 |
| RankCLIP | 10.16/19.57/24.01 | 7.18/19.46/28.48 | 3.74/10.28/14.18 |
""",
  "Table 2": """
| CLIP | 7.53/14.99/19.61 | 8.89/17.22/21.86 | 10.76/19.80/24.87 | 9.36/10.56/19.76
| CyCLIP | 7.68/15.07/19.11 | 9.10/17.42/21.94 | 11.20/20.18/25.34 | 9.23/16.72/21.64
| ALIP | 7.82/15.56/19.81 | 9.65/18.31/22.85 | 11.43/20.88/26.10 | 10.92/20.27/26.24
| RankCLIP | 9.01/16.95/21.12 | 10.32/19.31/24.13 | 12.31/22.11/27.17 | 11.34/20.88/26.94
""",
  "Table 3": """
CLIP 77.6 56.2 43.2 22.6 39.7 60.0 40.4 51.0 79.0 50.5 | 52.0
CyCLIP 76.8 54.3 45.8 19.2 37.5 58.6 44.2 51.5 82.3 41.3 | 51.2
ALIP 71.1 49.1 47.1 17.4 36.1 51.5 41.9 53.3 81.0 38.3 | 48.7
RankCLIP 78.4 56.6 42.4 23.4 40.2 60.6 40.6 53.4 79.6 47.7 | 52.3
""",
  "Table 4": """
CLIP RN50 21.6/36.9/44.9; 15.6/36.4/48.4; 6.7/15.2/20.1; 64.2
RankCLIP RN50 30.9/49.4/57.6; 19.5/42.6/54.8; 7.5/16.2/21.6; 68.9
CLIP ViT-B/32 20.7/35.0/42.4; 11.9/29.4/40.8; 5.1/12.9/17.9; 60.7
RankCLIP ViT-B/32 26.2/41.4/48.9; 13.8/33.8/45.9; 6.0/13.6/18.6; 61.3
""",
}
_COPIED_FIGURE_4 = (
  "500K 4.5 -> 8.3, 750K 7.5 -> 11.2, 1M 9.4 -> 13.1, 3M 12.1 -> 17.0, 15M 21.6 -> 30.9"
)


@pytest.mark.parametrize("table", printed.TABLES, ids=lambda table: table.name)
def test_numbers_are_those_of_another_copy(table):
  copied = _COPIED[table.name].strip().splitlines()
  assert len(copied) == len(table.rows)
  for line, row in zip(copied, table.rows, strict=True):
    named = re.match(r"\W*(\w+)(?: \|)? (RN50|ViT-B/32)?", line)
    assert named
    assert named[1] == row.method
    assert (named[2] or "ViT-B/32") == row.architecture
    assert tuple(map(float, re.findall(r"\d+\.\d+", line))) == row.values


def test_points_of_the_figure_are_those_of_another_copy():
  found = re.findall(r"(\d+)([KM]) ([\d.]+) -> ([\d.]+)", _COPIED_FIGURE_4)
  units = {"K": 1_000, "M": 1_000_000}
  assert list(printed.FIGURE_4) == ["Pairs", "CLIP", "RankCLIP"]
  assert tuple(printed.FIGURE_4.values()) == (
    tuple(int(number) * units[unit] for number, unit, _, _ in found),
    tuple(float(clip) for *_, clip, _ in found),
    tuple(float(rankclip) for *_, rankclip in found),
  )
