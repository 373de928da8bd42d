import concurrent.futures
import threading

import pytest

from rankclip_jax.data.recent import Recent


def test_what_is_not_wanted_for_longest_is_forgotten_first():
  recent, loaded = Recent(limit=10), []

  def get(key, size):
    value = recent.get(key, lambda: (loaded.append(key) or key.upper(), size))
    assert value == key.upper()

  for key in "abab":
    get(key, 4)
  assert loaded == ["a", "b"]
  get("a", 4)
  get("c", 4)  # for b
  get("a", 4)
  get("b", 4)  # for c
  assert loaded == ["a", "b", "c", "b"]
  # What is too large alone is held all the same, and alone.
  get("d", 11)
  get("d", 11)
  get("a", 4)
  assert loaded == ["a", "b", "c", "b", "d", "a"]
  # Sizes are of what is held, not of what was.
  get("b", 6)
  get("a", 4)
  assert loaded[6:] == ["b"]


def test_what_took_long_is_not_forgotten_at_once():
  recent = Recent(limit=10)

  def load():
    assert recent.get("quick", lambda: ("b", 6)) == "b"
    return "a", 6

  assert recent.get("slow", load) == "a"
  assert recent.get("slow", lambda: ("another", 6)) == "a"
  assert recent.get("quick", lambda: ("another", 6)) == "another"


def test_threads_wait_for_the_first_that_wants_it():
  recent, begun, go, loaded = Recent(limit=10), threading.Event(), threading.Event(), []

  def load():
    loaded.append(threading.get_ident())
    begun.set()
    assert go.wait(10)
    return "value", 1

  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    futures = [pool.submit(recent.get, "key", load) for _ in range(4)]
    assert begun.wait(10)
    # Others are not held up.
    assert recent.get("other", lambda: ("another", 1)) == "another"
    go.set()
    assert [future.result() for future in futures] == ["value"] * 4
  assert len(loaded) == 1


def test_what_failed_is_tried_again():
  recent = Recent(limit=10)

  def fail():
    raise OSError("no answer")

  for _ in range(2):
    with pytest.raises(OSError, match="no answer"):
      recent.get("key", fail)
  assert recent.get("key", lambda: ("value", 1)) == "value"
  assert recent.get("key", fail) == "value"
