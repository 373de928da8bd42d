"""The report's small table of data sets against that of the evaluation."""

import pytest

from rankclip_jax.data.benchmarks import prompts, table
from rankclip_jax.report import datasets


@pytest.mark.parametrize("alias, one", table._BY_ALIAS.items())
def test_every_alias_of_the_evaluation_is_known(alias, one):
  if one.built_in:
    assert datasets.canonical(one.name) == one.name
  else:
    assert datasets.canonical(alias) == one.name


def test_data_sets_and_their_numbers_of_prompts_are_those_of_the_evaluation():
  known = {name for name, one in table.BENCHMARKS.items() if not one.built_in}
  assert set(datasets.KNOWN) == known
  for name, one in datasets.KNOWN.items():
    benchmark = table.BENCHMARKS[name]
    templates = prompts.templates_of(benchmark) if benchmark.templates else ()
    assert len(templates) == one.prompts, name


def test_other_names_stay_as_they_are():
  for name in ("openmoji/kind", "wds/mine", "imagenet1k-mine", "results-of-cifar10", ""):
    assert datasets.canonical(name) == name
