"""The pure parts of the loss's benchmark: the fit, the cap, the places of labels."""

import numpy as np
import pytest

from benchmarks import contenders, figures, loss
from rankclip_jax.losses import objective


def test_exponent_of_an_exact_power():
  sizes = [1024, 2048, 4096]
  assert loss.exponent(sizes, [3e-9 * n**1.7 for n in sizes]) == pytest.approx(1.7)


def test_exponent_is_the_least_squares_slope():
  # Slope of (0, 0), (1, 2), (2, 2) in powers of e: sum (x - 1) y / sum (x - 1)^2 = 1.
  assert loss.exponent(np.exp([0, 1, 2]), np.exp([0, 2, 2])) == pytest.approx(1.0)


def test_exponent_of_one_point_is_unknown():
  assert loss.exponent([1024], [1.0]) is None


def test_fits_leave_out_small_sizes_and_what_did_not_run():
  ran = [
    loss.Row(n, "rax_listmle", seconds=1e-6 * n**2, peak=1000 * n, runs=1)
    for n in (512, 1024, 2048)
  ]
  ran[0] = loss.Row(512, "rax_listmle", seconds=99.0, peak=1, runs=1)
  skipped = loss.Row(4096, "rax_listmle", needs=2**40)
  assert loss.fits([*ran, skipped])[1:] == [("rax_listmle", "2.00", "1.00", "1024 2048")]


def test_naive_memory_grows_from_its_largest_measurement():
  done = [
    loss.Row(1024, "rax_listmle", peak=300),
    loss.Row(2048, "rax_listmle", peak=1000),
    loss.Row(4096, "rax_listmle", needs=5),
  ]
  assert loss.needed_bytes("rax_listmle", 8192, done) == 16_000
  assert loss.needed_bytes("rankclip_jax", 8192, done) == 0
  floats = contenders.NAIVE_FLOATS["rankclip_plain"]
  assert loss.needed_bytes("rankclip_plain", 512, done) == 4 * floats * 512**2


def test_table_says_what_did_not_run_and_why():
  rows = [
    loss.Row(1024, contenders.BASELINE, seconds=2.0, peak=2**24, runs=3),
    loss.Row(1024, "rankclip_jax", seconds=0.5, peak=2**22, runs=3),
    loss.Row(1024, "rax_listmle", needs=3 * 2**30),
    loss.Row(1024, "rankclip_plain", failed="died with exit code -9"),
  ]
  _, base, own, rax, plain = loss.table(rows)
  assert base[2:6] == ("2000", "1.00", "16", "1.00")
  assert own[2:6] == ("500", "0.25", "4", "0.25")
  assert "needs about 3.0 GiB" in rax
  assert "died with exit code -9" in plain


def test_the_weight_is_the_presets():
  preset = objective.PRESETS["rankclip"]
  assert contenders.RANK_WEIGHT == preset.cross_modal_weight == preset.in_modal_weight


@pytest.mark.parametrize("name", contenders.CONTENDERS)
def test_contenders_agree(name):
  pytest.importorskip({"pytorch_released": "torch"}.get(name, "jax"))
  expected = contenders.rankclip_plain(48, 256).run()
  actual = contenders.CONTENDERS[name](48, 256).run()
  assert actual == pytest.approx(expected, rel=loss.LOSS_RTOL)


@pytest.mark.parametrize(
  "wanted, places",
  [
    ([0, 20, 40], [0, 20, 40]),
    ([0, 0], [-5, 5]),
    ([0, 0, 12], [-6, 4, 14]),
    ([10, 12, 100], [6, 16, 100]),
  ],
)
def test_labels_spread_no_more_than_they_must(wanted, places):
  assert figures.spread(wanted, [10.0] * len(wanted)) == pytest.approx(places)
