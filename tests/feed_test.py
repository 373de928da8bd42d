import time

import numpy as np
import pytest

from rankclip_jax import feed
from rankclip_jax.data.bad_examples import Allowance


def of(batches, said, most=0.01):
  return feed.Feed(
    iter(batches), Allowance(most, "bad.jsonl"), said.append, num_threads=1, num_workers=0
  )


def batch(replaced=0):
  return {
    "image": np.zeros((4, 2, 2, 3), np.uint8),
    "id": np.arange(4),
    "replaced": np.array([replaced, 0, 0, 0], np.int32),
  }


def slow(count, seconds):
  for _ in range(count):
    time.sleep(seconds)
    yield batch()


def test_ids_and_counts_stay_on_the_host():
  rows, ids, numbers = of([batch(2)], []).next()
  assert set(rows) == {"image"}
  np.testing.assert_array_equal(ids, np.arange(4))
  assert numbers["replaced_examples"] == 2.0
  assert 0 <= numbers["data_wait_seconds"] < 1


def test_too_much_that_is_bad_stops_it():
  found = of([batch(6), batch(6)], [])
  found.next()
  with pytest.raises(ValueError, match="12 of 20 examples"):
    found.next()


def test_waiting_for_data_is_told_once(monkeypatch):
  monkeypatch.setattr(feed, "_WINDOW", 5)
  said = []
  found = of(slow(20, 0.01), said)
  for _ in range(20):
    found.next()
  assert len(said) == 1
  assert "wait for data" in said[0]


def test_a_fast_input_is_not_mentioned(monkeypatch):
  monkeypatch.setattr(feed, "_WINDOW", 5)
  said = []
  found = of(slow(10, 0.0), said)
  for _ in range(10):
    time.sleep(0.01)
    found.next()
  assert not said


@pytest.mark.parametrize(
  "threads, workers, cores, expected",
  [(2, 0, 16, "num_threads to 16"), (16, 0, 16, "reshard"), (4, 4, 16, "reshard")],
)
def test_the_advice_depends_on_what_is_left(threads, workers, cores, expected):
  text = feed.advice(0.4, threads, workers, cores)
  assert expected in text
  assert "40%" in text
