"""A folder of class folders, `FOLDER/test/CLASS/PICTURE`, as ImageFolder has them."""

import pathlib

from rankclip_jax.data import files
from rankclip_jax.data.benchmarks import prompts
from rankclip_jax.data.benchmarks.items import Item
from rankclip_jax.data.benchmarks.prompts import Classes
from rankclip_jax.data.benchmarks.table import Split

_SPLITS = ("train", "val", "test")
_PICTURES = {
  ".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm",
}  # fmt: skip


class ClassFolders:
  """Such a folder, whose class folders are called by label, by name or by number.

  Attributes:
    folder: of the data set.
    classes: the given ones; else the folders of all splits, sorted; by number, if all
      are called by numbers.
  """

  def __init__(self, folder: pathlib.Path, classes: Classes | None = None):
    """Looks which classes there are.

    Args:
      folder: of the data set.
      classes: of a known data set.

    Raises:
      ValueError: if there is no class, or one is there under two names.
    """
    self.folder = folder
    if classes is None:
      parts = [folder / split for split in _SPLITS if (folder / split).is_dir()]
      found = {path.name for part in parts for path in _folders(part)}
      numbers = all(name.isascii() and name.isdigit() for name in found)
      names = sorted(found, key=(lambda n: (int(n), n)) if numbers else None)
      if not names:
        raise ValueError(
          f"{folder}: expected {folder.name}/test/CLASS/PICTURE, got no class folder."
        )
      classes = Classes(tuple(names), tuple(name.replace("_", " ") for name in names))
      prompts.check_distinct(classes.names, folder)
    self.classes = classes

  def has(self, split: Split) -> bool:
    return (self.folder / split).is_dir()

  def open(self, split: Split) -> "FolderItems":
    """The items of a split.

    Raises:
      ValueError: if there is another folder than those of the classes, a class has no
        picture, or something is no picture.
    """
    return FolderItems(self.folder / split, self.classes)


class FolderItems:
  """The pictures of class folders, class by class and sorted by name."""

  def __init__(self, folder: pathlib.Path, classes: Classes):
    """Lists the pictures; see `ClassFolders.open`."""
    self._folder = folder
    there = _folders(folder)
    label_of = _label_of(folder, there, classes)
    self._rows = [
      (path, label_of[part.name]) for part in there for path in _pictures(part)
    ]
    self._rows.sort(key=lambda row: (row[1], row[0].name))

  @property
  def versions(self) -> list[tuple[str, int, int, str]]:
    """Of the pictures."""
    return [
      (f"{path.parent.name}/{path.name}", label, *files.version(str(path)))
      for path, label in self._rows
    ]

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, index: int, /) -> Item:
    """Reads an item.

    Raises:
      ValueError: if the file is gone.
    """
    if not 0 <= index < len(self):
      raise IndexError(f"there are items 0 to {len(self) - 1}, got {index}")
    path, label = self._rows[index]
    key = f"{path.parent.name}/{path.name}"
    try:
      return Item(key, path.read_bytes(), (), str(self._folder), label)
    except OSError as error:
      raise ValueError(f"{path} cannot be read ({error}); put it back.") from error

  def label(self, index: int, /) -> int:
    return self._rows[index][1]


def _folders(folder: pathlib.Path) -> list[pathlib.Path]:
  """The class folders of a split.

  Raises:
    ValueError: if something else lies among them.
  """
  entries = [path for path in folder.iterdir() if not path.name.startswith(".")]
  if others := sorted(path.name for path in entries if not path.is_dir()):
    raise ValueError(
      f"{folder}: expected class folders only, got {others[:3]}; take them out."
    )
  return sorted(entries)


def _pictures(folder: pathlib.Path) -> list[pathlib.Path]:
  entries = [path for path in folder.iterdir() if not path.name.startswith(".")]
  others = sorted(p.name for p in entries if p.suffix.lower() not in _PICTURES)
  if others or not entries:
    raise ValueError(
      f"{folder}: expected pictures of this class, got {others[:3] or 'none'}; put in "
      "what is missing, and take out the rest."
    )
  return entries


def _label_of(
  folder: pathlib.Path, there: list[pathlib.Path], classes: Classes
) -> dict[str, int]:
  """Labels by the folders' names.

  Raises:
    ValueError: if they are not the classes.
  """
  names = [path.name for path in there]
  ways = [
    {label: i for i, label in enumerate(classes.labels)},
    {name: i for i, name in enumerate(classes.names)},
    {name: int(name) for name in names if name.isascii() and name.isdigit()},
  ]
  numbers = set(range(len(classes)))
  for way in ways:
    found = {name: way[name] for name in names if name in way}
    if len(found) == len(names) == len(classes) and set(found.values()) == numbers:
      return found
  known = set(classes.labels) | set(classes.names)
  unknown = [name for name in names if name not in known]
  absent = [label for label in classes.labels if label not in names]
  raise ValueError(
    f"{folder}: expected a folder for each of {len(classes)} classes, by label, by name "
    f"or by number from 0, got {len(names)}; unknown are {unknown[:3]}, without a folder "
    f"{absent[:3]}."
  )
