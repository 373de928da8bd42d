"""Class names and prompt templates: files of one a line, and their fingerprint.

The files beside this module hold OpenAI's names and templates, as CLIP_benchmark and
open_clip pass them on; see NOTICE. A line of names is `LABEL<TAB>NAME`, where the label
is what the data set itself calls the class (a WordNet id, a folder); a line without a tab
is both. The order is that of the integer labels.
"""

import collections
import dataclasses
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rankclip_jax.data.benchmarks.table import Benchmark

_HERE = pathlib.Path(__file__).parent
_PLACEHOLDER = re.compile(r"\{c?\}")


@dataclasses.dataclass(frozen=True)
class Classes:
  """The classes of a data set, in the order of their labels.

  Attributes:
    labels: what the data set calls them.
    names: what prompts call them.
  """

  labels: tuple[str, ...]
  names: tuple[str, ...]

  def __len__(self) -> int:
    return len(self.names)

  def subset(self, labels: Iterable[str]) -> "Classes":
    """Only the classes with these labels, in the old order."""
    kept = set(labels)
    rows = zip(self.labels, self.names, strict=True)
    pairs = [(label, name) for label, name in rows if label in kept]
    return Classes(tuple(p[0] for p in pairs), tuple(p[1] for p in pairs))


def classes_of(benchmark: Benchmark, names_file: str | os.PathLike[str] = "") -> Classes:
  """The classes of a data set; with a user's file, under other names.

  Args:
    benchmark: with `names`.
    names_file: see `renamed`.

  Raises:
    ValueError: if the file has other classes, or names twice.
  """
  own = read_classes(_HERE / "names" / f"{benchmark.names}.txt", benchmark.duplicates)
  if benchmark.subset:
    path = _HERE / "subsets" / f"{benchmark.subset}.txt"
    own = own.subset(_lines(path))
  if not names_file:
    return own
  return renamed(own, names_file, benchmark.duplicates)


def renamed(
  classes: Classes, names_file: str | os.PathLike[str], duplicates: Sequence[str] = ()
) -> Classes:
  """Classes under a user's names: by label where the file has labels, else in order.

  Args:
    classes: of a data set, whose labels and order stay.
    names_file: see `read_classes`.
    duplicates: names that may be there twice.

  Raises:
    ValueError: if the file has other classes, or names twice.
  """
  given = read_classes(names_file, duplicates)
  if len(given) != len(classes):
    raise ValueError(
      f"{names_file}: expected {len(classes)} classes, one a line, got {len(given)}."
    )
  if given.labels == given.names:
    return Classes(classes.labels, given.names)
  name_of = dict(zip(given.labels, given.names, strict=True))
  unknown = [label for label in given.labels if label not in classes.labels]
  if unknown:
    absent = [label for label in classes.labels if label not in name_of]
    raise ValueError(
      f"{names_file}: expected the labels of the data set before each tab, got unknown "
      f"ones, {unknown[:3]}; missing are {absent[:3]}."
    )
  return Classes(classes.labels, tuple(name_of[label] for label in classes.labels))


def templates_of(benchmark: Benchmark) -> tuple[str, ...]:
  """The prompts that the field uses for a data set."""
  return read_templates(_HERE / "templates" / f"{benchmark.templates}.txt")


def read_classes(path: str | os.PathLike[str], duplicates: Sequence[str] = ()) -> Classes:
  """Reads class names, one a line.

  Args:
    path: of UTF-8 text.
    duplicates: names that may be there twice.

  Raises:
    ValueError: if there is none, a line is empty, or a label or name is there twice.
  """
  pairs = [line.split("\t") for line in _lines(path)]
  for number, pair in enumerate(pairs, 1):
    if len(pair) > 2 or not all(part.strip() for part in pair):
      raise ValueError(
        f"{path}, line {number}: expected NAME or LABEL<TAB>NAME, got {pair!r}."
      )
  # A list without labels may have the known names twice.
  plain = all(len(pair) == 1 for pair in pairs)
  labels = tuple(pair[0].strip() for pair in pairs)
  names = tuple(pair[-1].strip() for pair in pairs)
  check_distinct(labels, path, duplicates if plain else ())
  check_distinct(names, path, duplicates)
  return Classes(labels, names)


def read_templates(path: str | os.PathLike[str]) -> tuple[str, ...]:
  """Reads prompt templates, one a line.

  Args:
    path: of UTF-8 text.

  Raises:
    ValueError: if there is none, or one has no place for the class name.
  """
  templates = tuple(_lines(path))
  for number, template in enumerate(templates, 1):
    if not _PLACEHOLDER.search(template):
      raise ValueError(
        f"{path}, line {number}: expected a template with {{c}} or {{}} where the class "
        f"name belongs, got {template!r}."
      )
  return templates


def check_distinct(
  names: Sequence[str], where: object, duplicates: Sequence[str] = ()
) -> None:
  """Refuses class names that occur twice.

  Raises:
    ValueError: says which.
  """
  counts = collections.Counter(names)
  twice = [name for name, count in counts.items() if count > 1]
  if bad := [name for name in twice if name not in duplicates]:
    raise ValueError(
      f"{where}: expected distinct classes, got {len(bad)} more than once: {bad[:5]}; "
      "tell them apart."
    )


def fingerprint(
  names: Sequence[str], templates: Sequence[str], preprocessing: Mapping[str, Any]
) -> str:
  """SHA-256, in hexadecimal, of what a zero-shot result depends on beside the weights.

  Args:
    names: of the classes, in order.
    templates: in order.
    preprocessing: of pictures: what JSON can hold, such as size, mean and resize mode.
  """
  facts = [list(names), list(templates), preprocessing]
  text = json.dumps(facts, ensure_ascii=False, sort_keys=True, allow_nan=False)
  return hashlib.sha256(text.encode()).hexdigest()


def _lines(path: str | os.PathLike[str]) -> list[str]:
  try:
    text = pathlib.Path(path).read_text(encoding="utf-8-sig")
  except FileNotFoundError as error:
    raise ValueError(f"There is no file {path}; write one entry a line.") from error
  except (OSError, UnicodeDecodeError) as error:
    raise ValueError(f"{path} cannot be read as UTF-8 text: {error}.") from error
  lines = [line.rstrip() for line in text.rstrip().split("\n")]
  if empty := [i for i, line in enumerate(lines, 1) if not line.strip()]:
    raise ValueError(
      f"{path}, line {empty[0]}: expected an entry in each line, got none."
    )
  return lines
