"""Every example is embedded once, on any number of devices, and lands in its place."""

import dataclasses

import jax
import numpy as np
import pytest

from rankclip_jax import config, evaluate, sharding
from rankclip_jax.data.source import BadExample, Example
from rankclip_jax.data.tokenizer import Tokenizer
from rankclip_jax.evals import results
from rankclip_jax.models import sizes, two_tower

SIZE = sizes.SIZES["nano"]


class Pictures:
  """Examples of odd sizes with one to three captions each."""

  def __init__(self, count):
    rng = np.random.default_rng(0)
    self._examples = [
      Example(
        key=f"k{i}",
        image=rng.integers(
          0, 256, (rng.integers(9, 40), rng.integers(9, 40), 3), np.uint8
        ),
        captions=tuple(f"number {i} said {j} times" for j in range(1 + i % 3)),
      )
      for i in range(count)
    ]

  def __len__(self):
    return len(self._examples)

  def __getitem__(self, index, /):
    return self._examples[index]


@pytest.fixture(scope="module")
def params():
  return two_tower.init(jax.random.key(0), SIZE, initial_scale=10.0)


def evaluator(data, fsdp, *, count=21, batch_size=8):
  graph, _ = two_tower.abstract(SIZE)
  return evaluate.Evaluator(
    graph,
    sharding.make_mesh(data, fsdp, jax.devices()[: data * fsdp]),
    evaluate.EvalSet("pictures", Pictures(count)),
    Tokenizer(SIZE.context_length),
    image_size=SIZE.image_size,
    batch_size=batch_size,
  )


@pytest.fixture(scope="module")
def alone(params):
  return evaluator(1, 1)(params)


@pytest.mark.parametrize("mesh, batch_size", [((2, 1), 8), ((2, 4), 5), ((1, 8), 64)])
def test_any_mesh_and_batch_give_the_same_embeddings(params, alone, mesh, batch_size):
  many = evaluator(*mesh, batch_size=batch_size)(params)
  for name in ("image", "text"):
    np.testing.assert_allclose(
      many.embeddings[name], alone.embeddings[name], atol=1e-5, rtol=0
    )
  assert many.flat().keys() == alone.flat().keys()
  for name, value in alone.flat().items():
    assert many.flat()[name] == pytest.approx(value, abs=1e-4), name


def test_rows_stand_where_their_examples_stand(params, alone):
  by_ones = evaluator(1, 1, batch_size=1)
  source = Pictures(21)
  for i in (0, 7, 20):
    one = by_ones.embed_images(params, 1, lambda _, i=i: source[i].image)
    np.testing.assert_allclose(alone.embeddings["image"][i], one[0], atol=1e-5)
  texts = [c for i in range(21) for c in source[i].captions]
  assert alone.embeddings["captions"].tolist() == texts
  assert alone.embeddings["image_of_text"].tolist() == [
    i for i in range(21) for _ in source[i].captions
  ]
  one = by_ones.embed_texts(params, [texts[-1]])
  np.testing.assert_allclose(alone.embeddings["text"][-1], one[0], atol=1e-5)


@pytest.mark.parametrize(
  "change, reason",
  [
    ({"image": b"no picture"}, "undecodable picture"),
    ({"captions": ("fine", "&nbsp;")}, "empty caption"),
    ({"captions": ()}, "missing caption"),
  ],
)
def test_what_is_held_out_is_looked_at_before_it_is_needed(change, reason):
  found = evaluator(1, 1)
  examples = found._set.source._examples
  examples[20] = dataclasses.replace(examples[20], **change)
  with pytest.raises(BadExample, match="'k20'") as error:
    _ = found.examples
  assert error.value.reason == reason


def test_a_failure_in_the_middle_waits_for_the_other_processes(params, monkeypatch):
  """They embed all batches, which are collectives, and stop together afterwards."""
  found = evaluator(1, 1)
  found.__dict__["examples"] = found.examples  # looked at; damaged since
  examples, batches = found._set.source._examples, []
  examples[3] = dataclasses.replace(examples[3], image=b"no picture")
  encode = found._encode_image
  found._encode_image = lambda *args: batches.append(1) or encode(*args)
  with pytest.raises(BadExample, match="'k3'"):
    found(params)
  assert len(batches) == 3


def test_an_example_that_is_lost_is_noticed(params, monkeypatch):
  whole = evaluate.pipeline.eval_batches

  def forgetful(*args, **kwargs):
    batches = list(whole(*args, **kwargs))
    return iter(batches[:-1])

  monkeypatch.setattr(evaluate.pipeline, "eval_batches", forgetful)
  with pytest.raises(RuntimeError, match="Of 21 examples 5 were never embedded"):
    evaluator(1, 1)(params)


def test_results_on_disk_carry_what_was_measured(alone, tmp_path):
  cfg = dataclasses.replace(config.Config(), model=config.ModelConfig(name="nano"))
  evaluate.save(alone, tmp_path, cfg, step=12)
  found = {r["task"]: r for r in results.read_all(tmp_path / "results")}
  assert found["zeroshot_retrieval"]["rankclip_jax"] == {
    "images": 21, "captions": 42, "objective": "rankclip", "step": 12,
  }  # fmt: skip
  recall = "image_retrieval_recall@10"
  assert found["zeroshot_retrieval"]["metrics"][recall] == pytest.approx(
    alone.flat()[f"pictures/zeroshot_retrieval/{recall}"]
  )
  with np.load(tmp_path / "results" / "openmoji_embeddings.npz") as stored:
    assert stored["thumbnails"].shape == (21, SIZE.image_size, SIZE.image_size, 3)
    np.testing.assert_array_equal(stored["image"], alone.embeddings["image"])


def test_the_default_best_metric_is_measured(alone):
  dataset, metric = config.best_metric(config.Config()).split("/", 1)
  assert dataset == config.Config().data.source
  assert f"pictures/{metric}" in alone.flat()


def test_evaluating_without_checkpoints_says_what_to_do(tmp_path):
  with pytest.raises(ValueError, match="has no checkpoints; train first"):
    evaluate.run(config.Config(), tmp_path)
