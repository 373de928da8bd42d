"""Some of the training examples, drawn by a seed: smaller sets lie in larger ones."""

from grain.experimental import index_shuffle

from rankclip_jax.data.source import Example, Source, losses_of, shards_of

_ROUNDS = 4  # grain's own choice


class Subset:
  """The first `count` examples of a permutation of `whole` by `seed`, as a `Source`.

  Any two of one source and seed are nested. The permutation is computed place by place,
  as that of every epoch is (`grain.MapDataset.shuffle`), and takes no memory.

  Attributes:
    whole: what was drawn from.
    seed: by which.
    losses, shards: of the whole.
  """

  def __init__(self, whole: Source, count: int, seed: int):
    """Draws.

    Args:
      whole: of all examples.
      count: how many.
      seed: from 0 to 2**32 - 1.

    Raises:
      ValueError: if there are fewer examples, or a number is out of its range.
    """
    if not 1 <= count <= len(whole):
      raise ValueError(
        f"data.subset={count} of {len(whole)} training examples cannot be drawn; "
        f"expected 1 to {len(whole)}, or 0 for all of them."
      )
    if not 0 <= seed < 2**32:
      raise ValueError(f"data.subset_seed must be from 0 to 2**32 - 1, got {seed}.")
    self.whole, self.seed, self._count = whole, seed, count
    self.losses, self.shards = losses_of(whole), shards_of(whole)

  def __len__(self) -> int:
    return self._count

  def __getitem__(self, index: int, /) -> Example:
    """The example.

    Raises:
      BadExample: as the whole does.
      IndexError: if there is no such example; none is counted from the end.
    """
    return self.whole[self.place(index)]

  def place(self, index: int) -> int:
    """The index in the whole."""
    if not 0 <= index < self._count:
      raise IndexError(f"there are examples 0 to {self._count - 1}, got {index}")
    last = len(self.whole) - 1
    return index_shuffle(index, max_index=last, seed=self.seed, rounds=_ROUNDS)
