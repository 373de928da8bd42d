"""What a training source is: random access to images with captions."""

import dataclasses
from typing import Protocol

import numpy as np


@dataclasses.dataclass(frozen=True)
class Example:
  """One picture with its captions.

  Attributes:
    key: a stable name, which error messages quote, e.g. "1F600".
    image: uint8 [height, width, 3].
    captions: at least one; the first is the main caption.
  """

  key: str
  image: np.ndarray
  captions: tuple[str, ...]


class Source(Protocol):
  """Random access to examples (grain's RandomAccessDataSource protocol).

  `source[index]` is called from several threads at once.
  """

  def __len__(self) -> int: ...

  def __getitem__(self, index: int, /) -> Example: ...
