"""Which example stands where in the endless stream of training."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import grain
import numpy as np

from rankclip_jax.data.offsets import Offsets
from rankclip_jax.data.source import Example, Source, losses_of, shards_of


class Concatenated:
  """Several sources one after the other, as one."""

  def __init__(self, parts: Sequence[Source]):
    self.parts = tuple(parts)
    self._examples = Offsets(map(len, parts), "there are examples")
    self.losses = [loss for part in parts for loss in losses_of(part)]
    self.shards = [shard for part in parts for shard in shards_of(part)]

  def __len__(self) -> int:
    return len(self._examples)

  def __getitem__(self, index: int, /) -> Example:
    """The example.

    Raises:
      BadExample: as the part that has it.
    """
    part, place = self._examples.locate(index)
    return self.parts[part][place]


class Place(NamedTuple):
  """What stands at a position.

  Attributes:
    example: its index.
    visit: which of the visits to it this is, in the sense that crop and caption of an
      example depend on seed, visit and index alone.
  """

  example: int
  visit: int


class Order:
  """Positions 0, 1, 2, ... of training to examples, by random access.

  Every epoch is a fresh permutation by (seed, epoch), whose remainder of less than a
  global batch is left out, another one each time. With weights there are no epochs of the
  data: every part is permuted over and over, and every stretch of positions holds the
  parts in the proportion of their weights (`grain.MapDataset.mix`).

  Args:
    source: `Concatenated`, where weights are given.
    epoch_rows: positions of an epoch.
    seed: from 0 to 2**32 - 1.
    weights: one for each part; none takes every example once an epoch.
  """

  def __init__(
    self, source: Source, *, epoch_rows: int, seed: int, weights: Sequence[float] = ()
  ):
    self._epoch_rows, self._weighted = epoch_rows, bool(weights)
    bounds = [0, len(source)]
    if weights:
      parts = getattr(source, "parts", (source,))
      if len(parts) != len(weights) or min(weights) <= 0:
        raise ValueError(
          f"weights must be one positive number for each of the {len(parts)} parts of "
          f"the data, got {tuple(weights)}"
        )
      bounds = np.cumsum([0, *(len(part) for part in parts)]).tolist()
    self._bounds = bounds
    shuffled = [
      grain.MapDataset.range(low, high).seed((seed + i) % 2**32).shuffle()
      for i, (low, high) in enumerate(itertools.pairwise(bounds))
    ]
    if weights:
      self._indices = grain.MapDataset.mix([s.repeat() for s in shuffled], list(weights))
    else:
      self._indices = shuffled[0][:epoch_rows].repeat()

  def __getitem__(self, position: int) -> Place:
    index = self._indices[position]
    assert index is not None  # nothing is filtered
    return Place(int(index), position if self._weighted else position // self._epoch_rows)

  def substitute(self, index: int, rng: np.random.Generator) -> int:
    """Another example, of the same part, that takes a bad one's place."""
    part = int(np.searchsorted(self._bounds, index, "right"))
    return int(rng.integers(self._bounds[part - 1], self._bounds[part]))
