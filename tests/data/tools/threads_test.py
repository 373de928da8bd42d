import itertools
import threading
import time

import pytest

from rankclip_jax.data.tools import threads


def test_results_keep_their_order_whatever_is_ready_first():
  def slow(number):
    time.sleep(0.02 * (number % 3 == 0))
    return number * number

  assert list(threads.in_order(slow, range(20), 4)) == [n * n for n in range(20)]
  assert list(threads.in_order(slow, [], 4)) == []


def test_several_threads_work_at_once():
  together = threading.Barrier(3, timeout=20)
  assert len(list(threads.in_order(lambda _: together.wait(), range(3), 3))) == 3


def test_an_exception_is_raised_in_its_place_and_ends_it():
  seen = []

  def check(number):
    if number == 3:
      raise KeyError(number)
    return number

  with pytest.raises(KeyError):
    seen.extend(threads.in_order(check, itertools.count(), 2))
  assert seen == [0, 1, 2]


def test_little_is_taken_ahead():
  taken = []
  results = threads.in_order(lambda n: n, (taken.append(n) or n for n in range(999)), 2)
  assert next(results) == 0
  assert len(taken) < 20
  results.close()
  assert len(taken) < 20
