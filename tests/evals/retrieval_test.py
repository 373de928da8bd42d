"""Retrieval ranks against a plain sort, known answers, and the inputs it refuses."""

import itertools
import tracemalloc
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankclip_jax.evals import retrieval


def exact_rows(rng, rows):
  """Unit rows of ±1/4: every dot product is exact in float32, and ties abound."""
  return (rng.choice([-1, 1], size=(rows, 16)) / 4).astype(np.float32)


def random_rows(rng, rows, dim=32):
  values = rng.standard_normal((rows, dim))
  return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def on_circle(*degrees):
  angles = np.radians(degrees)
  return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def sorted_ranks(image, text, image_of_text):
  """The definition: sort all candidates of each query (Python's sort is stable)."""
  image_ranks, text_ranks = [], []
  for t, owner in enumerate(image_of_text):
    order = sorted(range(len(image)), key=lambda i, t=t: -float(image[i] @ text[t]))
    image_ranks.append(order.index(owner) + 1)
  for i in range(len(image)):
    order = sorted(range(len(text)), key=lambda t, i=i: -float(image[i] @ text[t]))
    text_ranks.append(min(order.index(t) + 1 for t in np.flatnonzero(image_of_text == i)))
  return image_ranks, text_ranks


@settings(deadline=None, max_examples=60)
@given(
  captions=st.lists(st.integers(1, 4), min_size=1, max_size=9),
  seed=st.integers(0, 2**32 - 1),
  tile_bytes=st.sampled_from([4, 64, 256, retrieval.TILE_BYTES]),
)
def test_ranks_are_those_of_a_stable_sort(captions, seed, tile_bytes):
  rng = np.random.default_rng(seed)
  image_of_text = rng.permutation(np.repeat(np.arange(len(captions)), captions))
  image = exact_rows(rng, len(captions))
  # Half of the texts copy their image, so that good ranks occur, and ties among them.
  text = exact_rows(rng, len(image_of_text))
  text[::2] = image[image_of_text[::2]]
  image_ranks, text_ranks = retrieval.ranks(
    image, text, image_of_text, tile_bytes=tile_bytes
  )
  expected_image_ranks, expected_text_ranks = sorted_ranks(image, text, image_of_text)
  assert image_ranks.tolist() == expected_image_ranks
  assert text_ranks.tolist() == expected_text_ranks


def test_known_ranks():
  image = on_circle(0, 90, 180)
  text = on_circle(15, 120, 80, 170)
  image_ranks, text_ranks = retrieval.ranks(image, text, np.array([0, 0, 2, 1]))
  # The texts see the images in these orders: 0 1 2, 1 2 0, 1 0 2 and 2 1 0.
  assert image_ranks.tolist() == [1, 3, 3, 2]
  # The images see the texts in these orders: 0 2 1 3, 2 1 0 3 and 3 1 2 0.
  assert text_ranks.tolist() == [1, 4, 3]


def test_metrics_of_known_ranks():
  image = on_circle(*np.arange(12) * 7.0)
  # Seen from an angle beyond them all, image i is number 12 - i.
  text = np.repeat(on_circle(100), 12, axis=0)
  metrics = retrieval.evaluate(image, text, np.arange(12))
  assert metrics["image_retrieval_recall@1"] == pytest.approx(1 / 12)
  assert metrics["image_retrieval_recall@5"] == pytest.approx(5 / 12)
  assert metrics["image_retrieval_recall@10"] == pytest.approx(10 / 12)
  assert metrics["image_retrieval_median_rank"] == 6.5
  assert metrics["image_retrieval_mean_rank"] == 6.5


def test_perfect_embeddings_score_one_in_any_order_of_captions():
  rng = np.random.default_rng(0)
  image = random_rows(rng, 20)
  image_of_text = rng.permutation(np.repeat(np.arange(20), 5))
  metrics = retrieval.evaluate(image, image[image_of_text], image_of_text)
  assert set(metrics.values()) == {1.0}
  assert list(metrics) == [
    f"{direction}_{name}"
    for direction in ("image_retrieval", "text_retrieval")
    for name in ("recall@1", "recall@5", "recall@10", "median_rank", "mean_rank")
  ]


def test_the_best_placed_caption_counts():
  image = on_circle(0, 90)
  text = on_circle(80, 40, 5, 95)
  _, text_ranks = retrieval.ranks(image, text, np.array([0, 0, 0, 1]))
  assert text_ranks.tolist() == [1, 1]
  _, text_ranks = retrieval.ranks(image, text, np.array([0, 0, 1, 0]))
  assert text_ranks.tolist() == [2, 4]


def test_constant_embeddings_score_at_chance():
  image = np.repeat(exact_rows(np.random.default_rng(0), 1), 50, axis=0)
  image_of_text = np.repeat(np.arange(50), 2)
  metrics = retrieval.evaluate(image, image[image_of_text], image_of_text)
  assert metrics["image_retrieval_recall@1"] == pytest.approx(1 / 50)
  assert metrics["image_retrieval_recall@10"] == pytest.approx(10 / 50)
  assert metrics["image_retrieval_mean_rank"] == pytest.approx(51 / 2)
  assert metrics["text_retrieval_recall@1"] == pytest.approx(1 / 50)
  assert metrics["text_retrieval_recall@10"] == pytest.approx(5 / 50)


def test_random_embeddings_score_near_chance():
  rng = np.random.default_rng(1)
  metrics = retrieval.evaluate(
    random_rows(rng, 400), random_rows(rng, 2000), np.arange(2000) % 400
  )
  assert metrics["image_retrieval_recall@10"] == pytest.approx(10 / 400, abs=0.015)
  assert metrics["image_retrieval_mean_rank"] == pytest.approx(200.5, rel=0.05)
  # The best of 5 among 2,000 stands at 2,001 / 6 on average.
  assert metrics["text_retrieval_mean_rank"] == pytest.approx(2001 / 6, rel=0.1)


def test_ranks_follow_a_permutation_of_images_and_texts():
  rng = np.random.default_rng(2)
  image, text = random_rows(rng, 30), random_rows(rng, 70)
  image_of_text = np.concatenate([np.arange(30), rng.integers(0, 30, 40)])
  image_ranks, text_ranks = retrieval.ranks(image, text, image_of_text)

  new_image, new_text = rng.permutation(30), rng.permutation(70)
  moved_to = np.argsort(new_image)
  permuted_image_ranks, permuted_text_ranks = retrieval.ranks(
    image[new_image],
    text[new_text],
    moved_to[image_of_text[new_text]],
    tile_bytes=1000,
  )
  np.testing.assert_array_equal(permuted_image_ranks, image_ranks[new_text])
  np.testing.assert_array_equal(permuted_text_ranks, text_ranks[new_image])


def test_one_image_with_most_of_the_captions():
  rng = np.random.default_rng(3)
  image, text = exact_rows(rng, 8), exact_rows(rng, 60)
  image_of_text = np.concatenate([np.full(53, 3), [0, 1, 2, 4, 5, 6, 7]])
  image_ranks, text_ranks = retrieval.ranks(image, text, image_of_text, tile_bytes=128)
  expected_image_ranks, expected_text_ranks = sorted_ranks(image, text, image_of_text)
  assert image_ranks.tolist() == expected_image_ranks
  assert text_ranks.tolist() == expected_text_ranks


def test_memory_stays_below_the_full_matrix_of_scores():
  rng = np.random.default_rng(4)
  image, text = random_rows(rng, 600, dim=8), random_rows(rng, 3000, dim=8)
  full_matrix = 600 * 3000 * 4
  tracemalloc.start()
  retrieval.ranks(image, text, np.arange(3000) % 600, tile_bytes=2**16)
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert peak < full_matrix / 10


UNIT = on_circle(0, 90)


@pytest.mark.parametrize(
  "image, text, image_of_text, message",
  [
    (UNIT[0], UNIT, [0, 1], r"image: expected .*\[rows, dim\].*\(2,\)"),
    (UNIT, UNIT[:0], [], r"text: expected .*at least one row.*\(0, 2\)"),
    (UNIT, np.eye(3), [0, 1, 1], r"one dim, got \{'image': 2, 'text': 3\}"),
    (UNIT, UNIT * 2, [0, 1], r"text: .*norm 1.* 2 of 2 .*row 0 with norm 2"),
    (UNIT * [1, np.nan], UNIT, [0, 1], r"image: .*finite.*norm nan"),
    (UNIT, np.array([[1, 0], [0, np.inf]]), [0, 1], r"text: .*row 1 with norm inf"),
    (UNIT, UNIT, [0], r"image_of_text: .*\(2,\).*\(1,\)"),
    (UNIT, UNIT, [0.0, 1.0], r"image_of_text: expected integers.*float64"),
    (UNIT, UNIT, [0, 2], r"from 0 to 1 .*got 2 for text 1"),
    (UNIT, UNIT, [-1, 1], r"from 0 to 1 .*got -1 for text 0"),
    (UNIT, UNIT, [1, 1], r"caption for each of 2 images, .*first is image 0"),
  ],
)
def test_refuses(image, text, image_of_text, message):
  with pytest.raises(ValueError, match=message):
    retrieval.evaluate(image, text, np.array(image_of_text))


def test_accepts_half_precision():
  rng = np.random.default_rng(5)
  image, text = exact_rows(rng, 7), exact_rows(rng, 7)
  assert retrieval.evaluate(
    image.astype(np.float16), text.astype(np.float16), np.arange(7)
  ) == retrieval.evaluate(image, text, np.arange(7))


def test_recalls_are_clip_benchmarks_own():
  torch = pytest.importorskip("torch", reason="requirements-peers.txt")
  pytest.importorskip("clip_benchmark", reason="requirements-peers.txt")
  from clip_benchmark.metrics import zeroshot_retrieval

  rng = np.random.default_rng(0)
  captions = rng.integers(1, 6, 37)
  owner = np.repeat(np.arange(37), captions)
  image = random_rows(rng, 37)
  text = image[owner] + 0.35 * rng.standard_normal((len(owner), 32)).astype(np.float32)
  text /= np.linalg.norm(text, axis=1, keepdims=True)
  starts = np.concatenate([[0], np.cumsum(captions)])
  places = [list(range(a, b)) for a, b in itertools.pairwise(starts)]
  batches = [
    (torch.from_numpy(image[rows]), [places[i] for i in rows])
    for rows in (range(20), range(20, 37))
  ]
  theirs = zeroshot_retrieval.evaluate(
    types.SimpleNamespace(encode_image=lambda x: x, encode_text=lambda x: x),
    batches,
    lambda rows: torch.from_numpy(text[rows]),
    "cpu",
    amp=False,
    recall_k_list=[1, 5, 10],
  )
  ours = retrieval.evaluate(image, text, owner)
  assert 0.2 < theirs["image_retrieval_recall@1"] < 0.95
  assert len(theirs) == 6
  for name, value in theirs.items():
    assert ours[name] == pytest.approx(value, abs=1e-6), name
