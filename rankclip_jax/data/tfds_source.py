"""Pictures and captions of data sets that tensorflow_datasets has prepared.

Reading needs no TensorFlow: tensorflow_datasets says what is where, array_record reads.
"""

import operator
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from rankclip_jax.data import files, records, tfds_sets
from rankclip_jax.data.array_record_source import Shards, local_copies
from rankclip_jax.data.source import BadExample, Example, Reason, Shard

_CAPTIONS = ("captions", "caption", "text", "title")
_TEXTS = ("text", "caption", "raw")  # within such features, where they are dicts
_KEYS = (
  "image/filename", "image/file_name", "image/id", "image_id", "file_name", "filename",
  "id", "key",
)  # fmt: skip


class TfdsSource:
  """A split of a prepared TFDS data set as a `Source`.

  Pictures stay encoded, unless the data set keeps arrays. A class label becomes the name
  of the class, as the data set spells it. The key is the data set's own name of the
  picture, or SPLIT#INDEX; the shard is the data set with config and version.

  All examples keep their places: those of a damaged file are bad examples.
  """

  def __init__(
    self,
    spec: str,
    *,
    split: str = "train",
    data_dir: str | os.PathLike[str] | None = None,
    strict: bool = False,
    caption_key: str = "",
    image_key: str = "",
    cache: pathlib.Path | None = None,
  ):
    """Finds the data set on disk, and opens it.

    Args:
      spec: `NAME[/CONFIG][:VERSION][@SPLIT]`. By default the default config, and the
        newest version that is prepared.
      split: where `spec` does not say; in TFDS's syntax, such as `train[:90%]`.
      data_dir: where TFDS keeps data sets; None is its default.
      strict: read all examples now, and refuse bad ones.
      caption_key: the feature with captions or a class label, `a/b` within another; ""
        is a known name, or the only class label.
      image_key: the feature with the picture; "" is "image", or the only picture.
      cache: a folder for copies of what is not local, see `ArrayRecordSource`.

    Raises:
      ValueError: if data set, config, version, split or features are not there, or not in
        a format that is read at random; if `strict`, for bad examples.
    """
    text, _, asked = spec.partition("@")
    self._split, self._strict = asked or split, strict
    where = os.fspath(data_dir) if data_dir else ""
    name = tfds_sets.Name.parse(text)
    folder = tfds_sets.locate(name, where, cache)
    builder = tfds_sets.open_builder(folder, name, where)
    self._shard = builder.info.full_name
    features = dict(_leaves(builder.info.features))
    self._image, self._arrays = _image(features, image_key, self._shard)
    self._caption, self._names = _caption(features, caption_key, self._shard)
    self._key = next((key for key in _KEYS if _is_scalar(features.get(key))), "")
    self._shards = _shards(builder, self._split, where, cache)
    if strict:
      self._check_files()
      records.check_every(self, self._shard)
    logging.info("Found %d examples of %s@%s", len(self), self._shard, self._split)

  def __len__(self) -> int:
    return len(self._shards)

  @property
  def shards(self) -> list[Shard]:
    """The files, see `source.identity_of`."""
    return self._shards.shards()

  def __getitem__(self, index: int, /) -> Example:
    """Reads an example.

    Raises:
      BadExample: if its file is damaged, or picture or captions are missing or empty.
      ValueError: if the file has changed.
    """
    place = operator.index(index)
    key = f"{self._split}#{place}"
    record = self._shards.read(*self._shards.locate(place))
    where = f"{self._shard}, example {key}"

    def bad(reason: Reason, detail: str) -> BadExample:
      return BadExample(f"{where}: {detail}", key=key, reason=reason, shard=self._shard)

    try:
      fields = records.Fields(record)
    except ValueError as error:
      raise bad("malformed row", f"{error}; prepare the data set again.") from error
    own = fields.values(self._key) if self._key else ()
    if own:
      key = records.as_text(own[0])
      where = f"{self._shard}, example {self._split}#{place}, key {key!r}"
    image = self._array(record) if self._arrays else fields.values(self._image)[:1]
    if len(image) == 0:
      raise bad("missing picture", f"it has no {self._image!r}.")
    image = image if isinstance(image, np.ndarray) else image[0]
    if len(image) == 0:
      raise bad("empty picture", "its picture has no bytes.")
    values, names = fields.values(self._caption), self._names
    if names is not None:
      values = [names[i].encode() for i in values if 0 <= i < len(names)]
    captions = records.captions_of(
      values, where, key=key, shard=self._shard, strict=self._strict
    )
    return Example(key, image, captions, self._shard)

  def _array(self, record: bytes) -> np.ndarray:
    """The picture of a data set that keeps arrays; greys as three channels."""
    array = self._arrays.deserialize_example_np(record)[self._image]
    return np.broadcast_to(array, (*array.shape[:2], 3))

  def _check_files(self) -> None:
    bad = self._shards.damaged()
    if bad:
      raise ValueError(f"{bad[0]}; prepare {self._shard} again, or copy the file again.")


def _shards(
  builder: Any,
  split: str,
  data_dir: str,
  cache: pathlib.Path | None,
) -> Shards:
  """The records of a split.

  Raises:
    ValueError: if there is no such split, or nothing in it.
  """
  splits = builder.info.splits
  has = ", ".join(f"{name} ({part.num_examples})" for name, part in splits.items())
  try:
    parts = splits[split].file_instructions
  except (ValueError, KeyError, AssertionError) as error:
    message = f"{builder.info.full_name} has no split {split!r}; it has {has}. ({error})"
    raise ValueError(message) from error
  if not sum(part.take for part in parts):
    raise ValueError(f"{builder.info.full_name}@{split} is empty; there are {has}.")
  names = paths = [os.fspath(part.filename) for part in parts]
  if files.is_remote(data_dir):
    root = pathlib.Path(builder.info.full_name)
    names = [f"{data_dir.rstrip('/')}/{root / os.path.basename(p)}" for p in paths]
    paths = local_copies(names, cache)
  takes, skips = [part.take for part in parts], [part.skip for part in parts]
  return Shards(paths, takes, skips=skips, names=names)


def _leaves(features: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
  """Every feature within others by its path, as records name it."""
  for name, feature in features.items():
    inner = getattr(feature, "feature", feature)  # of a sequence
    if isinstance(inner, tfds.features.FeaturesDict):
      yield from _leaves(inner, f"{prefix}{name}/")
    else:
      yield prefix + name, feature


def _is_scalar(feature: Any) -> bool:
  return feature is not None and feature.shape == ()


def _is_text(feature: Any) -> bool:
  inner = getattr(feature, "feature", feature)
  return inner.shape == () and inner.np_dtype == np.object_


def _image(features: Mapping[str, Any], asked: str, name: str) -> tuple[str, Any]:
  """The picture's feature, and where it is no encoded one, how to read it.

  Raises:
    ValueError: if there is none, or it is no picture of 8 bits.
  """
  kinds = [key for key, f in features.items() if isinstance(f, tfds.features.Image)]
  image = asked or (
    "image" if "image" in features else kinds[0] if len(kinds) == 1 else ""
  )
  feature: Any = features.get(image)
  if isinstance(feature, tfds.features.Image) and feature.np_dtype != np.float32:
    return image, None
  shape = getattr(feature, "shape", None) or ()
  if len(shape) == 3 and shape[2] in (1, 3) and feature.np_dtype == np.uint8:
    return image, tfds.features.FeaturesDict({image: feature})
  raise ValueError(
    f"{name}: expected a picture of 8 bits in {image or 'one feature'!r}, got "
    f"{feature or 'none'}; say which feature holds it (image_key); there are "
    f"{', '.join(features)}."
  )


def _caption(
  features: Mapping[str, Any], asked: str, name: str
) -> tuple[str, list[str] | None]:
  """The captions' feature, and if it is a label, the names of the classes.

  Raises:
    ValueError: if there is none, or it is neither text nor label.
  """
  tries = [asked] if asked else list(_CAPTIONS)
  tries = [key for t in tries for key in (t, *(f"{t}/{text}" for text in _TEXTS))]
  found = [key for key in tries if key in features]
  labels = [key for key, f in features.items() if isinstance(f, tfds.features.ClassLabel)]
  if not found and not asked and len(labels) == 1:
    found = labels
  feature = features.get(found[0]) if found else None
  if isinstance(feature, tfds.features.ClassLabel):
    return found[0], list(feature.names)
  if feature is not None and _is_text(feature):
    return found[0], None
  raise ValueError(
    f"{name}: expected captions or a class label in {asked or ' or '.join(_CAPTIONS)}, "
    f"got {feature or 'none'}; say which feature holds them (caption_key); there are "
    f"{', '.join(features)}."
  )
