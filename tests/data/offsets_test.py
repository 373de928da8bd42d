import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankclip_jax.data.offsets import Offsets


@given(st.lists(st.integers(0, 5), min_size=1, max_size=8))
def test_every_row_is_found_where_it_is(counts):
  offsets = pickle.loads(pickle.dumps(Offsets(iter(counts), "a.csv has rows")))
  rows = [(file, row) for file, count in enumerate(counts) for row in range(count)]
  assert len(offsets) == len(rows)
  assert [offsets.locate(index) for index in range(len(rows))] == rows
  assert [offsets.locate(index) for index in np.arange(len(rows))] == rows
  for index in (-1, len(rows)):
    message = f"^a.csv has rows 0 to {len(rows) - 1}, got {index}$"
    with pytest.raises(IndexError, match=message):
      offsets.locate(index)


def test_an_index_is_a_whole_number():
  with pytest.raises(TypeError, match="float"):
    Offsets([3], "a.csv has rows").locate(1.0)  # pyright: ignore[reportArgumentType]
