"""Embeds a held-out split on all devices, and runs every evaluation on the result."""

import concurrent.futures
import dataclasses
import functools
import logging
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool

from rankclip_jax import checkpoint, plan, sharding
from rankclip_jax import config as configs
from rankclip_jax.config import Config
from rankclip_jax.data import bars, decoding, openmoji_labels, pipeline, transforms
from rankclip_jax.data.rows import check_captions
from rankclip_jax.data.source import Example, Source, identity_of
from rankclip_jax.data.tokenizer import Tokenizer
from rankclip_jax.evals import geometry, results, retrieval, zero_shot
from rankclip_jax.models import layers, sizes, two_tower
from rankclip_jax.stopping import Stopped, StopSignal
from rankclip_jax.together import check_same, together

log = logging.getLogger(__name__)

_THUMBNAIL = 64  # pixels; what the report shows of a picture


@dataclasses.dataclass(frozen=True)
class EvalSet:
  """Held-out examples with a name, and the label sets that classify them."""

  name: str
  source: Source
  label_sets: Sequence[openmoji_labels.LabelSet] = ()


@dataclasses.dataclass(frozen=True)
class Result:
  """The metrics of one data set and task, by CLIP_benchmark's names."""

  dataset: str
  task: str
  metrics: Mapping[str, float | None]
  extras: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """All results, and the embeddings they were computed from."""

  results: Sequence[Result]
  embeddings: Mapping[str, np.ndarray]

  def flat(self) -> dict[str, float | None]:
    """Every metric as `dataset/task/metric`."""
    return {
      f"{r.dataset}/{r.task}/{name}": value
      for r in self.results
      for name, value in r.metrics.items()
    }


def encoder(
  graph: nnx.GraphDef, mesh: Mesh, tower: Literal["encode_image", "encode_text"]
) -> Callable[[Any, Mapping[str, jax.Array]], tuple[jax.Array, jax.Array, jax.Array]]:
  """One tower's evaluation step: (parameters, a global batch) to its embeddings, jitted.

  The batch has "input" (pictures or tokens), "index" and "mask", spread over the mesh;
  embeddings [batch, dim], indices and mask come back whole on every device, because every
  process measures all of them.
  """

  def encode(params, rows):
    model = nnx.merge(graph, params)
    layers.gather_blocks(model, sharding.gather(mesh))
    return getattr(model, tower)(rows["input"]), rows["index"], rows["mask"]

  return jax.jit(encode, out_shardings=sharding.replicated(mesh))


class Evaluator:
  """Compiled once, called with parameters as often as wanted.

  Args:
    graph: of the model, see `two_tower.abstract`.
    mesh: over which batches are spread; its axes are `sharding.BATCH_AXES`.
    batch_size: global; rounded up to a multiple of the devices and padded.
    told: whether this process was told to stop.
  """

  def __init__(
    self,
    graph: nnx.GraphDef,
    mesh: Mesh,
    eval_set: EvalSet,
    tokenizer: Tokenizer,
    *,
    image_size: int,
    batch_size: int,
    told: Callable[[], bool] = lambda: False,
  ):
    self._mesh = mesh
    self._told = told
    self._set = eval_set
    self._tokenizer = tokenizer
    self._image_size = image_size
    self._batch_size = -(-batch_size // mesh.size) * mesh.size
    self._encode_image = encoder(graph, mesh, "encode_image")
    self._encode_text = encoder(graph, mesh, "encode_text")

  def check(self) -> None:
    """Looks at all `examples`, and whether all processes have the same.

    Raises:
      ValueError: on all of them, if one cannot be used or they differ.
    """
    together(lambda: self.examples)
    check_same(str(identity_of(self._set.source)["digest"]), "held-out data")

  @functools.cached_property
  def examples(self) -> Sequence[Example]:
    """All held-out examples, with a thumbnail in each picture's place.

    Pictures are read again when they are embedded: whole splits of them fill memories.

    Raises:
      BadExample: for the first that cannot be used.
    """
    count = len(self._set.source)
    shown = jax.process_index() == 0
    began = time.perf_counter()
    with (
      concurrent.futures.ThreadPoolExecutor() as pool,
      bars.bar("reading what is held out", count, shown=shown) as show,
    ):
      found = []
      for example in pool.map(self._described, range(count)):
        found.append(example)
        show(1)
    seconds = time.perf_counter() - began
    log.info("Held out: %d pictures, all readable (%.1f s).", count, seconds)
    return found

  def __call__(self, params: Any) -> Evaluation:
    """Embeds every held-out picture and caption once and measures.

    Raises:
      Stopped: on all processes after the same batch, once any was told to stop.
    """
    examples = self.examples
    captions = [c for e in examples for c in e.captions]
    owner = np.repeat(np.arange(len(examples)), [len(e.captions) for e in examples])
    picture = lambda i: decoding.exact(self._set.source[i])
    image = self.embed_images(params, len(examples), picture)
    text = self.embed_texts(params, captions)
    first = np.unique(owner, return_index=True)[1]  # each picture's main caption

    found = [
      Result(
        self._set.name,
        "zeroshot_retrieval",
        retrieval.evaluate(image, text, owner),
        {"images": len(examples), "captions": len(captions)},
      ),
      Result(
        self._set.name,
        "zeroshot_retrieval_main_caption",
        retrieval.evaluate(image, text[first], np.arange(len(examples))),
        {"images": len(examples), "captions": len(examples)},
      ),
      *self._classify(params, [e.key for e in examples], image),
      Result(
        self._set.name,
        "geometry",
        geometry.evaluate(image, text[first]),
        {"pairs": len(examples), "captions": "each picture's first"},
      ),
    ]
    embeddings = {
      "image": image,
      "text": text,
      "image_of_text": owner.astype(np.int32),
      "captions": np.array(captions),
      "keys": np.array([e.key for e in examples]),
      "thumbnails": np.stack([e.image for e in examples]),
    }
    return Evaluation(found, embeddings)

  def embed_images(
    self, params: Any, count: int, picture: Callable[[int], np.ndarray]
  ) -> np.ndarray:
    """Embeddings [count, dim] of uint8 pictures of any size, in their order."""

    def load(index: int) -> np.ndarray:
      return transforms.resize_center_crop(picture(index), self._image_size)

    blank = np.zeros((self._image_size, self._image_size, 3), np.uint8)
    return self._embed(self._encode_image, params, count, load, blank)

  def embed_texts(self, params: Any, texts: Sequence[str]) -> np.ndarray:
    """Embeddings [texts, dim] of captions, in their order."""
    tokens = self._tokenizer(texts)
    blank = np.zeros(self._tokenizer.context_length, np.int32)
    encode, load = self._encode_text, tokens.__getitem__
    return self._embed(encode, params, len(texts), load, blank)

  def _described(self, index: int) -> Example:
    """An example with a thumbnail in its picture's place."""
    example = self._set.source[index]
    check_captions(example, self._tokenizer)
    image = decoding.exact(example)
    size = min(self._image_size, _THUMBNAIL)
    thumbnail = transforms.resize_center_crop(image, size)
    return dataclasses.replace(example, image=thumbnail)

  def _classify(
    self, params: Any, keys: Sequence[str], image: np.ndarray
  ) -> list[Result]:
    found = []
    for label_set in self._set.label_sets:
      labels = openmoji_labels.labels_for(label_set, keys)
      member = labels >= 0
      weights = zero_shot.classifier(
        lambda texts: self.embed_texts(params, texts),
        label_set.classes,
        label_set.templates,
      )
      metrics = zero_shot.evaluate(image[member], labels[member], weights)
      counts = np.bincount(labels[member], minlength=len(label_set.classes))
      extras = {
        "images": int(member.sum()),
        "classes": dict(zip(label_set.classes, counts.tolist(), strict=True)),
        "templates": list(label_set.templates),
      }
      name = f"{self._set.name}/{label_set.name}"
      found.append(Result(name, "zeroshot_classification", metrics, extras))
    return found

  def _embed(
    self,
    encode: Callable,
    params: Any,
    count: int,
    load: Callable[[int], np.ndarray],
    blank: np.ndarray,
  ) -> np.ndarray:
    """A process that fails to load goes on with `blank` until all can stop together."""
    out, times = None, np.zeros(count, np.int64)
    failures: list[Exception] = []

    def loaded(index: int) -> np.ndarray:
      try:
        return blank if failures else load(index)
      except Exception as error:
        failures.append(error)
        return blank

    def check() -> None:
      if failures:
        raise failures[0]

    batches = pipeline.eval_batches(
      count,
      batch_size=self._batch_size,
      load=lambda i: {"input": loaded(i)},
      rows=sharding.own_rows(self._mesh, self._batch_size),
    )
    for batch in batches:
      told = np.full(len(batch["mask"]), self._told())
      rows = global_batch({**batch, "told": told}, self._mesh)
      stops = _any(rows.pop("told"))
      embedded, index, mask = jax.device_get(encode(params, rows))
      if stops:
        raise Stopped
      out = np.zeros((count, embedded.shape[1]), np.float32) if out is None else out
      out[index[mask]] = embedded[mask]
      np.add.at(times, index[mask], 1)
    together(check)
    if out is None or not np.all(times == 1):
      raise RuntimeError(
        f"Of {count} examples {np.sum(times == 0)} were never embedded and "
        f"{np.sum(times > 1)} more than once; this is a bug of the evaluation."
      )
    return out


@jax.jit
def _any(flags: Bool[Array, " batch"]) -> Bool[Array, ""]:
  """Whether any row of any process says so, the same on all of them."""
  return jnp.any(flags)


def global_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
  """Rows of this process as its part of arrays that are spread over all devices.

  Args:
    batch: arrays of the rows that `sharding.own_rows` names, in its order.
    mesh: of all devices.
  """
  spread = sharding.over_batch(mesh)
  return {
    name: jax.make_array_from_process_local_data(spread, rows)
    for name, rows in batch.items()
  }


def held_out(config: Config, cache: pathlib.Path | None = None) -> EvalSet:
  """The evaluation split of the configured data."""
  openmoji = config.data.source == "openmoji"
  return EvalSet(
    configs.held_out_name(config),
    plan.source_of(config, "test", cache),
    openmoji_labels.label_sets() if openmoji else (),
  )


def save(
  evaluation: Evaluation, workdir: pathlib.Path, config: Config, step: int
) -> None:
  """Writes one JSON a data set and task, and the embeddings for the report."""
  directory = workdir / "results"
  for r in evaluation.results:
    results.write(
      directory,
      dataset=r.dataset,
      task=r.task,
      metrics=r.metrics,
      model=config.model.name,
      pretrained=workdir.resolve().name,
      extras={**r.extras, "objective": config.objective.name, "step": step},
    )
  path = results.embeddings_path(directory, configs.held_out_name(config))
  with results.replacing(path) as temporary, temporary.open("wb") as file:
    np.savez_compressed(file, **evaluation.embeddings)  # pyright: ignore[reportArgumentType]


def run(config: Config, workdir: pathlib.Path) -> Evaluation:
  """Evaluates a checkpoint of `workdir` (`--config.mode=eval`) and writes its results.

  Raises:
    ValueError: if there is no such checkpoint, or it is of another model.
    Stopped: on all processes, once any was told to stop; nothing is written.
  """
  with StopSignal("Stopping after this batch.") as stop:
    return _run(config, workdir, stop)


def _run(config: Config, workdir: pathlib.Path, stop: StopSignal) -> Evaluation:
  if not (workdir / checkpoint.DIRECTORY).is_dir():
    raise ValueError(f"{workdir} has no checkpoints; train first (--config.mode=train).")
  saved = checkpoint.of_run(workdir)
  step, facts = saved.facts(config.eval.checkpoint)
  # Another number of held-out examples would be measured on what was trained on.
  checkpoint.check_config(facts, config, ("model.", "objective.", "data.holdout"))
  mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp)
  size = sizes.from_json(facts["size"])
  graph, shapes = two_tower.abstract(size, with_bias=facts["logit_bias"])
  shardings = sharding.of_tree(shapes, mesh)
  abstract = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings
  )
  params = saved.restore_params(step, abstract)
  saved.close()
  tokenizer = Tokenizer(size.context_length)
  evaluator = Evaluator(
    graph,
    mesh,
    held_out(config, workdir / plan.INDEX_DIRECTORY),
    tokenizer,
    image_size=size.image_size,
    batch_size=config.eval.batch_size,
    told=lambda: stop.received,
  )
  evaluator.check()
  evaluation = evaluator(params)
  if jax.process_index() == 0:
    save(evaluation, workdir, config, step)
  log.info("Evaluated step %d of %s.", step, workdir)
  return evaluation
