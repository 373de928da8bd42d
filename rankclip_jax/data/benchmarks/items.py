"""An example of an evaluation set, and what is raised where a set is not there.

Where nothing else is said, a defect of an evaluation set is a ValueError that names file
and key: numbers of a set with holes in it would compare with nothing.
"""

import dataclasses
from collections.abc import Sequence
from typing import Protocol

from rankclip_jax.data.benchmarks.table import Split
from rankclip_jax.data.source import Example

# Where a data set has no validation split, each example of so many in `train` is one.
HOLDOUT_EVERY = 5


@dataclasses.dataclass(frozen=True)
class Item(Example):
  """A picture with its class, or with its captions.

  Attributes:
    label: from 0, into the classes of the set; -1 where it has captions instead.
  """

  label: int = -1


class ItemSource(Protocol):
  """Random access to items; `Source` with labels. For many threads at once."""

  @property
  def versions(self) -> Sequence[Sequence[str | int]]:
    """What changes when an item does, such as names, sizes and dates of its files."""
    ...

  def __len__(self) -> int: ...

  def __getitem__(self, index: int, /) -> Item: ...

  def label(self, index: int, /) -> int:
    """That of an item, without its picture where that can be."""
    ...


class NotPrepared(ValueError):
  """A data set, or a split of it, is not there. The message says what to do.

  Attributes:
    name: of the data set.
    todo: what to do, without the name.
  """

  def __init__(self, name: str, todo: str):
    super().__init__(f"{name} is not there: {todo}")
    self.name, self.todo = name, todo

  def __reduce__(self):
    return NotPrepared, (self.name, self.todo)


class Selected:
  """Some items of a source, by their indices."""

  def __init__(self, source: ItemSource, indices: Sequence[int]):
    self._source, self._indices = source, indices

  @property
  def versions(self) -> Sequence[Sequence[str | int]]:
    return [*self._source.versions, list(self._indices)]

  def __len__(self) -> int:
    return len(self._indices)

  def __getitem__(self, index: int, /) -> Item:
    if not 0 <= index < len(self):
      raise IndexError(f"there are items 0 to {len(self) - 1}, got {index}")
    return self._source[self._indices[index]]

  def label(self, index: int, /) -> int:
    return self._source.label(self._indices[index])


class Joined:
  """The items of two splits, one after the other."""

  def __init__(self, first: ItemSource, second: ItemSource):
    self._first, self._second = first, second

  @property
  def versions(self) -> Sequence[Sequence[str | int]]:
    return [*self._first.versions, *self._second.versions]

  def __len__(self) -> int:
    return len(self._first) + len(self._second)

  def __getitem__(self, index: int, /) -> Item:
    if not 0 <= index < len(self):
      raise IndexError(f"there are items 0 to {len(self) - 1}, got {index}")
    at = index - len(self._first)
    return self._first[index] if at < 0 else self._second[at]

  def label(self, index: int, /) -> int:
    at = index - len(self._first)
    return self._first.label(index) if at < 0 else self._second.label(at)


class Layout(Protocol):
  """A data set as it lies on disk."""

  def has(self, split: Split) -> bool:
    """Whether it keeps `train`, `val` or `test` apart."""
    ...

  def open(self, split: Split) -> ItemSource:
    """The items of a split that it has."""
    ...


def open_split(layout: Layout, split: Split) -> ItemSource:
  """A split, made of those that are there.

  Without a validation split, every fifth training example is one: `train` is the rest,
  `trainval` all.

  Args:
    layout: of the data set; it has "test", or "train" where another split is wanted.
    split: "train", "val", "trainval" or "test".

  Raises:
    ValueError: if it has defects.
  """
  if split == "test":
    return layout.open("test")
  if layout.has("val"):
    if split == "trainval":
      return Joined(layout.open("train"), layout.open("val"))
    return layout.open(split)
  train = layout.open("train")
  if split == "trainval":
    return train
  held = [i % HOLDOUT_EVERY == HOLDOUT_EVERY - 1 for i in range(len(train))]
  return Selected(train, [i for i, out in enumerate(held) if out == (split == "val")])
