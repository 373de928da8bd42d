"""Means and spreads over seeds, and what is said of runs that are not there."""

import dataclasses
import math

import numpy as np
import pytest

from rankclip_jax.studies import figure, table
from tests.studies.conftest import begin, finish


@pytest.fixture
def made(runs):
  """Of all runs but the last: 0.1, 0.2, 0.3 of the first seed, 0.3, 0.2 of the second."""
  for run, number in zip(runs, (0.1, 0.2, 0.3, 0.3, 0.2), strict=False):
    finish(run, number, undefined=None if run.seed else 1.0)
  return runs


def rows(text):
  lines = [x.strip("| ").split(" | ") for x in text.splitlines() if x.startswith("| ")]
  return {line[0]: line[1:] for line in lines}


def test_incomplete_studies_are_refused_or_marked(tiny, made):
  begin(made[-1])
  with pytest.raises(
    ValueError, match=r"1 of 6 .* rankclip-1 \(interrupted\).*--partial"
  ):
    table.read(tiny, made)
  found = table.read(tiny, made, partial=True)
  text = table.markdown(found)
  assert "INCOMPLETE: 1 of 6 runs are not done" in text
  assert "Not done: rankclip-1 (interrupted)." in text
  # Of a single seed there is no spread, and none is invented.
  assert rows(text)["rankclip (1 of 2 seeds)"][:2] == ["2.0", "0.3000"]


def test_a_study_of_which_nothing_is_done_is_refused(tiny, runs):
  with pytest.raises(ValueError, match="6 of 6 runs are not done"):
    table.read(tiny, runs, partial=True)


def test_means_and_sample_standard_deviations(tiny, made):
  finish(made[-1], 0.4)
  found = table.read(tiny, made)
  text = table.markdown(found)
  assert "INCOMPLETE" not in text
  assert "commit: abc+." in text
  cells = rows(text)
  half = 0.2 / math.sqrt(2)  # of two values that are 0.2 apart
  recall, tau = f"0.2000 ± {half:.4f}", f"0.4000 ± {2 * half:.4f}"
  assert cells["clip"] == ["0.0", recall, recall, tau, tau]
  every = cells["openmoji zeroshot_retrieval image_retrieval_recall@1"]
  assert every == [recall, "0.2000 ± 0.0000", f"0.3500 ± {0.1 / math.sqrt(2):.4f}"]
  # What is undefined in one of the seeds has no mean.
  assert cells["openmoji geometry undefined"] == ["-", "-", "-"]


def test_the_figure_shows_every_point_and_its_spread(tiny, made, monkeypatch):
  seen = {}
  monkeypatch.setattr(figure.plots, "png", lambda drawn: seen.setdefault("f", drawn))
  figure.draw(table.read(tiny, made, partial=True))
  first, *_, last = seen["f"].axes
  clip, rankclip = first.containers
  assert (clip.get_label(), rankclip.get_label()) == ("CLIP", "RankCLIP")
  np.testing.assert_allclose(clip[0].get_xydata(), [[0, 20]])  # percent
  np.testing.assert_allclose(rankclip[0].get_xydata(), [[1, 20], [2, 30]])
  assert first.get_xlim()[0] < 0 < 2 < first.get_xlim()[1]
  assert first.get_ylim()[0] < 10 < 30 < first.get_ylim()[1]
  low, high = (side.get_ydata() for side in clip[1])
  half = 100 * 0.2 / math.sqrt(2)
  np.testing.assert_allclose([*low, *high], [20 - half, 20 + half])
  seeds = np.concatenate([dots.get_offsets() for dots in last.collections[1::2]])
  # All runs, twice the numbers of the recalls.
  assert sorted(seeds[:, 1].round(6).tolist()) == [0.2, 0.4, 0.4, 0.6, 0.6]
  assert "INCOMPLETE" in seen["f"].get_supxlabel()


def test_series_of_one_place_stand_side_by_side(tiny):
  variants = [
    dataclasses.replace(tiny.variants[0], name=f"{s}{x}", series=s, x=x)
    for s in "ab"
    for x in (10.0, 100.0)
  ]
  crowded = dataclasses.replace(tiny, variants=variants, log_x=True)
  places = figure._places(crowded)
  for x in (10, 100):
    left, right = places[f"a{x:.1f}"], places[f"b{x:.1f}"]
    assert left < x < right < 1.05 * left
    assert math.sqrt(left * right) == pytest.approx(x)
  assert figure._places(tiny) == {"clip": 0, "low": 1, "rankclip": 2}


def test_the_picture_is_small(tiny, made):
  finish(made[-1], 0.4)
  picture = figure.draw(table.read(tiny, made))
  assert picture.startswith(b"\x89PNG")
  assert len(picture) < 100_000
