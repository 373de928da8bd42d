"""Small TFDS data sets, prepared by TFDS itself, without TensorFlow."""

import io
import json
import pathlib
import struct

import numpy as np
import tensorflow_datasets as tfds

from rankclip_jax.data import records
from tests.data.pictures import encoded

CLASSES = ["a cat", "a dog"]
FILE = "-00000-of-00001"


def picture(number: int, form: str = "PNG") -> bytes:
  return encoded(np.full((8, 6, 3), number, np.uint8), form)


class RankclipCaptions(tfds.core.GeneratorBasedBuilder):
  """Several captions a picture, as in coco_captions."""

  VERSION = tfds.core.Version("1.2.0")

  def _info(self):
    features = {
      "image": tfds.features.Image(shape=(None, None, 3)),
      "image/filename": tfds.features.Text(),
      "image/id": np.int64,
      "captions": tfds.features.Sequence({"id": np.int64, "text": tfds.features.Text()}),
      "objects": tfds.features.Sequence(
        {"label": tfds.features.ClassLabel(num_classes=9)}
      ),
      "title": tfds.features.Text(),
      "label": tfds.features.ClassLabel(names=CLASSES),
    }
    return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

  def _split_generators(self, dl_manager):
    return {"train": self._generate_examples(20), "test": self._generate_examples(7)}

  def _generate_examples(self, count):
    for i in range(count):
      captions = [{"id": 10 * i + j, "text": f"übung {i}.{j}"} for j in range(1 + i % 3)]
      yield (
        i,
        {
          "image": io.BytesIO(picture(i)),
          "image/filename": f"{i:012}.png",
          "image/id": i,
          "captions": captions,
          "objects": [{"label": i % 9}] * (i % 4),
          "title": f"title {i}",
          "label": i % 2,
        },
      )


class _Config(tfds.core.BuilderConfig):
  """Size of the pictures and how they are kept."""

  def __init__(self, *, channels: int, **keywords):
    super().__init__(version=tfds.core.Version("2.0.0"), **keywords)
    self.channels = channels


class RankclipLabels(tfds.core.GeneratorBasedBuilder):
  """Arrays with labels and nothing else; the last one has no label."""

  VERSION = tfds.core.Version("2.0.0")
  BUILDER_CONFIGS = [  # noqa: RUF012
    _Config(name="grey", channels=1, description="grey"),
    _Config(name="rgb-8", channels=3, description="colours"),
  ]

  def _info(self):
    shape = (4, 5, self.builder_config.channels)
    features = {
      "image": tfds.features.Tensor(shape=shape, dtype=np.uint8),
      "label": tfds.features.ClassLabel(names=CLASSES),
    }
    return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

  def _split_generators(self, dl_manager):
    return {"train": self._generate_examples()}

  def _generate_examples(self):
    shape = (4, 5, self.builder_config.channels)
    for i in range(4):
      array = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape) + i
      yield i, {"image": array, "label": i % 2 if i < 3 else -1}


class RankclipManual(tfds.core.GeneratorBasedBuilder):
  """Needs a file from its user."""

  VERSION = tfds.core.Version("1.0.0")
  MANUAL_DOWNLOAD_INSTRUCTIONS = """
    Get numbers.txt from your
    library.
  """

  def _info(self):
    features = {
      "image": tfds.features.Image(shape=(None, None, 3)),
      "text": tfds.features.Text(),
    }
    return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

  def _split_generators(self, dl_manager):
    return {"val": self._generate_examples(dl_manager.manual_dir / "numbers.txt")}

  def _generate_examples(self, path):
    for line in path.read_text().split():
      yield line, {"image": io.BytesIO(picture(int(line))), "text": line}


def prepare(builder: type, data_dir: pathlib.Path, **options) -> pathlib.Path:
  """The folder of a data set, prepared in `data_dir`."""
  made = builder(data_dir=data_dir, **options)
  made.download_and_prepare(file_format="array_record")
  return pathlib.Path(made.data_dir)


def to_tfrecord(folder: pathlib.Path) -> list[pathlib.Path]:
  """Makes of a prepared data set what TFDS writes by default, but for the checksums."""
  written = []
  for path in sorted(folder.glob("*.array_record-*")):
    reader = records.open_reader(str(path))
    target = path.with_name(path.name.replace("array_record", "tfrecord"))
    with target.open("wb") as file:
      for record in reader.read_all():
        file.write(struct.pack("<QI", len(record), 0) + record + bytes(4))
    path.unlink()
    written.append(target)
  info = folder / "dataset_info.json"
  described = json.loads(info.read_text())
  info.write_text(json.dumps(described | {"fileFormat": "tfrecord"}))
  return written
