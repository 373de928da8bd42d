import gc
import itertools
import subprocess
import sys
import textwrap
import threading
import time

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from rankclip_jax.data import pipeline, transforms
from rankclip_jax.data.source import Example
from rankclip_jax.data.tokenizer import Tokenizer

_TOKENIZER = Tokenizer(8)


class _Source:
  """Pictures of noise with three captions each, which counts its reads."""

  def __init__(self, count):
    self.examples = [_example(index) for index in range(count)]
    self.reads = []

  def __len__(self):
    return len(self.examples)

  def __getitem__(self, index):
    self.reads.append(index)
    return self.examples[index]


def _example(index, **changes):
  rng = np.random.default_rng(index)
  extent = (12 + index % 3, 12 + index % 5, 3)
  fields = {
    "key": f"example-{index}",
    "image": rng.integers(0, 256, extent, np.uint8),
    "captions": tuple(f"{word} {index}" for word in ("cat", "dog", "bird")),
  }
  return Example(**(fields | changes))


def _batches(source, **changes):
  options = {
    "image_size": 8,
    "tokenizer": _TOKENIZER,
    "augment_scale": (0.3, 1.0),
    "global_batch": 4,
    "num_steps": 12,
    "seed": 0,
  }
  return pipeline.train_batches(source, **(options | changes))


def _ids(batches):
  return [batch["id"].tolist() for batch in batches]


def _flat(lists):
  return list(itertools.chain.from_iterable(lists))


def _assert_equal(one, other):
  assert one.keys() == other.keys()
  for name in one:
    np.testing.assert_array_equal(one[name], other[name])


def _rows(batches):
  """Lists what each example looked like: {id: [(image, tokens), ...]}."""
  rows = {}
  for batch in batches:
    for row, index in enumerate(batch["id"].tolist()):
      view = batch["image"][row].tobytes(), batch["tokens"][row].tobytes()
      rows.setdefault(index, []).append(view)
  return rows


def test_steps_per_epoch_drops_the_remainder():
  assert pipeline.steps_per_epoch(10, 4) == 2
  assert pipeline.steps_per_epoch(4, 4) == 1


@pytest.mark.parametrize("examples, batch", [(3, 4), (0, 1), (3, 0)])
def test_an_epoch_has_at_least_one_batch(examples, batch):
  with pytest.raises(ValueError, match=f"{examples} examples has no batch of {batch}"):
    pipeline.steps_per_epoch(examples, batch)


def test_batches_are_plain_arrays():
  batches = list(_batches(_Source(9), num_steps=3))
  assert len(batches) == 3
  for batch in batches:
    assert {name: (a.shape, a.dtype) for name, a in batch.items()} == {
      "image": ((4, 8, 8, 3), np.uint8),
      "tokens": ((4, 8), np.int32),
      "id": ((4,), np.int32),
      "replaced": ((4,), np.int32),
    }
    assert all(type(a) is np.ndarray and a.flags.c_contiguous for a in batch.values())


def test_rows_belong_to_their_example():
  source = _Source(9)
  (batch,) = _batches(source, augment_scale=None, num_steps=1, global_batch=9)
  for index, image, tokens in zip(
    *(batch[n] for n in ("id", "image", "tokens")), strict=True
  ):
    example = source.examples[index]
    expected = transforms.resize_center_crop(example.image, 8)
    np.testing.assert_array_equal(image, expected)
    assert tokens.tolist() in _TOKENIZER(example.captions).tolist()


_SHAPES = st.tuples(st.integers(1, 4), st.integers(1, 3), st.sampled_from([1, 2, 4]))


@hypothesis.given(_SHAPES, st.integers(0, 7), st.integers(0, 2**32 - 1))
@hypothesis.settings(deadline=None, max_examples=10)
def test_any_epoch_holds_an_example_at_most_once(shape, remainder, seed):
  steps, rows, processes = shape
  batch = rows * processes
  source = _Source(steps * batch + remainder % batch)
  ids = _ids(
    _batches(source, global_batch=batch, num_steps=2 * steps, seed=seed, num_threads=0)
  )
  assert len(ids) == 2 * steps
  for epoch in (ids[:steps], ids[steps:]):
    assert len(set(_flat(epoch))) == steps * batch


def test_epochs_are_fresh_permutations_and_drop_other_examples():
  ids = _ids(_batches(_Source(23), num_steps=15, global_batch=7))
  epochs = [_flat(ids[start : start + 3]) for start in range(0, 15, 3)]
  assert len({tuple(epoch) for epoch in epochs}) == 5
  assert len({frozenset(epoch) for epoch in epochs}) > 1


def test_seeds_differ_in_order_crop_and_caption():
  one, other = (list(_batches(_Source(8), num_steps=2, seed=s)) for s in (1, 2))
  assert _ids(one) != _ids(other)
  rows, other_rows = _rows(one), _rows(other)
  assert all(rows[i][0][0] != other_rows[i][0][0] for i in range(8))
  assert any(rows[i][0][1] != other_rows[i][0][1] for i in range(8))


def test_neighbouring_seeds_do_not_share_epochs():
  """Epoch 1 of seed 0 must not be epoch 0 of seed 1."""
  one = _ids(_batches(_Source(20), num_steps=20, seed=0))
  other = _ids(_batches(_Source(20), num_steps=20, seed=1))
  assert one[5:10] != other[:5]
  assert one[10:15] != other[5:10]


@pytest.mark.parametrize(
  "shares", [[[0, 1, 2, 3]], [[0, 1], [2, 3]], [[0, 2], [1, 3]], [[3], [1], [0], [2]]]
)
def test_processes_share_one_global_batch(shares):
  parts = [list(_batches(_Source(23), rows=rows)) for rows in shares]
  whole = list(_batches(_Source(23)))
  assert len(whole) == 12  # five steps an epoch: two epochs and two steps
  for step, batch in enumerate(whole):
    for rows, part in zip(shares, parts, strict=True):
      _assert_equal(part[step], {name: values[rows] for name, values in batch.items()})


@pytest.mark.parametrize("start", [0, 1, 4, 5, 6, 13, 16])
def test_resuming_continues_without_replay(start):
  options = {"num_steps": 16, "rows": [2, 3], "num_threads": 0}
  whole = list(_batches(_Source(23), **options))
  source = _Source(23)
  rest = list(_batches(source, start_step=start, **options))
  assert len(rest) == 16 - start
  for one, other in zip(rest, whole[start:], strict=True):
    _assert_equal(one, other)
  # Rows of other steps or other processes were not even read.
  assert source.reads == _flat(_ids(rest))


def _views(steps, **changes):
  """Returns {(epoch, example): (image, tokens)}, three epochs of `steps` steps."""
  views = {}
  for epoch in range(3):
    span = {"start_step": epoch * steps, "num_steps": (epoch + 1) * steps}
    for index, (view,) in _rows(_batches(_Source(24), **span, **changes)).items():
      views[epoch, index] = view
  return views


@pytest.mark.parametrize("batch, threads", [(1, 2), (5, 0), (7, 1), (24, 3)])
def test_crop_and_caption_do_not_depend_on_the_batch(batch, threads):
  expected = _views(6, global_batch=4)
  views = _views(24 // batch, global_batch=batch, num_threads=threads)
  assert len(expected) == 3 * 24
  assert len(views) == 3 * (24 - 24 % batch)
  assert all(expected[key] == view for key, view in views.items())


def test_crop_and_caption_are_new_in_every_epoch():
  for views in _rows(_batches(_Source(4), num_steps=12)).values():
    assert len({image for image, _ in views}) > 9  # Few crops of so few pixels exist.
    assert len({tokens for _, tokens in views}) == 3


def test_without_augmentation_the_picture_stays():
  batches = _batches(_Source(4), num_steps=2, augment_scale=None)
  assert all(one[0] == other[0] for one, other in _rows(batches).values())


def test_threads_keep_the_order():
  class Uneven(_Source):
    def __getitem__(self, index):
      time.sleep(0.002 * (index % 3))
      return super().__getitem__(index)

  expected = _ids(_batches(_Source(23), num_threads=0))
  assert _ids(_batches(Uneven(23), num_threads=4, prefetch=8)) == expected


@pytest.mark.parametrize(
  "changes, match",
  [
    ({"global_batch": 10}, "9 examples has no batch of 10"),
    ({"rows": []}, r"some of 0 to 3, each once, got \[\]"),
    ({"rows": [0, 4]}, r"some of 0 to 3, each once, got \[0, 4\]"),
    ({"rows": [1, 1]}, r"some of 0 to 3, each once, got \[1, 1\]"),
    ({"start_step": 13}, "num_steps=12, got 13"),
    ({"seed": -1}, "got -1"),
    ({"seed": 2**32}, "got 4294967296"),
  ],
)
def test_numbers_that_do_not_fit_are_errors_at_once(changes, match):
  with pytest.raises(ValueError, match=match):
    _batches(_Source(9), **changes)


@pytest.mark.parametrize(
  "changes, match",
  [
    ({"captions": ("&nbsp; \n",)}, "'example-5' is empty after cleaning"),
    ({"captions": ()}, "'example-5' has no caption"),
    ({"image": np.zeros((4, 4, 3), np.float32)}, r"'example-5'.*float32 \[4, 4, 3\]"),
    ({"image": np.zeros((4, 4), np.uint8)}, r"'example-5'.*uint8 \[4, 4\]"),
    ({"image": np.zeros((4, 4, 4), np.uint8)}, r"'example-5'.*uint8 \[4, 4, 4\]"),
    ({"image": np.zeros((0, 4, 3), np.uint8)}, r"'example-5'.*uint8 \[0, 4, 3\]"),
  ],
)
@pytest.mark.parametrize("num_threads", [0, 2])
def test_a_bad_example_is_named(changes, match, num_threads):
  source = _Source(8)
  source.examples[5] = _example(5, **changes)
  with pytest.raises(ValueError, match=match):
    list(_batches(source, num_steps=2, num_threads=num_threads))


def test_dropping_the_iterator_ends_its_threads():
  before = set(threading.enumerate())
  batches = _batches(_Source(9), num_steps=10_000)
  next(batches)
  started = set(threading.enumerate()) - before
  assert started
  del batches
  gc.collect()
  for thread in started:
    thread.join(timeout=30)
    assert not thread.is_alive()


def test_a_script_that_abandons_the_iterator_exits():
  script = """
    import numpy as np
    from rankclip_jax.data import pipeline, source, tokenizer

    example = source.Example("a", np.zeros((4, 4, 3), np.uint8), ("a",))
    batches = pipeline.train_batches(
      [example] * 8, image_size=4, tokenizer=tokenizer.Tokenizer(8),
      augment_scale=None, global_batch=4, num_steps=10**9, seed=0,
    )
    for batch in batches:
      break
    print("done")
  """
  command = [sys.executable, "-W", "error", "-c", textwrap.dedent(script)]
  run = subprocess.run(command, capture_output=True, text=True, timeout=60)
  assert (run.returncode, run.stdout) == (0, "done\n"), run.stderr


@hypothesis.given(
  st.integers(1, 40), st.integers(1, 6), st.integers(1, 5), st.integers(0, 1), st.data()
)
@hypothesis.settings(deadline=None)
def test_evaluation_counts_every_example_once(count, rows, processes, offset, data):
  def load(index):
    assert 0 <= index < count
    return {"x": np.full((2, 3), index + offset, np.float32), "y": np.int32(index)}

  size = rows * processes
  places = np.array(data.draw(st.permutations(range(size)))).reshape(processes, rows)
  parts = [
    list(pipeline.eval_batches(count, batch_size=size, load=load, rows=own))
    for own in places.tolist()
  ]
  assert len({len(part) for part in parts}) == 1
  assert len(parts[0]) == -(-count // (rows * processes))
  seen = []
  for batch in itertools.chain(*zip(*parts, strict=True)):
    assert {name: (a.shape, a.dtype) for name, a in batch.items()} == {
      "x": ((rows, 2, 3), np.float32),
      "y": ((rows,), np.int32),
      "index": ((rows,), np.int32),
      "mask": ((rows,), np.bool_),
    }
    # Padding is the last example once more.
    assert (batch["index"][~batch["mask"]] == count - 1).all()
    np.testing.assert_array_equal(batch["x"][:, 1, 2], batch["index"] + offset)
    np.testing.assert_array_equal(batch["y"], batch["index"])
    seen += batch["index"][batch["mask"]].tolist()
  assert sorted(seen) == list(range(count))
  for own, part in zip(places, parts, strict=True):
    expected = [np.minimum(i * size + own, count - 1) for i in range(len(part))]
    np.testing.assert_array_equal([batch["index"] for batch in part], expected)


def test_evaluation_loads_as_it_goes():
  loaded = []

  def load(index):
    loaded.append(index)
    return {"x": np.zeros(1)}

  batches = pipeline.eval_batches(10, batch_size=4, load=load)
  assert loaded == []
  next(batches)
  assert loaded == [0, 1, 2, 3]


@pytest.mark.parametrize(
  "count, options, match",
  [
    (0, {}, "count=0"),
    (5, {"rows": [4]}, r"some of 0 to 3, each once, got \[4\]"),
    (5, {"rows": []}, "each once, got"),
  ],
)
def test_evaluation_refuses_numbers_that_do_not_fit(count, options, match):
  with pytest.raises(ValueError, match=match):
    pipeline.eval_batches(count, batch_size=4, load=lambda i: {}, **options)
