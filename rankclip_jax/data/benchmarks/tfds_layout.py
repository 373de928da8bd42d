"""Evaluation sets that tensorflow_datasets has prepared; read without TensorFlow."""

import pathlib

from rankclip_jax.data import files, tfds_sets
from rankclip_jax.data.benchmarks.items import Item
from rankclip_jax.data.benchmarks.prompts import Classes
from rankclip_jax.data.benchmarks.table import Benchmark, Split
from rankclip_jax.data.source import BadExample
from rankclip_jax.data.tfds_source import TfdsSource


class TfdsLayout:
  """A prepared data set; the labels of its classes are what TFDS calls them.

  The order of the classes is the one here, whatever it is in TFDS.
  """

  def __init__(self, benchmark: Benchmark, classes: Classes | None, data_dir: str):
    """Looks at what is prepared.

    Args:
      benchmark: with a name of TFDS.
      classes: that are evaluated; None for retrieval.
      data_dir: where TFDS keeps data sets; "" is its default.

    Raises:
      ValueError: if it is not prepared as ArrayRecord, or damaged; if TFDS has other
        classes.
    """
    self._benchmark, self._classes, self._data_dir = benchmark, classes, data_dir
    name = tfds_sets.Name.parse(benchmark.tfds)
    self.folder = tfds_sets.locate(name, data_dir, None)
    self._info = tfds_sets.open_builder(self.folder, name, data_dir).info
    if classes is not None:
      self._check_classes(classes)

  def has(self, split: Split) -> bool:
    name = self._split(split)
    return name in self._info.splits and self._info.splits[name].num_examples > 0

  def open(self, split: Split) -> "TfdsItems":
    """The items of a split.

    Raises:
      ValueError: if files are missing.
    """
    name = self._split(split)
    paths = [pathlib.Path(path) for path in self._info.splits[name].filepaths]
    if absent := [path.name for path in paths if not path.is_file()]:
      raise ValueError(
        f"{self.folder}: expected {len(paths)} files of the split {name!r}, but "
        f"{len(absent)} are missing ({', '.join(absent[:3])}); prepare it again."
      )
    labelled = self._classes is not None
    source = TfdsSource(
      f"{self._benchmark.tfds}@{name}",
      data_dir=self._data_dir or None,
      caption_key=self._benchmark.label if labelled else "",
      strict=not labelled,  # An empty caption beside others shows only so.
    )
    return TfdsItems(source, paths, self._classes, self._benchmark)

  def _split(self, split: Split) -> str:
    return getattr(self._benchmark.splits, split)

  def _check_classes(self, classes: Classes) -> None:
    feature = dict(self._info.features).get(self._benchmark.label)
    there = getattr(feature, "names", None)
    if there is None:
      raise ValueError(
        f"{self.folder}: expected class labels in {self._benchmark.label!r}, got "
        f"{feature or 'none'}; there are {', '.join(self._info.features)}."
      )
    absent = sorted(set(classes.labels) - set(there))
    others = [] if self._benchmark.subset else sorted(set(there) - set(classes.labels))
    if absent or others:
      raise ValueError(
        f"{self.folder}: expected the {len(classes)} classes of {self._benchmark.name}, "
        f"got {len(there)}; missing are {absent[:3]}, unknown {others[:3]}. Prepare it "
        "with the version of tensorflow_datasets in requirements.txt."
      )


class TfdsItems:
  """The items of a split."""

  def __init__(
    self,
    source: TfdsSource,
    paths: list[pathlib.Path],
    classes: Classes | None,
    benchmark: Benchmark,
  ):
    self._source, self._paths, self._benchmark = source, paths, benchmark
    self._label_of = None
    self._seen: dict[int, int] = {}  # labels
    if classes is not None:
      self._label_of = {label: i for i, label in enumerate(classes.labels)}

  @property
  def versions(self) -> list[tuple[str, int, str]]:
    """Of the files of the split."""
    return [(path.name, *files.version(str(path))) for path in self._paths]

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, index: int, /) -> Item:
    """Reads an item.

    Raises:
      BadExample: if it cannot be read, or its class is none of those that are evaluated.
    """
    if self._label_of is None:
      example = self._source[index]
      return Item(example.key, example.image, example.captions, example.shard)
    try:
      example = self._source[index]
    except BadExample as error:
      if error.reason == "missing caption":  # TFDS's number is no class at all.
        raise self._other_class(error.key, error.shard, "another number") from error
      raise
    (label,) = example.captions
    if label not in self._label_of:
      raise self._other_class(example.key, example.shard, repr(label))
    self._seen[index] = self._label_of[label]
    return Item(example.key, example.image, (), example.shard, self._seen[index])

  def label(self, index: int, /) -> int:
    """As in the item, which is read if nobody did yet; raises the same."""
    if self._label_of is None:
      return -1
    return self._seen[index] if index in self._seen else self[index].label

  def _other_class(self, key: str, shard: str, got: str) -> BadExample:
    return BadExample(
      f"{shard}, example {key!r}: expected a label of the {len(self._label_of or ())} "
      f"classes of {self._benchmark.name}, got {got}; prepare it again.",
      key=key,
      reason="malformed row",
      shard=shard,
    )
