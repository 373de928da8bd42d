"""A data set of the evaluation by its name, wherever it lies; nothing is downloaded."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Iterator

from absl import logging

from rankclip_jax.data import prepare
from rankclip_jax.data.benchmarks import items, places, prompts, table
from rankclip_jax.data.benchmarks.built_in import BuiltIn
from rankclip_jax.data.benchmarks.class_folders import ClassFolders
from rankclip_jax.data.benchmarks.items import ItemSource, Layout, NotPrepared
from rankclip_jax.data.benchmarks.prompts import Classes
from rankclip_jax.data.benchmarks.status import status
from rankclip_jax.data.benchmarks.table import Benchmark, Split
from rankclip_jax.data.benchmarks.tar_layout import SHARDS, TYPE, TarLayout, task_of
from rankclip_jax.data.benchmarks.tfds_layout import TfdsLayout


@dataclasses.dataclass(frozen=True)
class Opened:
  """A split of a data set, open.

  Attributes:
    benchmark: which data set.
    split: which split.
    source: the items.
    classes: names that labels are an index into; () for retrieval.
    templates: prompts for them, with {c} or {}; () where none are known.
    where: the folder it is read from; "" for the built-in one.
    folder: the user's own, by which it was asked for; None for one of the table.
    identity: a digest that changes when the examples or the order of labels do.
  """

  benchmark: Benchmark
  split: Split
  source: ItemSource
  classes: tuple[str, ...]
  templates: tuple[str, ...]
  where: str
  folder: pathlib.Path | None
  identity: str

  @property
  def name(self) -> str:
    """By which its other splits are opened."""
    return str(self.folder or self.benchmark.name)

  @property
  def complete(self) -> bool | None:
    """Whether these are as many test examples as the field reports on.

    None where that is not known: of other splits, and of a user's own data set.
    """
    expected = self.benchmark.test_examples
    known = expected and self.split == "test"
    return len(self.source) == expected if known else None


@dataclasses.dataclass(frozen=True)
class Options:
  """Where data sets lie, and what replaces their names and prompts.

  Attributes:
    data_dir: where TFDS keeps data sets; "" is its default.
    folder_dir: where the folders of `places` are; "" is `places.DEFAULT`.
    names_file: class names, one a line, in place of the known ones.
    templates_file: prompts, one a line, in place of the known ones.
    holdout: of the built-in data set, the number of emoji in the test split.
  """

  data_dir: str = ""
  folder_dir: str = ""
  names_file: str = ""
  templates_file: str = ""
  holdout: int = 500


@dataclasses.dataclass(frozen=True)
class _Found:
  layout: Layout
  where: str
  classes: Classes | None
  templates: tuple[str, ...]


def named(name: str, folder_dir: str = "") -> tuple[Benchmark, pathlib.Path | None]:
  """The data set of a name, an alias, or a user's folder; and that folder, resolved.

  Args:
    name: see there.
    folder_dir: see `Options`.

  Raises:
    ValueError: if there is none, or a folder has the name of another data set.
  """
  path = pathlib.Path(name).expanduser()
  folder = path.resolve()
  if not (path.is_absolute() or name.startswith(".")):  # then it may be a name
    try:
      return table.find(name), None
    except ValueError:
      if not folder.is_dir():
        raise
  if not folder.is_dir():
    raise ValueError(
      f"expected a data set of the evaluation, or a folder with one, got {name!r}, which "
      "is not there"
    )
  if known := table.by_file_name(folder.name):
    if folder != places.class_folders(known, folder_dir).resolve():
      raise ValueError(
        f"{folder} has the name of the data set {known.name}, whose results it would "
        "overwrite; rename the folder."
      )
    return known, folder
  if _has_tars(folder) and task_of(folder) == "retrieval":
    return Benchmark(folder.name, folder.name, task="retrieval", metric="recall"), folder
  return Benchmark(folder.name, folder.name), folder


def open_benchmark(
  name: str, split: Split = "test", options: Options | None = None
) -> Opened:
  """Opens a split of a data set.

  A data set prepared by TFDS comes first, then CLIP_benchmark's webdataset layout, then
  class folders; the first that has the split is read. The webdataset layout brings its
  own class names and prompts, as in CLIP_benchmark.

  Args:
    name: of the table, an alias, or a folder in one of the two other layouts.
    split: "test"; "train" and "val" for choosing what is then fitted on "trainval".
    options: see there.

  Raises:
    NotPrepared: if the data set or the split is not there.
    ValueError: as `named`, or if the data set has a defect.
  """
  options = options or Options()
  benchmark, folder = named(name, options.folder_dir)
  needed: Split = "test" if split == "test" else "train"
  seen = []
  for found in _layouts(benchmark, folder, options):
    if found.layout.has(needed):
      return _opened(benchmark, folder, split, found, options)
    seen.append(found.where)
  if seen:
    todo = f"there is no split {needed!r} in {', '.join(seen)}."
    if folder is None:
      todo = f"{todo} {places.needed(benchmark, options.folder_dir)}"
    raise NotPrepared(benchmark.name, todo)
  where = {"data_dir": options.data_dir, "folder_dir": options.folder_dir}
  raise NotPrepared(benchmark.name, status(benchmark, **where).todo)


def _opened(
  benchmark: Benchmark,
  folder: pathlib.Path | None,
  split: Split,
  found: _Found,
  options: Options,
) -> Opened:
  source = items.open_split(found.layout, split)
  templates = found.templates
  if options.templates_file:
    templates = prompts.read_templates(options.templates_file)
  labels = found.classes.labels if found.classes is not None else ()
  facts = [found.where, split, labels, source.versions]
  opened = Opened(
    benchmark,
    split,
    source,
    found.classes.names if found.classes is not None else (),
    templates if benchmark.task == "classification" else (),
    found.where,
    folder,
    hashlib.sha256(json.dumps(facts).encode()).hexdigest(),
  )
  count = f"{len(source)} examples of {benchmark.name}@{split}"
  if opened.complete is False:
    logging.warning("%s, where %d are known", count, benchmark.test_examples)
  logging.info("Found %s in %s", count, found.where or "this package")
  return opened


def _has_tars(folder: pathlib.Path) -> bool:
  return (folder / TYPE).is_file() or any(folder.glob(f"*/{SHARDS}"))


def _layouts(
  benchmark: Benchmark, folder: pathlib.Path | None, options: Options
) -> Iterator[_Found]:
  """What there is of a data set, the first choice first.

  Raises:
    ValueError: if one of them has a defect.
  """
  if benchmark.built_in:
    built_in = BuiltIn(benchmark, options.holdout)
    classes = _renamed(built_in.classes, options)
    yield _Found(built_in, "", classes, built_in.templates)
  elif folder is not None:
    yield (
      _tars(benchmark, folder, options)
      if _has_tars(folder)
      else _folders(benchmark, folder, options)
    )
  else:
    if benchmark.tfds and _in_tfds(benchmark, options.data_dir):
      classes, templates = _known(benchmark, options)
      tfds = TfdsLayout(benchmark, classes, options.data_dir)
      yield _Found(tfds, str(tfds.folder), classes, templates)
    place = places.tars(benchmark, options.folder_dir)
    if place.is_dir():
      yield _tars(benchmark, place, options)
    place = places.class_folders(benchmark, options.folder_dir)
    if place.is_dir() and benchmark.task == "classification":
      yield _folders(benchmark, place, options)


def _in_tfds(benchmark: Benchmark, data_dir: str) -> bool:
  """Whether TFDS has prepared it in a format that is read at random.

  Raises:
    ValueError: if what is prepared is damaged.
  """
  (found,) = prepare.look([benchmark.tfds], data_dir=data_dir)
  if found.state == "damaged":
    raise ValueError(f"{benchmark.name}: {found.todo}")
  return found.state == "ready"


def _known(
  benchmark: Benchmark, options: Options
) -> tuple[Classes | None, tuple[str, ...]]:
  if benchmark.task == "retrieval":
    return None, ()
  classes = prompts.classes_of(benchmark, options.names_file)
  return classes, prompts.templates_of(benchmark)


def _renamed(
  classes: Classes | None, options: Options, duplicates: tuple[str, ...] = ()
) -> Classes | None:
  """Classes under a user's names."""
  if classes is None or not options.names_file:
    return classes
  return prompts.renamed(classes, options.names_file, duplicates)


def _tars(benchmark: Benchmark, folder: pathlib.Path, options: Options) -> _Found:
  layout = TarLayout(folder, benchmark.task, benchmark.duplicates)
  templates = layout.templates()
  if benchmark.names and layout.classes is not None:
    known = prompts.classes_of(benchmark)
    if len(layout.classes) != len(known):
      raise ValueError(
        f"{folder}/classnames.txt: expected the {len(known)} classes of "
        f"{benchmark.name}, got {len(layout.classes)}; is it another data set?"
      )
    templates = templates or prompts.templates_of(benchmark)
  return _Found(
    layout,
    str(folder),
    _renamed(layout.classes, options, benchmark.duplicates),
    templates,
  )


def _folders(benchmark: Benchmark, folder: pathlib.Path, options: Options) -> _Found:
  classes, templates = _known(benchmark, options) if benchmark.names else (None, ())
  layout = ClassFolders(folder, classes)
  if classes is None:
    classes = _renamed(layout.classes, options)
  return _Found(layout, str(folder), classes, templates)
