"""Embeddings of a split and of texts: shared by all processes, kept for the next task."""

import dataclasses
import hashlib
import json
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from rankclip_jax.data import decoding
from rankclip_jax.data.benchmarks.items import ItemSource
from rankclip_jax.data.benchmarks.opening import Opened
from rankclip_jax.evals import zero_shot
from rankclip_jax.inference import Model
from rankclip_jax.suite import arrays, parts
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
  count = len(opened.source)
  facts = [model.facts, model.resizing, opened.where, opened.split, count]
  path = cache / _name(f"{opened.benchmark.name}_{opened.split}", facts)
  began, embedded = time.perf_counter(), []

  def embed() -> dict[str, np.ndarray]:
    image, labels = together(lambda: _own_part(model, opened.source))
    embedded.append(True)
    return {"image": parts.joined(image, count), "labels": parts.joined(labels, count)}

  found = _kept(path, ("image", "labels"), count, embed)
  seconds = time.perf_counter() - began if embedded else 0.0
  return Features(found["image"], found["labels"], seconds)


def of_texts(
  model: Model, texts: Sequence[str], cache: pathlib.Path, name: str
) -> np.ndarray:
  """Texts [texts, dim] L2-normalised, likewise; `name` begins that of the file."""
  path = cache / _name(f"{name}_texts", [model.facts, list(texts)])
  embed = lambda: {"text": _embedded(model, texts)}
  return _kept(path, ("text",), len(texts), embed)["text"]


def of_classes(model: Model, opened: Opened, cache: pathlib.Path) -> np.ndarray:
  """Weights [classes, dim] of the zero-shot classifier, likewise.

  Raises:
    ValueError: as `zero_shot.classifier`.
  """
  facts = [model.facts, opened.classes, opened.templates]
  path = cache / _name(f"{opened.benchmark.name}_classifier", facts)

  def embed() -> dict[str, np.ndarray]:
    weights = zero_shot.classifier(
      lambda prompts: _embedded(model, prompts),
      opened.classes,
      opened.templates,
      allow_duplicates=bool(opened.benchmark.duplicates),
    )
    return {"weights": weights}

  return _kept(path, ("weights",), len(opened.classes), embed)["weights"]


def _own_part(model: Model, source: ItemSource) -> tuple[np.ndarray, np.ndarray]:
  """Embeddings and labels of this process's examples."""
  own = parts.own(len(source))
  labels = np.full(len(own), -1, np.int32)

  def picture(place: int) -> np.ndarray:
    item = source[own[place]]
    labels[place] = item.label
    return decoding.exact(item)

  return model.encode_pictures(len(own), picture, normalize=False), labels


def _embedded(model: Model, texts: Sequence[str]) -> np.ndarray:
  """Embeddings [texts, dim]; every process makes a part of them."""
  own = [texts[i] for i in parts.own(len(texts))]
  return parts.joined(together(lambda: model.encode_text(own)), len(texts))


def _kept(
  path: pathlib.Path,
  names: Sequence[str],
  count: int,
  make: Callable[[], dict[str, np.ndarray]],
) -> dict[str, np.ndarray]:
  """The arrays at `path`, of `count` rows each, or what `make` gives, which is kept."""
  stored = arrays.read(path, names)
  whole = stored is not None and all(len(x) == count for x in stored.values())
  if parts.everywhere(whole) and stored is not None:
    return stored
  made = make()
  together(lambda: arrays.write(path, made) if jax.process_index() == 0 else None)
  return made


def _name(begin: str, facts: Any) -> str:
  """A file name by all that its content depends on."""
  digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
  return f"{begin.replace('/', '-')}_{digest[:16]}.npz"
