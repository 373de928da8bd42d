"""Bad examples, substitutes, mixtures and masks in training's batches."""

import collections
import multiprocessing
import os
import pickle
import signal

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from rankclip_jax.data import pipeline
from rankclip_jax.data.order import Concatenated
from rankclip_jax.data.source import BadExample, Example
from rankclip_jax.data.tokenizer import Tokenizer
from tests.data.pictures import encoded

TOKENIZER = Tokenizer(8)


class Numbers:
  """Pictures whose colour is their index; `bad` ones cannot be read."""

  def __init__(self, count, bad=(), first=0, caption="number {}"):
    self.count, self.bad, self.first, self.caption = count, set(bad), first, caption

  def __len__(self):
    return self.count

  def __getitem__(self, index):
    key = f"{self.first + index}"
    if index in self.bad:
      raise BadExample(f"{key} is bad", key=key, reason="missing picture", shard="s")
    pixels = np.full((4, 4, 3), (self.first + index) % 256, np.uint8)
    return Example(key, encoded(pixels, "PNG"), (self.caption.format(index),), "s")


def batches(source, **changes):
  return list(iterated(source, **changes))


def iterated(source, **changes):
  options = {
    "image_size": 4,
    "tokenizer": TOKENIZER,
    "augment_scale": None,
    "global_batch": 4,
    "num_steps": 12,
    "seed": 0,
    "on_bad": lambda bad: None,
  }
  return pipeline.train_batches(source, **(options | changes))


def joined(parts):
  return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}


def test_a_bad_example_is_replaced_by_a_good_one_and_told():
  told = []
  found = joined(batches(Numbers(20, bad={3, 7}), num_steps=5, on_bad=told.append))
  assert {bad.key for bad in told} == {"3", "7"}
  assert not {3, 7} & set(found["id"].tolist())
  # Every other example is where it was without damage: nothing moves up.
  whole = joined(batches(Numbers(20), num_steps=5))
  same = whole["id"] == found["id"]
  assert set(whole["id"][~same].tolist()) == {3, 7}
  np.testing.assert_array_equal(found["image"][:, 0, 0, 0], found["id"])
  assert found["replaced"].sum() == len(told) >= 2
  assert np.all((found["replaced"] > 0) == ~same)


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("start", [0, 7])
def test_substitutes_do_not_depend_on_processes_threads_or_resuming(processes, start):
  source = Numbers(23, bad=range(0, 23, 3))
  whole = joined(batches(source, num_threads=0)[start:])
  shares = [
    batches(source, rows=rows, start_step=start, num_threads=3)
    for rows in np.arange(4).reshape(processes, -1).tolist()
  ]
  together = joined([joined(step) for step in zip(*shares, strict=True)])
  for name in whole:
    np.testing.assert_array_equal(together[name], whole[name])


def test_where_nothing_can_be_read_it_stops():
  with pytest.raises(ValueError, match=r"201 examples in a row .* is bad"):
    batches(Numbers(8, bad=range(8)))


def test_without_a_place_for_it_a_bad_example_is_an_error():
  with pytest.raises(BadExample, match="2 is bad"):
    batches(Numbers(8, bad={2}), on_bad=None)


@hypothesis.given(
  counts=st.lists(st.integers(1, 9), min_size=1, max_size=4), data=st.data()
)
def test_concatenated_sources_are_one(counts, data):
  firsts = np.cumsum([0, *counts]).tolist()
  parts = [Numbers(n, first=f) for n, f in zip(counts, firsts, strict=False)]
  source = Concatenated(parts)
  assert len(source) == sum(counts)
  index = data.draw(st.integers(0, len(source) - 1))
  assert source[index].key == str(index)
  with pytest.raises(IndexError):
    source[len(source)]


@pytest.mark.parametrize("weights", [(1, 1), (3, 1), (0.9, 0.1)])
def test_a_mixture_keeps_its_proportions_all_along(weights):
  source = Concatenated([Numbers(50), Numbers(7, first=100)])
  found = batches(source, global_batch=20, num_steps=30, weights=weights)
  share = weights[1] / sum(weights)
  for batch in found:
    assert abs(np.sum(batch["id"] >= 50) - 20 * share) <= 1
  ids = joined(found)["id"]
  for part in (ids[ids < 50], ids[ids >= 50]):
    times = collections.Counter(part.tolist()).values()
    assert max(times) - min(times) <= 1  # permutation after permutation


def test_a_substitute_is_of_the_same_part():
  source = Concatenated([Numbers(5, bad={1, 2}), Numbers(500, first=100)])
  found = joined(batches(source, num_steps=50, weights=(1, 1)))
  assert np.sum(found["id"] < 5) == 100
  assert not {1, 2} & set(found["id"].tolist())


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 1.0, 1.0), (1.0, 0.0)])
def test_weights_must_fit_the_parts(weights):
  with pytest.raises(ValueError, match="each of the 2 parts"):
    batches(Concatenated([Numbers(5), Numbers(5)]), weights=weights)


@pytest.mark.parametrize("kind, kinds", [("picture", 1), ("caption", 1), ("either", 2)])
def test_rows_that_show_the_same_share_a_number(kind, kinds):
  class Twins(Numbers):
    """Examples 2i and 2i + 1 have one picture; every third caption is one."""

    def __getitem__(self, index):
      example = super().__getitem__(index)
      caption = ("the same",) if index % 3 == 0 else example.captions
      return Example(str(index), super().__getitem__(index // 2).image, caption)

  found = joined(batches(Twins(12), num_steps=1, global_batch=12, same=kind))
  same, ids = found["same"], found["id"]
  assert same.shape == (12, kinds)
  assert same.dtype == np.int32
  agree = (same[:, None] == same[None]).any(-1)
  pictures = ids[:, None] // 2 == ids[None] // 2
  said = (ids % 3 == 0)[:, None] & (ids % 3 == 0)[None] | np.eye(12, dtype=bool)
  expected = {"picture": pictures, "caption": said, "either": pictures | said}[kind]
  np.testing.assert_array_equal(agree, expected)


def test_one_picture_under_two_names_is_one():
  class Copies(Numbers):
    """Pictures 0 and 1 are one, and so are 2 and 3."""

    def __getitem__(self, index):
      picture = super().__getitem__(index // 2).image
      return Example("00000", picture, (f"{index}",), f"{index}.tar")

  found = joined(batches(Copies(4), num_steps=1, same="picture"))
  number = dict(zip(found["id"].tolist(), found["same"][:, 0].tolist(), strict=True))
  assert number[0] == number[1] != number[2] == number[3]


def test_captions_that_are_cleaned_alike_are_the_same():
  class Alike(Numbers):
    def __getitem__(self, index):
      caption = ("A  Cat", "a cat", "a &amp; b")[index]
      return Example(str(index), super().__getitem__(index).image, (caption,))

  found = joined(batches(Alike(3), num_steps=1, global_batch=3, same="caption"))
  number = dict(zip(found["id"].tolist(), found["same"][:, 0].tolist(), strict=True))
  assert number[0] == number[1] != number[2]


def test_worker_processes_make_the_same_batches():
  source = Numbers(40, bad={3, 5, 11})
  options = {"global_batch": 80 // 2, "num_steps": 4, "on_bad": noted}
  plain = batches(source, **options)
  for one, other in zip(plain, batches(source, num_workers=2, **options), strict=True):
    assert one.keys() == other.keys()
    for name in one:
      np.testing.assert_array_equal(one[name], other[name])


def test_workers_pass_over_a_signal_that_ends_the_run():
  """Slurm sends it to every process; whose batches are still wanted must go on."""
  plain, others = batches(Numbers(40), num_steps=10), multiprocessing.active_children()
  made = iterated(Numbers(40), num_steps=10, num_workers=1, prefetch=1, on_bad=noted)
  found = [next(made)]
  (worker,) = set(multiprocessing.active_children()) - set(others)
  for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
    os.kill(worker.pid, number)
  found += made
  np.testing.assert_array_equal(joined(found)["id"], joined(plain)["id"])


def noted(bad):
  assert pickle.loads(pickle.dumps(bad)).key == bad.key
