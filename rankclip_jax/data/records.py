"""Records of ArrayRecord files: serialized `tf.train.Example`s, without TensorFlow.

`encode` and `write_array_record` make what `ArrayRecordSource` reads: a record for every
picture, with the features `image`, `caption` and `key`. `Fields` reads that and what
others wrote, tensorflow_datasets above all.
"""

import contextlib
import os
from collections.abc import Iterable, Sequence
from concurrent import futures
from typing import Any

from array_record.python import array_record_module  # pyright: ignore
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from google.protobuf import message as protobuf
from rich import progress

from rankclip_jax.data.source import BadExample, Example, Reason, Source

# TensorFlow's example.proto and feature.proto, by their numbers on the wire.
_PROTO = """
name: "rankclip_jax/example.proto" package: "rankclip_jax" syntax: "proto3"
message_type { name: "BytesList"
  field { name: "value" number: 1 label: LABEL_REPEATED type: TYPE_BYTES } }
message_type { name: "FloatList"
  field { name: "value" number: 1 label: LABEL_REPEATED type: TYPE_FLOAT } }
message_type { name: "Int64List"
  field { name: "value" number: 1 label: LABEL_REPEATED type: TYPE_INT64 } }
message_type { name: "Feature" oneof_decl { name: "kind" }
  field { name: "bytes_list" number: 1 label: LABEL_OPTIONAL type: TYPE_MESSAGE
    type_name: ".rankclip_jax.BytesList" oneof_index: 0 }
  field { name: "float_list" number: 2 label: LABEL_OPTIONAL type: TYPE_MESSAGE
    type_name: ".rankclip_jax.FloatList" oneof_index: 0 }
  field { name: "int64_list" number: 3 label: LABEL_OPTIONAL type: TYPE_MESSAGE
    type_name: ".rankclip_jax.Int64List" oneof_index: 0 } }
message_type { name: "Features"
  field { name: "feature" number: 1 label: LABEL_REPEATED type: TYPE_MESSAGE
    type_name: ".rankclip_jax.Features.FeatureEntry" }
  nested_type { name: "FeatureEntry" options { map_entry: true }
    field { name: "key" number: 1 label: LABEL_OPTIONAL type: TYPE_STRING }
    field { name: "value" number: 2 label: LABEL_OPTIONAL type: TYPE_MESSAGE
      type_name: ".rankclip_jax.Feature" } } }
message_type { name: "Example"
  field { name: "features" number: 1 label: LABEL_OPTIONAL type: TYPE_MESSAGE
    type_name: ".rankclip_jax.Features" } }
"""
# No read-ahead and no threads of its own: records are read one by one, in any order.
_READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"
# To count only: leaves the index on disk, which opens a file in a third of the time.
_COUNTER_OPTIONS = (
  f"{_READER_OPTIONS},index_storage_option:offloaded,footer_prefetch_bytes:0"
)
_READER_BUFFER = 32 << 10
_THREADS = 8


def _example_message() -> Any:
  """The message class, in a pool of its own, beside any TensorFlow in the process."""
  pool = descriptor_pool.DescriptorPool()
  pool.Add(text_format.Parse(_PROTO, descriptor_pb2.FileDescriptorProto()))  # pyright: ignore
  return message_factory.GetMessageClass(
    pool.FindMessageTypeByName("rankclip_jax.Example")
  )


_Message = _example_message()


def encode(key: str, image: bytes, captions: Sequence[str]) -> bytes:
  """The record of an encoded picture and its captions; equal ones make equal bytes."""
  message = _Message()
  feature = message.features.feature
  feature["key"].bytes_list.value.append(key.encode())
  feature["image"].bytes_list.value.append(image)
  feature["caption"].bytes_list.value.extend(text.encode() for text in captions)
  return message.SerializeToString(deterministic=True)


def decode(record: bytes) -> tuple[str, bytes, tuple[str, ...]]:
  """Key, encoded picture and captions of a record that `encode` made.

  Raises:
    ValueError: if it is no such record.
  """
  fields = Fields(record)
  key, image, captions = (fields.values(name) for name in ("key", "image", "caption"))
  if len(key) != 1 or len(image) != 1:
    raise ValueError(f"expected features key, image and caption, got {fields.names()}")
  return key[0].decode(), image[0], tuple(text.decode() for text in captions)


class Fields:
  """The features of a serialized `tf.train.Example`, by their names."""

  def __init__(self, record: bytes):
    """Parses the record.

    Raises:
      ValueError: if it is none.
    """
    try:
      self._features = _Message.FromString(record).features.feature
    except protobuf.DecodeError as error:
      raise ValueError(f"the record is no tf.train.Example ({error})") from error

  def names(self) -> list[str]:
    return sorted(self._features)

  def values(self, name: str) -> Sequence[Any]:
    """Bytes, floats or integers; none if there is no such feature."""
    if name not in self._features:
      return ()
    feature = self._features[name]
    kind = feature.WhichOneof("kind")
    # A list: each look at a value in the message copies it.
    return list(getattr(feature, kind).value) if kind else ()

  def first_of(self, names: Iterable[str]) -> Sequence[Any]:
    """Values of the first of these features that has any."""
    return next((found for name in names if (found := self.values(name))), ())


def as_text(value: bytes | int | float) -> str:
  """A key, whatever it is; different ones stay different."""
  return (
    value.decode(errors="surrogateescape") if isinstance(value, bytes) else str(value)
  )


def write_array_record(
  path: str | os.PathLike[str], examples: Iterable[Example], group_size: int = 1
) -> int:
  """Writes a local file for `ArrayRecordSource`; it is there when it is whole.

  Args:
    path: the file; its folder must be there.
    examples: with encoded pictures; their shards are not kept.
    group_size: see `write_records`.

  Returns:
    The number of records.

  Raises:
    ValueError: if a picture is not encoded.
    OSError: if the file cannot be written.
  """
  return write_records(path, map(_encoded, examples), group_size)


def _encoded(example: Example) -> bytes:
  if isinstance(example.image, bytes):
    return encode(example.key, example.image, example.captions)
  raise ValueError(f"example {example.key!r}: encode its picture first")


def write_records(
  path: str | os.PathLike[str], contents: Iterable[bytes], group_size: int = 1
) -> int:
  """Writes a local ArrayRecord file of any records; it is there when it is whole.

  Args:
    path: the file; its folder must be there.
    contents: of the records.
    group_size: records that are compressed, and so read, together. With 1, what random
      access wants, they are not compressed at all: JPEGs gain nothing from it.

  Returns:
    The number of records.

  Raises:
    OSError: if the file cannot be written.
  """
  temporary = f"{os.fspath(path)}.{os.getpid()}.tmp"
  options = "group_size:1,uncompressed" if group_size == 1 else f"group_size:{group_size}"
  count = 0
  try:
    writer = _written(array_record_module.ArrayRecordWriter, temporary, options)
    try:
      for content in contents:
        _written(writer.write, content)
        count += 1
    finally:
      _written(writer.close)
    if count_records(temporary) != count:
      raise OSError(f"{temporary} was not written in full; is the disk full?")
    os.replace(temporary, path)
  finally:
    with contextlib.suppress(FileNotFoundError):
      os.remove(temporary)
  return count


def _written(function: Any, *arguments: Any) -> Any:
  """Calls array_record, whose errors of the disk are RuntimeErrors."""
  try:
    return function(*arguments)
  except RuntimeError as error:
    raise OSError(str(error)) from error


def open_reader(path: str, options: str = _READER_OPTIONS) -> Any:
  """array_record's reader of a local file; ask `ok()` before anything else."""
  return array_record_module.ArrayRecordReader(
    path, options=options, file_reader_buffer_size=_READER_BUFFER
  )


def count_records(path: str) -> int | None:
  """Records of a local file; None if it is missing, cut off, or no ArrayRecord.

  The index is at the end. Without it no record can be found, and the reader says 0 with
  no error; so `ok()` has to be asked.
  """
  reader = open_reader(path, _COUNTER_OPTIONS)
  return reader.num_records() if reader.ok() else None


def count_all(paths: Sequence[str]) -> list[int | None]:
  """`count_records` of many files at once."""
  with futures.ThreadPoolExecutor(_THREADS) as pool:
    return list(pool.map(count_records, paths))


def captions_of(
  values: Sequence[bytes], where: str, *, key: str, shard: str, strict: bool
) -> tuple[str, ...]:
  """Texts of a feature, without the empty ones.

  Args:
    values: of the feature.
    where: begins the message of an error.
    key: of the example.
    shard: that has it.
    strict: refuse empty ones, also beside others.

  Raises:
    BadExample: if there is none, all are empty, or one is not UTF-8.
  """

  def bad(reason: Reason) -> BadExample:
    shown = f"{list(values)!r:.200}"
    message = f"{where}: {reason}, got {shown}; mend it, or take it out."
    return BadExample(message, key=key, reason=reason, shard=shard)

  if not values:
    raise bad("missing caption")
  try:
    texts = [value.decode() for value in values]
  except UnicodeDecodeError as error:
    raise bad("undecodable caption") from error
  kept = tuple(text for text in texts if text.strip())
  if not kept or (strict and len(kept) < len(texts)):
    raise bad("empty caption")
  return kept


def check_every(source: Source, name: str) -> None:
  """Reads every example, but decodes no picture.

  Raises:
    ValueError: of the first bad example.
  """
  with futures.ThreadPoolExecutor(_THREADS) as pool:
    starts = range(0, len(source), 256)
    for start in track(starts, f"Checking {name}"):
      rows = range(start, min(start + 256, len(source)))
      try:
        list(pool.map(source.__getitem__, rows))
      except BadExample as error:
        raise ValueError(str(error)) from error


def track(items: Sequence[Any], description: str) -> Iterable[Any]:
  """The items, with a bar on a terminal's standard error."""
  console = progress.Console(stderr=True)
  quiet = not console.is_terminal
  return progress.track(
    items, description, console=console, disable=quiet, transient=True
  )
