"""Which runs and which shifted sets get a point, and where it says they are."""

import pytest

from rankclip_jax import report
from rankclip_jax.report import robustness

TASK = "zeroshot_classification"


@pytest.fixture
def build(tmp_path, open_page):
  def build_and_open(*workdirs):
    return open_page(report.build(workdirs, tmp_path / "out"))

  return build_and_open


def _results(**accuracies):
  return {
    (name.replace("__", "/"), TASK): {"acc1": value} for name, value in accuracies.items()
  }


def _figures(page):
  found = [node for node in page.root.iter("section") if node.get("id") == "robustness"]
  return {
    page.text(figure.find("figcaption")): figure.find("img").get("alt")
    for section in found
    for figure in section.iter("figure")
  }


def test_runs_have_a_point_where_both_accuracies_are_known(build, make_workdir):
  both = make_workdir("both", results=_results(imagenet1k=0.5, imagenetv2=0.375))
  only = make_workdir("only", results=_results(imagenet1k=0.25))
  shifted = make_workdir("shifted", results=_results(imagenetv2=0.5))
  title = robustness.SHIFTS["imagenetv2"]
  assert _figures(build(both, only, shifted)) == {
    title: f"{title} against ImageNet-1K, top-1: both 37.5 % at 50.0 %"
  }


def test_the_mean_is_over_all_four_printed_sets(build, make_workdir):
  results = _results(
    **{"imagenet1k": 0.5, "imagenetv2": 0.1, "imagenetv2/threshold-0.7": 0.2},
    **{"imagenetv2/top-images": 0.3, "imagenet-r": 0.4, "imagenet-a": 0.01},
  )
  figures = _figures(build(make_workdir(results=results)))
  assert next(iter(figures)) == "Mean of the four sets of Table 2"
  assert figures["Mean of the four sets of Table 2"].endswith("run 25.0 % at 50.0 %")
  assert figures["ImageNet-A"].endswith("run 1.0 % at 50.0 %")
  assert len(figures) == 6


def test_without_a_pair_there_is_no_section(build, make_workdir):
  page = build(make_workdir(results=_results(imagenet1k=0.5)))
  assert not _figures(page)
  assert "robustness" not in [node.get("id") for node in page.root.iter("section")]


def test_printed_points_are_of_the_same_sets():
  for dataset in robustness.PRINTED_SHIFTS:
    assert robustness.SHIFTS[dataset]
  accuracies = robustness.of_print("RankCLIP")
  assert accuracies["imagenet1k"] == pytest.approx(0.1016)
  assert accuracies["imagenet-r"] == pytest.approx(0.1134)
