"""A trained model in use: pictures and texts in, embeddings out, on all local devices."""

import concurrent.futures
import dataclasses
import functools
import hashlib
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.traverse_util import flatten_dict

from rankclip_jax import inputs, sharding, start
from rankclip_jax.data import tokenizer as tokenizers
from rankclip_jax.data import transforms
from rankclip_jax.interop import Weights
from rankclip_jax.models import sizes
from rankclip_jax.models.layers import Activation
from rankclip_jax.models.two_tower import TwoTower, abstract

# A remainder is cut into batches of this share of a whole one: one more shape to
# compile, and a lone query does not pay for hundreds of rows of padding.
_SMALL = 16
# Arithmetic, not the space of the embeddings.
_NOT_COMPARED = ("dtype", "remat")
_MAX_LOG_SCALE = 80.0  # beyond it float32 has no factor


def load(
  path: str | os.PathLike,
  *,
  step: str | int = "latest",
  activation: Activation | None = None,
  dtype: str | None = None,
  devices: Sequence[Any] | None = None,
  batch_size: int = 256,
) -> "Model":
  """A model from a workdir, an export, or a checkpoint of another tool.

  Args:
    path: a folder or file; whatever `interop.read` takes, or a workdir.
    step: "latest", "best" or a step, of a workdir.
    activation: "gelu" or "quick_gelu", for files that do not say which.
    dtype: of the arithmetic, "float32" or "bfloat16"; None is the model's own.
    devices: the batch is spread over them; None is all of this process.
    batch_size: rows that are embedded at once, over all devices.

  Raises:
    ValueError: if there is no such model, or an argument does not fit.
  """
  weights = start.read(start.path_of(path), str(step), activation)
  size = sizes.changed(weights.size, activation=activation, dtype=dtype)
  weights = dataclasses.replace(weights, size=size)
  return Model(weights, devices=devices, batch_size=batch_size)


class Model:
  """Both towers with their preprocessing. `load` makes one.

  Attributes:
    size: of the towers.
    source: a line that says where the weights are from.
    tokenizer: texts to ids.
    logit_scale: the factor (not its logarithm) by which cosines become logits.
    logit_bias: what is added to them; 0 where the model has none.
    batch_size: rounded up to a multiple of the devices.
  """

  def __init__(
    self,
    weights: Weights,
    *,
    devices: Sequence[Any] | None = None,
    batch_size: int = 256,
  ):
    if batch_size < 1:
      raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    mesh = sharding.make_mesh(devices=devices or jax.local_devices())
    self.size = weights.size
    self.source = weights.source
    self.tokenizer = tokenizers.Tokenizer(self.size.context_length)
    self.logit_scale, self.logit_bias = _scale_and_bias(weights)
    self._how = _how_resized(weights)
    self._resize = lambda image: transforms.resize_center_crop(
      image, self.size.image_size, **self._how
    )
    rows = -(-batch_size // mesh.size)
    self.batch_size = rows * mesh.size
    self._small = -(-rows // _SMALL) * mesh.size
    self._graph, _ = abstract(self.size, with_bias="logit_bias" in weights.params)
    self._params = jax.device_put(weights.params, sharding.replicated(mesh))
    self._spread = sharding.over_batch(mesh)
    self._compiled: dict[tuple[Callable, bool], Callable] = {}

  def encode_image(self, images: Any, normalize: bool = True) -> np.ndarray:
    """Embeddings of one or many pictures, float32 [images, dim], in their order.

    Args:
      images: one or a sequence of: a path; a Pillow image of any mode; a uint8 array
        [height, width, 3] of any size. Or a uint8 array [images, height, width, 3].
      normalize: to length 1; otherwise the projected features as they are.

    Raises:
      ValueError: naming the picture that is none.
    """
    images = inputs.pictures(images)
    return self._encode_pictures(images, self._prepared, normalize)

  def encode_readable(
    self, paths: Sequence[str | os.PathLike], advance: Callable[[int], None]
  ) -> tuple[np.ndarray, dict[int, str]]:
    """What `encode_image` gives for files, leaving out those that cannot be read.

    Args:
      paths: of pictures.
      advance: called with the number of files that were read since the last call.

    Returns:
      The embeddings, float32 [readable, dim], and by their places in `paths` why the
      other files could not be read.
    """
    unreadable = {}

    def prepared(path: str | os.PathLike, place: int) -> np.ndarray:
      try:
        return self._prepared(path, place)
      except ValueError as error:
        unreadable[place] = str(error)
        return np.zeros((self.size.image_size, self.size.image_size, 3), np.uint8)

    embedded = self._encode_pictures(paths, prepared, True, advance)
    readable = [i for i in range(len(paths)) if i not in unreadable]
    return embedded[readable], dict(sorted(unreadable.items()))

  def encode_pictures(
    self,
    count: int,
    picture: Callable[[int], np.ndarray],
    normalize: bool = True,
    waited: Callable[[float], None] = lambda seconds: None,
  ) -> np.ndarray:
    """What `encode_image` gives for large sets, of which a batch is in memory.

    Args:
      count: of pictures.
      picture: uint8 [height, width, 3] by its place; called by several threads.
      normalize: as there.
      waited: called for each batch with the seconds that devices stood idle for it.
    """
    prepared = lambda place, _: self._prepared(picture(place), place)
    return self._encode_pictures(range(count), prepared, normalize, waited=waited)

  def encode_text(self, texts: str | Iterable[str], normalize: bool = True) -> np.ndarray:
    """Embeddings of one or many texts, float32 [texts, dim], in their order.

    A text with too many tokens is cut, as in training.

    Args:
      texts: one string, or a sequence of them.
      normalize: to length 1; otherwise the projected features as they are.

    Raises:
      ValueError: naming what is no string, or if the model has another vocabulary.
    """
    texts = inputs.texts(texts)
    if texts and self.size.text.vocab_size != tokenizers.VOCABULARY_SIZE:
      raise ValueError(
        f"{self.source} has {self.size.text.vocab_size} tokens, and CLIP's tokenizer "
        f"{tokenizers.VOCABULARY_SIZE}; its texts cannot be read, only its pictures."
      )
    rows = lambda span: self.tokenizer(texts[span])
    return self._embed(_text_features, len(texts), rows, normalize)

  def similarity(self, images: Any, texts: Any) -> np.ndarray:
    """Logits float32 [images, texts]: logit_scale times the cosines, plus logit_bias.

    A softmax over texts makes them the probabilities of zero-shot classification, and
    where there is a bias a sigmoid makes each that of a pair.

    Args:
      images: what `encode_image` takes, or embeddings [images, dim].
      texts: what `encode_text` takes, or embeddings [texts, dim].

    Raises:
      ValueError: as these, and for embeddings of another dimension.
    """
    left = self._unit(images) if inputs.is_floating(images) else self.encode_image(images)
    right = self._unit(texts) if inputs.is_floating(texts) else self.encode_text(texts)
    return np.float32(self.logit_scale) * (left @ right.T) + np.float32(self.logit_bias)

  def preprocess(self, image: Any) -> np.ndarray:
    """One picture as the model sees it, uint8 [image_size, image_size, 3].

    The short side is scaled by antialiased bicubic (or what the weights came with), the
    centre is cut out, alpha is dropped, and the orientation that EXIF notes is ignored:
    open_clip's transform.

    Raises:
      ValueError: if it is no picture.
    """
    return self._prepared(image, 0)

  @property
  def resizing(self) -> dict[str, Any]:
    """How pictures become squares, in JSON types."""
    return {"image_size": self.size.image_size, **self._how}

  @functools.cached_property
  def facts(self) -> dict[str, Any]:
    """What embeddings must share to be comparable, in JSON types."""
    digest = hashlib.blake2b(digest_size=16)
    for name, array in sorted(flatten_dict(self._params, sep="/").items()):
      digest.update(name.encode())
      digest.update(np.ascontiguousarray(array).tobytes())
    size = dataclasses.asdict(self.size)
    return {
      "weights": digest.hexdigest(),
      "size": {k: v for k, v in size.items() if k not in _NOT_COMPARED},
      "tokenizer": self.tokenizer.facts(),
    }

  def _prepared(self, image: Any, place: int) -> np.ndarray:
    return inputs.resized(image, place, self._resize)

  def _encode_pictures(
    self,
    images: Sequence[Any],
    prepared: Callable[[Any, int], np.ndarray],
    normalize: bool,
    advance: Callable[[int], None] = lambda count: None,
    waited: Callable[[float], None] = lambda seconds: None,
  ) -> np.ndarray:
    """Embeddings of pictures that threads prepare; Pillow lets them run side by side."""
    with concurrent.futures.ThreadPoolExecutor() as pool:

      def rows(span: slice) -> np.ndarray:
        ready = list(pool.map(prepared, images[span], range(span.start, span.stop)))
        advance(len(ready))
        return np.stack(ready)

      return self._embed(_image_features, len(images), rows, normalize, waited)

  def _unit(self, embeddings: Any) -> np.ndarray:
    """Embeddings with length 1."""
    x = inputs.array(embeddings).astype(np.float32)
    if x.ndim != 2 or x.shape[1] != self.size.embed_dim:
      raise ValueError(
        f"Embeddings must be of shape [n, {self.size.embed_dim}], got {list(x.shape)}; "
        "pictures must be uint8."
      )
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)

  def _embed(
    self,
    features: Callable,
    count: int,
    rows: Callable[[slice], np.ndarray],
    normalize: bool,
    waited: Callable[[float], None] = lambda seconds: None,
  ) -> np.ndarray:
    """`features` of `count` rows; the host prepares a batch while devices work on one."""
    out = np.zeros((count, self.size.embed_dim), np.float32)
    with concurrent.futures.ThreadPoolExecutor(1) as watcher:
      running, idle_since = None, watcher.submit(time.perf_counter)
      for span, batch in self._batches(count):
        began = time.perf_counter()
        prepared = rows(span)
        now = time.perf_counter()
        waited(now - max(began, idle_since.result()) if idle_since.done() else 0.0)
        padding = [(0, batch - len(prepared))] + [(0, 0)] * (prepared.ndim - 1)
        padded = jax.device_put(np.pad(prepared, padding, mode="edge"), self._spread)
        embedded = self._run(features, normalize)(self._params, padded)
        if running:
          _collect(out, *running)
        running = span, embedded
        idle_since = watcher.submit(_when_ready, embedded)
      if running:
        _collect(out, *running)
    return out

  def _batches(self, count: int) -> Iterator[tuple[slice, int]]:
    """What to embed at once, and the rows to pad it to, of which there are two."""
    done = 0
    while done < count:
      batch = self.batch_size if count - done >= self.batch_size else self._small
      yield slice(done, min(done + batch, count)), batch
      done += batch

  def _run(self, features: Callable, normalize: bool) -> Callable:
    """The compiled function of parameters and rows; made once."""
    if (features, normalize) not in self._compiled:
      run = lambda params, rows: features(nnx.merge(self._graph, params), rows, normalize)
      self._compiled[features, normalize] = jax.jit(run)
    return self._compiled[features, normalize]


def _when_ready(embedded: jax.Array) -> float:
  """The time when a batch is done."""
  jax.block_until_ready(embedded)
  return time.perf_counter()


def _collect(out: np.ndarray, span: slice, embedded: jax.Array) -> None:
  """Waits for a batch; padding is cut off here, where a slice needs no compiler."""
  out[span] = np.asarray(embedded)[: span.stop - span.start]


def _image_features(model: TwoTower, images: Any, normalize: bool) -> jax.Array:
  if normalize:
    return model.encode_image(images)
  mean, std = (jnp.array(x)[None, None, None] for x in (model.mean, model.std))
  pixels = (images.astype(jnp.float32) / 255.0 - mean) / std
  return model.vision(pixels).astype(jnp.float32)


def _text_features(model: TwoTower, tokens: Any, normalize: bool) -> jax.Array:
  if normalize:
    return model.encode_text(tokens)
  return model.text(tokens).astype(jnp.float32)


def _scale_and_bias(weights: Weights) -> tuple[float, float]:
  """The factor of the cosines, and what is added to them."""
  scale, bias = (
    float(weights.params.get(key, 0.0)) for key in ("logit_scale", "logit_bias")
  )
  if not abs(scale) <= _MAX_LOG_SCALE:  # nor if it is NaN
    raise ValueError(
      f"{weights.source}: logit_scale is {scale:g}. It is the logarithm of a factor, in "
      f"CLIP at most ln 100 = 4.6, and may be {_MAX_LOG_SCALE:g} at most; the file is "
      "damaged, or holds something else under this name."
    )
  if not math.isfinite(bias):
    raise ValueError(f"{weights.source}: logit_bias is {bias:g}; the file is damaged.")
  return math.exp(scale), bias


def _how_resized(weights: Weights) -> dict[str, str]:
  """How the model's pictures become squares, as they did where it was trained."""
  how = {
    key: weights.preprocessing.get(key, choices[0])
    for key, choices in transforms.RESIZING.items()
  }
  for key, value in how.items():
    if value not in transforms.RESIZING[key]:
      raise ValueError(
        f"{weights.source}: {key} of its pictures is {value!r}, which is not built here; "
        f"there are {' and '.join(transforms.RESIZING[key])}. The weights can be "
        "exported, and fine-tuned on pictures that are resized as here."
      )
  return how
