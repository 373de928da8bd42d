"""Subsets of training examples: nested, seeded, and told apart from each other."""

import dataclasses
import itertools
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankclip_jax import config, plan
from rankclip_jax.data import bad_examples, pipeline, source
from rankclip_jax.data.source import Example, Loss, Shard
from rankclip_jax.data.subset import Subset
from rankclip_jax.data.tokenizer import Tokenizer

SEEDS = st.integers(0, 2**32 - 1)
ON_BUSY_MACHINES = settings(deadline=None, max_examples=40)


class Numbers:
  """So many examples, called by their numbers."""

  def __init__(self, count):
    self.count = count

  def __len__(self):
    return self.count

  def __getitem__(self, index):
    return Example(str(index), np.zeros((1, 1, 3), np.uint8), ("one",))


def keys(subset):
  return [subset[i].key for i in range(len(subset))]


@ON_BUSY_MACHINES
@given(st.integers(1, 60), st.data(), SEEDS)
def test_smaller_sets_lie_in_larger_ones(count, data, seed):
  small, large = sorted(data.draw(st.tuples(*[st.integers(1, count)] * 2)))
  inner, outer = (keys(Subset(Numbers(count), n, seed)) for n in (small, large))
  assert inner == outer[:small]
  assert len(set(outer)) == large  # every example at most once
  assert set(outer) <= set(map(str, range(count)))


@ON_BUSY_MACHINES
@given(SEEDS)
def test_all_of_them_are_all_of_them(seed):
  assert sorted(keys(Subset(Numbers(30), 30, seed)), key=int) == keys(Numbers(30))


def test_seeds_draw_others_from_everywhere():
  first, second = (set(map(int, keys(Subset(Numbers(1000), 100, s)))) for s in (0, 1))
  assert len(first & second) < 30  # 10 are expected
  assert 400 < np.mean(list(first)) < 600


def test_what_is_drawn_is_the_same_in_other_processes():
  subset = Subset(Numbers(90), 20, 3)
  assert keys(pickle.loads(pickle.dumps(subset))) == keys(subset)


def test_identities_know_how_it_was_drawn():
  whole = Numbers(90)
  made = [Subset(whole, 20, 3), Subset(whole, 20, 4), Subset(whole, 21, 3), whole]
  made.append(Subset(Numbers(91), 20, 3))
  assert len({source.identity_of(x)["digest"] for x in made}) == len(made)
  assert source.identity_of(made[0]) == source.identity_of(Subset(whole, 20, 3))
  assert source.identity_of(made[0])["examples"] == 20


def test_what_shards_lost_is_a_share_of_the_whole():
  whole = Numbers(2000)
  whole.losses = (Loss("a.tar", "truncated shard", "ends early", count=10),)
  whole.shards = (Shard("a.tar", 2000, 1),)
  bad_examples.check_lost(Subset(whole, 100, 0), 0.01)
  with pytest.raises(ValueError, match="2000 are there"):
    bad_examples.check_lost(Subset(whole, 100, 0), 0.001)


@pytest.mark.parametrize("count", [-1, 0, 91])
def test_more_than_there_is_and_nothing_are_refused(count):
  with pytest.raises(ValueError, match=f"subset={count} of 90 .* expected 1 to 90"):
    Subset(Numbers(90), count, 0)


def test_a_seed_out_of_range_is_refused():
  with pytest.raises(ValueError, match="subset_seed must be from 0"):
    Subset(Numbers(90), 5, 2**32)


@pytest.mark.parametrize("index", [-1, 5])
def test_there_is_nothing_beyond_the_end(index):
  with pytest.raises(IndexError, match="0 to 4"):
    Subset(Numbers(90), 5, 0)[index]


def batches(subset, start, num_threads):
  return pipeline.train_batches(
    subset,
    image_size=4,
    tokenizer=Tokenizer(8),
    augment_scale=None,
    global_batch=4,
    num_steps=8,
    seed=5,
    start_step=start,
    num_threads=num_threads,
  )


@pytest.mark.parametrize("threads", [0, 2])
def test_training_goes_on_at_any_step(threads):
  subset = Subset(Numbers(90), 10, 3)
  whole = [b["id"].tolist() for b in batches(subset, 0, threads)]
  assert [b["id"].tolist() for b in batches(subset, 5, threads)] == whole[5:]
  assert set(itertools.chain(*whole)) <= set(range(10))
  # Epochs are of two batches, in which no example comes twice.
  assert all(len({*whole[i], *whole[i + 1]}) == 8 for i in range(0, 8, 2))


OPENMOJI = config.Config(
  data=config.DataConfig(batch_size=8, subset=24, subset_seed=1),
  model=config.ModelConfig(name="nano", dtype="float32"),
  objective=config.ObjectiveConfig(name="clip"),
)


def changed(**fields):
  return dataclasses.replace(OPENMOJI, data=dataclasses.replace(OPENMOJI.data, **fields))


def test_a_run_trains_on_the_subset_and_knows_it_again():
  p = plan.make(OPENMOJI)
  assert p.epoch_steps == 3
  facts = plan.facts_of(OPENMOJI, p)
  plan.check_data(facts, plan.facts_of(OPENMOJI, plan.make(OPENMOJI)))
  other = changed(subset_seed=2)
  with pytest.raises(ValueError, match="training data changed"):
    plan.check_data(facts, plan.facts_of(other, plan.make(other)))
  assert len(plan.source_of(OPENMOJI, "test")) == 500  # all that is held out


def test_a_run_of_more_than_there_is_is_refused():
  with pytest.raises(ValueError, match="subset=3238 of 3237 training examples"):
    plan.source_of(changed(subset=3238), "train")


@pytest.mark.parametrize(
  "fields, message",
  [
    ({"subset": -1}, "data.subset must be at least 0"),
    ({"weights": (1.0, 2.0)}, "data.subset must be 0 where data.weights are given"),
    ({"subset_seed": -1}, "data.subset_seed must be from 0"),
  ],
)
def test_configs_that_cannot_be_are_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    changed(**fields)
