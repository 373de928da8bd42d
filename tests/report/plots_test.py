"""The plots, looked at pixel by pixel."""

import io
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from rankclip_jax.report import embeddings, logged, maps, plots


def _pixels(png: bytes) -> np.ndarray:
  return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), np.int32)


def _rows_of(picture: np.ndarray, colour: str) -> np.ndarray:
  """The heights [points] at which a colour occurs, from the top."""
  wanted = np.array(to_rgb(colour)) * 255
  return np.flatnonzero((np.abs(picture - wanted).max(axis=2) < 3).any(axis=1))


def _curve(values, steps=None) -> logged.Curve:
  values = np.array(values, np.float64)
  return logged.Curve(np.arange(len(values)) if steps is None else steps, values)


def test_runs_are_drawn_in_their_colours_at_their_heights():
  by_run = {0: _curve([5.0] * 50), 2: _curve([1.0] * 50)}
  picture = _pixels(plots.curves(by_run))
  high = _rows_of(picture, plots.run_colour(0))
  low = _rows_of(picture, plots.run_colour(2))
  assert len(high)
  assert len(low)
  assert high.max() < low.min()
  assert not len(_rows_of(picture, plots.run_colour(1)))


def test_equal_curves_do_not_hide_each_other():
  by_run = {0: _curve([2.0] * 50), 1: _curve([2.0] * 50)}
  picture = _pixels(plots.curves(by_run))
  assert len(_rows_of(picture, plots.run_colour(0)))
  assert len(_rows_of(picture, plots.run_colour(1)))


def test_logarithmic_axis_puts_equal_ratios_at_equal_distances():
  by_run = {place: _curve([10.0**place] * 50) for place in range(3)}

  def distances(log):
    picture = _pixels(plots.curves(by_run, log=log))
    heights = [_rows_of(picture, plots.run_colour(place)).mean() for place in range(3)]
    return -np.diff(heights)

  upper, lower = distances(True)
  assert upper == pytest.approx(lower, rel=0.05)
  upper, lower = distances(False)
  assert lower > 5 * upper


def test_logarithmic_axis_gives_way_to_zero():
  assert _pixels(plots.curves({0: _curve([0.0, 1.0, 2.0])}, log=True)).any()


def test_cut_axis_is_not_flattened_by_one_slow_step():
  values = [1.0, 2.0] * 100
  values[0] = 1000.0

  def height(cut):
    picture = _pixels(plots.curves({0: _curve(values)}, cut=cut, smooth=False))
    # The first step's spike is at the far left.
    return np.ptp(_rows_of(picture[:, picture.shape[1] // 2 :], plots.run_colour(0)))

  assert height(True) > 10 * height(False)


def test_running_mean_is_the_mean_of_what_is_finite_nearby():
  rng = np.random.default_rng(0)
  values = rng.normal(size=400)
  values[[3, 100, 101, 399]] = np.nan
  half = round(plots.SMOOTH_SPAN * 400 / 2)
  for place, mean in enumerate(plots.running_mean(values)):
    if np.isnan(values[place]):
      assert np.isnan(mean)
    else:
      near = values[max(0, place - half) : place + half + 1]
      assert mean == pytest.approx(np.nanmean(near))


def test_map_shows_both_modalities_where_they_are(make_embeddings):
  arrays = make_embeddings(images=40, captions_each=1)
  # One axis dwarfs the others: images at one end, captions at the other.
  arrays["image"][:] = np.eye(6)[0] + 0.01 * arrays["image"]
  arrays["text"][:] = -np.eye(6)[0] + 0.01 * arrays["text"]
  items = embeddings.Embeddings(
    **arrays | {"keys": tuple(arrays["keys"]), "captions": tuple(arrays["captions"])}
  )
  picture = _pixels(maps.principal(items))
  red_over_blue = (picture[..., 0] - picture[..., 2])[picture.shape[0] // 8 :]
  # Captions are yellow and images are blue; the legend above is left out.
  texts = np.flatnonzero((red_over_blue > 60).any(axis=0))
  images = np.flatnonzero((red_over_blue < -40).any(axis=0))
  assert len(texts)
  assert len(images)
  # The axis points to where its largest loading is positive: to the images.
  assert texts.max() < images.min()


def test_logit_scaled_axes_put_equal_ratios_of_odds_at_equal_distances():
  odds = [1 / 9, 1, 9]
  points = {place: (o / (1 + o), o / (1 + o)) for place, o in enumerate(odds)}
  picture = _pixels(plots.robustness(points, {}))
  heights = [_rows_of(picture, plots.run_colour(place)).mean() for place in range(3)]
  upper, lower = -np.diff(heights)
  assert upper > 50
  assert upper == pytest.approx(lower, rel=0.03)


def test_accuracies_of_none_and_all_have_a_place():
  picture = _pixels(plots.robustness({0: (0.0, 0.0), 1: (1.0, 1.0)}, {}))
  lowest, highest = (_rows_of(picture, plots.run_colour(place)) for place in (0, 1))
  assert len(lowest)
  assert len(highest)
  assert highest.max() < lowest.min()


def test_report_needs_neither_jax_nor_pyplot():
  code = (
    "import sys, rankclip_jax.report;"
    "print(sorted({'jax', 'flax', 'matplotlib.pyplot'} & set(sys.modules)))"
  )
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True
  )
  assert done.stdout.strip() == "[]"


def test_runs_of_one_colour_have_markers_of_their_own():
  again = len(plots.RUN_COLOURS)
  places = [0, again, 2 * again]
  drawn = [_pixels(plots.robustness({place: (0.5, 0.4)}, {})) for place in places]
  spots = [len(_rows_of(picture, plots.run_colour(0))) for picture in drawn]
  assert all(spots)
  for first, second in ((0, 1), (0, 2), (1, 2)):
    assert (drawn[first] != drawn[second]).any()
  assert [plots.colour_round(place) for place in (0, 5, 6, 17, 18)] == [0, 0, 1, 2, 0]
