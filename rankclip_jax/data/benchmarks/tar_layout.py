"""CLIP_benchmark's webdataset layout: tars by number, and class names beside them.

    FOLDER/classnames.txt, zeroshot_classification_templates.txt, dataset_type.txt
    FOLDER/test/nshards.txt, 0.tar, 1.tar, ...

A sample is a picture with its class as a number in `.cls`, or, where `dataset_type.txt`
says "retrieval", with captions in the lines of `.txt`.
"""

import pathlib
import tarfile

from rankclip_jax.data import files, tar_index
from rankclip_jax.data.benchmarks import prompts
from rankclip_jax.data.benchmarks.items import Item
from rankclip_jax.data.benchmarks.prompts import Classes
from rankclip_jax.data.benchmarks.table import Split, Task
from rankclip_jax.data.offsets import Offsets
from rankclip_jax.data.source import BadExample
from rankclip_jax.data.tar_index import BLOCK, PICTURE, TEXT, TarIndex

CLASS_NAMES = "classnames.txt"
TEMPLATES = "zeroshot_classification_templates.txt"
TYPE = "dataset_type.txt"
SHARDS = "nshards.txt"


class TarLayout:
  """A folder of that layout.

  Attributes:
    folder: of the data set.
    classes: as `classnames.txt` has them; None for retrieval.
  """

  def __init__(self, folder: pathlib.Path, task: Task, duplicates: tuple[str, ...] = ()):
    """Reads what lies beside the tars.

    Args:
      folder: of the data set.
      task: for which it is read.
      duplicates: class names that may be there twice.

    Raises:
      ValueError: if the folder is for another task, or has no class names.
    """
    self.folder = folder
    kind = task_of(folder)
    if kind != task:
      raise ValueError(
        f"{folder / TYPE}: expected a data set for {task}, got one for {kind}."
      )
    self.classes: Classes | None = None
    if task == "classification":
      self.classes = prompts.read_classes(folder / CLASS_NAMES, duplicates)

  def templates(self) -> tuple[str, ...]:
    """The templates beside the tars; none where the file is missing."""
    path = self.folder / TEMPLATES
    return prompts.read_templates(path) if path.is_file() else ()

  def has(self, split: Split) -> bool:
    return (self.folder / split).is_dir()

  def open(self, split: Split) -> "TarItems":
    """The items of a split.

    Raises:
      ValueError: see `TarItems`.
    """
    paths = shards(self.folder / split)
    return TarItems(paths, None if self.classes is None else len(self.classes))


def task_of(folder: pathlib.Path) -> Task:
  """What a data set in this layout is for.

  Raises:
    ValueError: if it is for something else.
  """
  path = folder / TYPE
  kind = path.read_text().strip().lower() if path.is_file() else "classification"
  if kind not in ("classification", "retrieval"):
    raise ValueError(f"{path}: expected classification or retrieval, got {kind!r}.")
  return "retrieval" if kind == "retrieval" else "classification"


def shards(folder: pathlib.Path) -> list[str]:
  """Paths of a split's tars.

  Raises:
    ValueError: if there are others than `nshards.txt` says.
  """
  path = folder / SHARDS
  try:
    count = int(path.read_text())
  except (OSError, ValueError) as error:
    raise ValueError(f"{path}: expected the number of tars ({error}).") from error
  wanted = [f"{i}.tar" for i in range(count)]
  there = {tar.name for tar in folder.glob("*.tar")}
  absent, others = [n for n in wanted if n not in there], sorted(there - set(wanted))
  if absent or others or not count:
    raise ValueError(
      f"{path}: expected {count} tars from 0.tar on, got {len(there)}; missing are "
      f"{absent[:3]}, beyond it {others[:3]}. Fetch the folder again."
    )
  return [str(folder / name) for name in wanted]


class TarItems:
  """The samples of tars. All labels and captions are read and checked at once."""

  def __init__(self, paths: list[str], classes: int | None):
    """Reads the headers of the tars, and labels or captions.

    Args:
      paths: of the tars.
      classes: how many there are; None for captions.

    Raises:
      ValueError: if a tar is damaged or a sample lacks a picture, a label of a class or
        captions, by tar and key.
    """
    self._tars = [(path, tar_index.build(path)) for path in paths]
    self._items = Offsets((len(tar) for _, tar in self._tars), "there are items")
    if not len(self):
      raise ValueError(f"There is no sample in {', '.join(paths[:3])}; fetch it again.")
    self._labels: list[list[int]] = []
    self._captions: list[list[tuple[str, ...]]] = []
    for path, tar in self._tars:
      _check(path, tar)
      if classes is not None:
        self._labels.append(_labels(path, tar, classes))
      else:
        self._captions.append([_caption(path, tar, row) for row in range(len(tar))])

  @property
  def versions(self) -> list[tuple[str, int, str]]:
    """Of the tars."""
    return [(pathlib.Path(path).name, *tar.version) for path, tar in self._tars]

  def __len__(self) -> int:
    return len(self._items)

  def __getitem__(self, index: int, /) -> Item:
    """Reads an item.

    Raises:
      ValueError: if the tar has changed.
    """
    shard, row = self._items.locate(index)
    path, tar = self._tars[shard]
    if files.version(path) != tar.version:
      raise ValueError(f"{path} has changed since it was opened; start again.")
    picture = _member(path, tar, row, PICTURE)
    if self._labels:
      return Item(tar.key(row), picture, (), path, self._labels[shard][row])
    return Item(tar.key(row), picture, self._captions[shard][row], path)

  def label(self, index: int, /) -> int:
    shard, row = self._items.locate(index)
    return self._labels[shard][row] if self._labels else -1


def _bad(path: str, key: str, detail: str) -> BadExample:
  message = f"{path}, sample {key!r}: {detail}; fetch the tar again."
  return BadExample(message, key=key, reason="malformed row", shard=path)


def _check(path: str, tar: TarIndex) -> None:
  if tar.loss is not None:
    raise ValueError(f"{path}: {tar.loss.detail}; fetch it again.")
  keys = set()
  for row, members in enumerate(tar.members.tolist()):
    key = tar.key(row)
    if key in keys:
      raise _bad(path, key, "expected one sample of each key, got another")
    keys.add(key)
    if not members[PICTURE]:
      raise _bad(path, key, "expected a picture, got none of a known kind")
    if not members[PICTURE + 1]:
      raise _bad(path, key, "expected a picture, got no bytes")


def _member(path: str, tar: TarIndex, row: int, kind: int) -> bytes:
  block, size = tar.members[row, kind : kind + 2].tolist()
  return files.read(path, block * BLOCK, size)


def _labels(path: str, tar: TarIndex, classes: int) -> list[int]:
  """Labels in the order of the samples; the index of tars does not know `.cls`."""
  found: dict[str, bytes] = {}
  with tarfile.open(path, "r:") as file:
    for member in file:
      stem, _, kind = member.name.rpartition(".")
      if kind.lower() == "cls" and member.isreg():
        found[stem] = files.read(path, member.offset_data, member.size)
  labels = []
  for row in range(len(tar)):
    key = tar.key(row)
    text = found.get(key)
    if text is None:
      raise _bad(path, key, "expected a label in .cls, got none")
    try:
      label = int(text)
    except ValueError:
      label = -1
    if not 0 <= label < classes:
      detail = f"expected a label from 0 to {classes - 1} in .cls, got {text[:20]!r}"
      raise _bad(path, key, detail)
    labels.append(label)
  return labels


def _caption(path: str, tar: TarIndex, row: int) -> tuple[str, ...]:
  key = tar.key(row)
  if not tar.members[row, TEXT]:
    raise _bad(path, key, "expected captions in .txt, got none")
  try:
    text = _member(path, tar, row, TEXT).decode()
  except UnicodeDecodeError as error:
    raise _bad(path, key, f"expected captions in UTF-8 ({error})") from error
  captions = tuple(text.splitlines())  # as CLIP_benchmark does, for the same captions
  if not captions or not all(caption.strip() for caption in captions):
    detail = f"expected a caption in each line of .txt, got {captions}"
    raise _bad(path, key, detail)
  return captions
