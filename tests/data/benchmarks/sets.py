"""Small evaluation sets in every layout, made when a test needs them."""

import io
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from tests.data import tars
from tests.data.pictures import encoded


def picture(number: int, form: str = "PNG") -> bytes:
  return encoded(np.full((5, 7, 3), number, np.uint8), form)


def prepare_tfds(
  data_dir: pathlib.Path,
  spec: str,
  features: Mapping[str, Any],
  splits: Mapping[str, Sequence[Mapping[str, Any]]],
) -> pathlib.Path:
  """Prepares a data set under the name of one of TFDS's own.

  Args:
    data_dir: of TFDS.
    spec: `NAME[/CONFIG]`.
    features: with "image", into which each example's number is drawn.
    splits: examples without a picture.

  Returns:
    Its folder.
  """
  name, _, config = spec.partition("/")
  version = tfds.core.Version("1.0.0")

  class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """As small as possible."""

    VERSION = version

    def _info(self):
      return self.dataset_info_from_configs(
        features=tfds.features.FeaturesDict(dict(features))
      )

    def _split_generators(self, dl_manager):
      return {split: self._generate_examples(rows) for split, rows in splits.items()}

    def _generate_examples(self, rows):
      for number, row in enumerate(rows):
        yield number, {"image": io.BytesIO(picture(number)), **row}

  Builder.name = name
  options: dict[str, Any] = {}
  if config:
    own = tfds.core.BuilderConfig(name=config, version=version, description="one")
    Builder.BUILDER_CONFIGS = [own]
    Builder.builder_configs = {config: own}
    options = {"config": config}
  made = Builder(data_dir=data_dir, **options)
  made.download_and_prepare(file_format="array_record")
  return pathlib.Path(made.data_dir)


def prepare_labels(
  data_dir: pathlib.Path,
  spec: str,
  classes: Sequence[str],
  splits: Mapping[str, Sequence[str | int]],
) -> pathlib.Path:
  """A data set of classes, by the labels of its examples."""
  features = {
    "image": tfds.features.Image(shape=(5, 7, 3)),
    "label": tfds.features.ClassLabel(names=list(classes)),
    "id": tfds.features.Text(),
  }
  rows = {
    split: [{"label": label, "id": f"{split}{i}"} for i, label in enumerate(labels)]
    for split, labels in splits.items()
  }
  return prepare_tfds(data_dir, spec, features, rows)


def write_tars(
  folder: pathlib.Path,
  shards: Sequence[Mapping[str, bytes]],
  *,
  split: str = "test",
  names: Sequence[str] = (),
  templates: Sequence[str] = (),
  kind: str = "",
) -> pathlib.Path:
  """A folder in CLIP_benchmark's webdataset layout, by the members of its tars."""
  (folder / split).mkdir(parents=True, exist_ok=True)
  (folder / split / "nshards.txt").write_text(f"{len(shards)}\n")
  for number, members in enumerate(shards):
    (folder / split / f"{number}.tar").write_bytes(tars.tar(members))
  texts = {
    "classnames.txt": names,
    "zeroshot_classification_templates.txt": templates,
    "dataset_type.txt": [kind] if kind else [],
  }
  for name, lines in texts.items():
    if lines:
      (folder / name).write_text("\n".join(lines) + "\n")
  return folder


def labelled(*labels: int, start: int = 0) -> dict[str, bytes]:
  """Members of a tar with one picture a label."""
  members = {}
  for number, label in enumerate(labels, start):
    members[f"s{number:07}.cls"] = str(label).encode()
    members[f"s{number:07}.webp"] = picture(number, "WEBP")
  return members


def captioned(*texts: str) -> dict[str, bytes]:
  """Members of a tar with one picture a text of captions, one a line."""
  members = {}
  for number, text in enumerate(texts):
    members[f"s{number:07}.png"] = picture(number)
    members[f"s{number:07}.txt"] = text.encode()
  return members


def write_class_folders(
  folder: pathlib.Path, counts: Mapping[str, int], split: str = "test"
) -> pathlib.Path:
  """Class folders with so many pictures each, numbered through all."""
  number = 0
  for name, count in counts.items():
    part = folder / split / name
    part.mkdir(parents=True)
    for _ in range(count):
      (part / f"{number:03}.png").write_bytes(picture(number))
      number += 1
  return folder
