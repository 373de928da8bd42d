import time

import jax
import numpy as np
import pytest

from rankclip_jax import feed, wishes
from rankclip_jax.data.bad_examples import Allowance


def batch(replaced=0):
  return {
    "image": np.zeros((4, 2, 2, 3), np.uint8),
    "id": np.arange(4),
    "replaced": np.array([replaced, 0, 0, 0], np.int32),
  }


def of(batches, said, most=0.01):
  return feed.Feed(
    iter(batches),
    batch(),
    Allowance(most, "bad.jsonl"),
    wishes.Wishes(lambda: wishes.Wish.NONE),
    said.append,
    num_threads=1,
    num_workers=0,
  )


def values(rows):
  told = feed.counts(rows["replaced"], np.zeros_like(rows["replaced"]))
  return {name: float(x) for name, x in told.items()}


def test_counts_are_judged_when_they_are_here():
  found = of([batch(6), batch(6)], [])
  rows, ids, waited = found.next()
  np.testing.assert_array_equal(ids, np.arange(4))
  assert 0 <= waited < 1
  numbers = values(rows)
  found.check(numbers)
  assert numbers == {"replaced_examples": 6.0}
  rows, _, _ = found.next()
  with pytest.raises(ValueError, match="12 of 20 examples"):
    found.check(values(rows))


def broken():
  yield batch()
  raise ValueError("cannot read")


def test_alone_it_fails_at_once():
  found = of(broken(), [])
  found.next()
  with pytest.raises(ValueError, match="cannot read"):
    found.next()


def test_together_all_fail_at_one_step(monkeypatch):
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  monkeypatch.setattr(jax, "process_index", lambda: 1)
  bad, good = of(broken(), []), of([batch() for _ in range(3)], [])
  for step in range(3):
    both = [bad.next()[0], good.next()[0]]
    assert both[0]["image"].shape == both[1]["image"].shape
    joined = np.concatenate([rows["replaced"] for rows in both])
    numbers = values({"replaced": joined})
    if step == 0:
      good.check(dict(numbers))
      bad.check(dict(numbers))
      continue
    with pytest.raises(ValueError, match="Process 1 could not read"):
      good.check(dict(numbers))
    with pytest.raises(ValueError, match="cannot read"):
      bad.check(dict(numbers))


class Device:
  """Computes for some time after it was given something, like a GPU."""

  def __init__(self, monkeypatch, seconds):
    self._seconds = seconds
    self._done = 0.0
    monkeypatch.setattr(jax, "block_until_ready", self._wait)

  def _wait(self, until):
    time.sleep(max(until - time.perf_counter(), 0))

  def give(self, found):
    """Returns when what was given before is done, as the loop does."""
    before, self._done = self._done, max(self._done, time.perf_counter()) + self._seconds
    found.given(self._done)
    self._wait(before)


def slow(count, seconds):
  for _ in range(count):
    time.sleep(seconds)
    yield batch()


def share_of_waits(monkeypatch, said, loading, computing, count=20):
  """Runs the loop; returns for which share of it the device waited for data."""
  device, found = Device(monkeypatch, computing), of(slow(count, loading), said)
  waits, began = 0.0, time.perf_counter()
  for _ in range(count):
    waits += found.next()[2]
    device.give(found)
  return waits / (time.perf_counter() - began)


def test_only_what_exceeds_the_step_is_a_wait(monkeypatch):
  monkeypatch.setattr(feed, "_WINDOW", 5)
  said = []
  assert share_of_waits(monkeypatch, said, 0.03, 0.04) < 0.1
  assert not said
  assert share_of_waits(monkeypatch, said, 0.06, 0.02) == pytest.approx(2 / 3, abs=0.12)
  assert len(said) == 1  # told once
  assert "wait for data" in said[0]


def test_evaluating_is_not_waiting(monkeypatch):
  monkeypatch.setattr(feed, "_WINDOW", 4)
  said = []
  found = of(slow(20, 0.01), said)
  for _ in range(20):
    found.next()
    found.pause()
  assert not said


@pytest.mark.parametrize(
  "threads, workers, cores, expected",
  [(2, 0, 16, "num_threads to 16"), (16, 0, 16, "reshard"), (4, 4, 16, "reshard")],
)
def test_the_advice_depends_on_what_is_left(threads, workers, cores, expected):
  text = feed.advice(0.4, threads, workers, cores)
  assert expected in text
  assert "40%" in text
