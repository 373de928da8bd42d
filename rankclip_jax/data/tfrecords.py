"""TFRecord files of a TFDS data set, written again as ArrayRecord, without TensorFlow.

Both hold the same records. TFRecords can only be read from the start, ArrayRecords at
random.
"""

import json
import os
import pathlib
import struct
from collections.abc import Iterator

import tensorflow_datasets as tfds
from absl import logging

from rankclip_jax.data import records

_LENGTH = struct.Struct("<Q")
_CHECKSUM = 4  # bytes, after the length and after the record; not verified


def read_tfrecord(path: str | os.PathLike[str]) -> Iterator[bytes]:
  """The records of a local file that is not compressed.

  Raises:
    ValueError: if it ends within one.
  """
  with open(path, "rb") as file:
    while head := file.read(_LENGTH.size + _CHECKSUM):
      if len(head) < _LENGTH.size + _CHECKSUM:
        raise ValueError(f"{path} ends within a record; prepare it again.")
      (length,) = _LENGTH.unpack_from(head)
      # A damaged length may be any number: nothing is read beyond the file.
      left = os.fstat(file.fileno()).st_size - file.tell()
      if length + _CHECKSUM > left:
        raise ValueError(f"{path} ends within a record; prepare it again.")
      yield file.read(length + _CHECKSUM)[:length]


def convert(folder: pathlib.Path) -> None:
  """Writes ArrayRecords beside the TFRecords of a prepared data set.

  TFDS then knows both. What an earlier call has written is kept.

  Args:
    folder: of the version, as in `~/tensorflow_datasets/cifar10/3.0.2`.

  Raises:
    ValueError: if a file is damaged or lacks records.
  """
  shards = []
  for split in tfds.builder_from_directory(folder).info.splits.values():
    assert split.filename_template is not None  # It was read from files.
    template = split.filename_template.replace(filetype_suffix="array_record")
    targets = template.sharded_filepaths(split.num_shards)
    shards += zip(split.filepaths, targets, split.shard_lengths, strict=True)
  for source, target, count in records.track(shards, f"Converting {folder}"):
    if records.count_records(os.fspath(target)) != count:
      written = records.write_records(target, read_tfrecord(source))
      if written != count:
        os.remove(target)
        raise ValueError(
          f"{source}: expected {count} records, got {written}; prepare it again."
        )
  _note(folder / "dataset_info.json")
  logging.info("Converted %d files of %s", len(shards), folder)


def _note(path: pathlib.Path) -> None:
  """Notes in the data set's own description that the format is there."""
  info = json.loads(path.read_text(encoding="utf-8"))
  formats = {*info.get("alternativeFileFormats", []), "array_record"}
  info["alternativeFileFormats"] = sorted(formats)
  temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
  temporary.write_text(json.dumps(info, indent=2), encoding="utf-8")
  os.replace(temporary, path)
