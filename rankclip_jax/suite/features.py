"""Embeddings of a split: its examples over all processes, kept for the next task."""

import dataclasses
import hashlib
import json
import os
import pathlib
import time

import jax
import numpy as np
from jax.experimental import multihost_utils

from rankclip_jax.data import decoding
from rankclip_jax.data.benchmarks.items import ItemSource
from rankclip_jax.data.benchmarks.opening import Opened
from rankclip_jax.inference import Model
from rankclip_jax.together import together


@dataclasses.dataclass(frozen=True)
class Features:
  """A split as a model sees it, whole on every process.

  Attributes:
    image: float32 [examples, dim], as the projection gives them.
    labels: int32 [examples]; -1 for examples that have captions.
    seconds: it took to embed them; 0 if they were read from the cache.
  """

  image: np.ndarray
  labels: np.ndarray
  seconds: float

  @property
  def unit(self) -> np.ndarray:
    """`image` L2-normalised."""
    return self.image / np.linalg.norm(self.image, axis=1, keepdims=True)


def of_split(model: Model, opened: Opened, cache: pathlib.Path) -> Features:
  """Embeds the pictures of a split, each on one process, or reads what was embedded.

  Args:
    model: the same on every process.
    opened: the split.
    cache: a folder that all processes see; a file is kept there for every model,
      preprocessing and split.

  Raises:
    ValueError: naming the example, if one cannot be read; on every process, if on any.
  """
  path = cache / f"{_name(model, opened)}.npz"
  if _agreed(path.is_file()):
    with np.load(path) as stored:
      return Features(stored["image"], stored["labels"], 0.0)
  began = time.perf_counter()
  image, labels = together(lambda: _own_part(model, opened.source))
  found = Features(
    _joined(image, len(opened.source)),
    _joined(labels, len(opened.source)),
    time.perf_counter() - began,
  )
  if jax.process_index() == 0:
    _keep(path, found)
  return found


def _own_part(model: Model, source: ItemSource) -> tuple[np.ndarray, np.ndarray]:
  """Embeddings and labels of this process's examples, padded to an equal part."""
  rows = -(-len(source) // jax.process_count())
  own = range(len(source))[jax.process_index() * rows :][:rows]
  labels = np.full(rows, -1, np.int32)

  def picture(place: int) -> np.ndarray:
    item = source[own[place]]
    labels[place] = item.label
    return decoding.exact(item)

  image = np.zeros((rows, model.size.embed_dim), np.float32)
  image[: len(own)] = model.encode_pictures(len(own), picture, normalize=False)
  return image, labels


def _joined(part: np.ndarray, count: int) -> np.ndarray:
  """The parts of all processes, one after the other, without the padding at the end."""
  if jax.process_count() == 1:
    return part[:count]
  parts = multihost_utils.process_allgather(part)
  return np.reshape(parts, (-1, *part.shape[1:]))[:count]


def _agreed(here: bool) -> bool:
  """Whether process 0 has it: what one reads, all must."""
  if jax.process_count() == 1:
    return here
  return bool(np.reshape(multihost_utils.process_allgather(np.array(here)), -1)[0])


def _name(model: Model, opened: Opened) -> str:
  """A file name by all that the embeddings depend on."""
  facts = [model.facts, model.resizing, opened.where, opened.split, len(opened.source)]
  digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
  return f"{opened.benchmark.name.replace('/', '-')}_{opened.split}_{digest[:16]}"


def _keep(path: pathlib.Path, found: Features) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f"{path.stem}.{os.getpid()}.tmp.npz")
  np.savez(temporary, image=found.image, labels=found.labels)
  temporary.replace(path)
