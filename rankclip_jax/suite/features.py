"""Embeddings of a split and of texts: shared by all processes, kept for the next task."""

import concurrent.futures
import dataclasses
import hashlib
import json
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rankclip_jax.data import decoding
from rankclip_jax.data.benchmarks.items import ItemSource
from rankclip_jax.data.benchmarks.opening import Opened
from rankclip_jax.evals import zero_shot
from rankclip_jax.inference import Model
from rankclip_jax.suite import arrays, parts
from rankclip_jax.together import by_first, together

# Embedded between two looks at whether this process is told to stop.
_TEXTS = 4096


@dataclasses.dataclass(frozen=True)
class Features:
  """A split as a model sees it, whole on every process.

  Attributes:
    image: float32 [examples, dim], as the projection gives them.
    labels: int32 [examples]; -1 for examples that have captions.
    seconds: it took to embed them; 0 if they were read from the cache.
    waited: how many of them this process's devices stood idle, waiting for pictures.
  """

  image: np.ndarray
  labels: np.ndarray
  seconds: float
  waited: float

  @property
  def unit(self) -> np.ndarray:
    """`image` L2-normalised."""
    return self.image / np.linalg.norm(self.image, axis=1, keepdims=True)


def digest(facts: Any) -> str:
  """SHA-256, in hexadecimal, of what JSON can hold."""
  return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def of_model(model: Model) -> str:
  """A digest of all that embeddings depend on beside the data."""
  return digest([model.facts, model.resizing, model.size.dtype])


def of_split(
  model: Model, opened: Opened, cache: pathlib.Path, check: Callable[[], None]
) -> Features:
  """Embeds the pictures of a split, each on one process, or reads what was embedded.

  Args:
    model: the same on every process.
    opened: the split.
    cache: a folder that all processes see; a file is kept there for every model,
      preprocessing and split, of embeddings alone: labels are the data's.
    check: called before every picture; may raise `Stopped`.

  Raises:
    Stopped: on every process, if on any.
    ValueError: naming the example, if one cannot be read or has no direction; on every
      process, if on any.
  """
  count, waits = len(opened.source), []
  facts = [of_model(model), opened.identity]
  path = cache / _name(f"{opened.benchmark.name}_{opened.split}", facts)
  began = time.perf_counter()

  def embed() -> dict[str, np.ndarray]:
    waits.append(0.0)
    own = together(lambda: _own_part(model, opened.source, check, waits.append))
    image = parts.joined(own, count)
    together(lambda: _check_directions(image, opened))
    return {"image": image}

  image = _kept(path, ("image",), count, embed)["image"]
  seconds = time.perf_counter() - began if waits else 0.0
  labels = parts.joined(together(lambda: _own_labels(opened.source)), count)
  return Features(image, labels, seconds, sum(waits))


def of_texts(
  model: Model,
  texts: Sequence[str],
  cache: pathlib.Path,
  check: Callable[[], None],
  name: str,
) -> np.ndarray:
  """Texts [texts, dim] L2-normalised, likewise; `name` begins that of the file."""
  path = cache / _name(f"{name}_texts", [of_model(model), list(texts)])
  embed = lambda: {"text": _embedded(model, texts, check)}
  return _kept(path, ("text",), len(texts), embed)["text"]


def of_classes(
  model: Model, opened: Opened, cache: pathlib.Path, check: Callable[[], None]
) -> np.ndarray:
  """Weights [classes, dim] of the zero-shot classifier, likewise.

  Raises:
    ValueError: as `zero_shot.classifier`.
  """
  facts = [of_model(model), opened.classes, opened.templates]
  path = cache / _name(f"{opened.benchmark.name}_classifier", facts)

  def embed() -> dict[str, np.ndarray]:
    weights = zero_shot.classifier(
      lambda prompts: _embedded(model, prompts, check),
      opened.classes,
      opened.templates,
      allow_duplicates=bool(opened.benchmark.duplicates),
    )
    return {"weights": weights}

  return _kept(path, ("weights",), len(opened.classes), embed)["weights"]


def _own_part(
  model: Model,
  source: ItemSource,
  check: Callable[[], None],
  waited: Callable[[float], None],
) -> np.ndarray:
  """Embeddings of this process's examples."""
  own = parts.own(len(source))

  def picture(place: int) -> np.ndarray:
    check()
    return decoding.exact(source[own[place]])

  return model.encode_pictures(len(own), picture, normalize=False, waited=waited)


def _own_labels(source: ItemSource) -> np.ndarray:
  with concurrent.futures.ThreadPoolExecutor() as pool:
    return np.array(list(pool.map(source.label, parts.own(len(source)))), np.int32)


def _check_directions(image: np.ndarray, opened: Opened) -> None:
  """Refuses embeddings that cannot be normalised."""
  norms = np.linalg.norm(image, axis=1)
  bad = np.flatnonzero(~(np.isfinite(norms) & (norms > 0)))
  if len(bad):
    row = int(bad[0])
    raise ValueError(
      f"{opened.benchmark.name}@{opened.split}: expected embeddings of finite length "
      f"above 0, got {norms[row]:g} for {opened.source[row].key!r}, the first of "
      f"{len(bad)} of {len(norms)}; the model's weights are damaged, or its training "
      "diverged."
    )


def _embedded(
  model: Model, texts: Sequence[str], check: Callable[[], None]
) -> np.ndarray:
  """Embeddings [texts, dim]; every process makes a part of them."""

  def own_part() -> np.ndarray:
    own, found = [texts[i] for i in parts.own(len(texts))], []
    for i in range(0, max(len(own), 1), _TEXTS):
      check()
      found.append(model.encode_text(own[i : i + _TEXTS]))
    return np.concatenate(found)

  return parts.joined(together(own_part), len(texts))


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
  by_first(lambda: arrays.write(path, made))
  return made


def _name(begin: str, facts: Any) -> str:
  """A file name by all that its content depends on."""
  return f"{begin.replace('/', '-')}_{digest(facts)[:16]}.npz"
