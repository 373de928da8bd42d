"""The printed numbers: whole, plausible, and about the data sets of the evaluation."""

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
