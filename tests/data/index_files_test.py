import os
import pathlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankclip_jax.data import index_files

FACTS = (1, 17, "stamp", ",")


def test_places_are_beside_and_in_the_cache(tmp_path):
  places = lambda path, *args, **options: [
    str(place) for place in index_files.places(path, *args, **options)
  ]
  assert places("/data/a.tar", None) == ["/data/a.tar.index"]
  assert places("a.csv", None, hidden=True) == [".a.csv.index"]
  assert places("gs://b/a.tar", None) == []
  beside, cached = places("/data/a.csv", tmp_path, hidden=True)
  assert beside == "/data/.a.csv.index"
  # Indices that were made before these lines are still found.
  assert cached == f"{tmp_path}/.a.csv.41998143faa481bc.index"
  (remote,) = places("gs://b/a.tar", tmp_path)
  assert remote.startswith(f"{tmp_path}/a.tar.")
  # One name in several folders, and one file by several names.
  assert len({*places("/data/a.csv", tmp_path), *places("/more/a.csv", tmp_path)}) == 4
  assert places("a.csv", tmp_path)[1] == places(os.path.abspath("a.csv"), tmp_path)[1]
  assert places("/data/\udcff.csv", tmp_path)[1].startswith(f"{tmp_path}/\udcff.csv.")


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=20))
def test_numbers_come_back(tmp_path_factory, numbers):
  folder = tmp_path_factory.mktemp("data")
  path, index = str(folder / "a.csv"), np.array(numbers, np.uint64)
  index_files.save(path, FACTS, None, index)
  assert os.listdir(folder) == [".a.csv.index"]
  found = index_files.load(path, FACTS, None)
  assert isinstance(found, np.memmap)
  assert found.dtype == np.uint64
  assert found.tolist() == numbers
  assert index_files.load(path, (*FACTS[:-1], ";"), None) is None


def test_the_format_stays(tmp_path):
  """Else indices of large files would be made again."""
  path = str(tmp_path / "a.csv")
  index_files.save(path, FACTS, None, np.arange(3, dtype=np.uint64))
  assert (tmp_path / ".a.csv.index").read_bytes().hex() == (
    "1229d1a3c032fdf5b0b01a2ec690281b3de167aded5fb388cc5c8c4f00000000"
    "000000000000000001000000000000000200000000000000"
  )


def test_the_first_good_one_is_taken(tmp_path):
  path, cache = str(tmp_path / "a.csv"), tmp_path / "some" / "cache"
  beside, cached = index_files.places(path, cache, hidden=True)
  assert index_files.load(path, FACTS, cache) is None
  beside.mkdir()
  index_files.save(path, FACTS, cache, np.arange(3, dtype=np.uint64))
  assert [p.name for p in cache.iterdir()] == [cached.name]
  beside.rmdir()
  beside.write_bytes(b"no index")
  found = index_files.load(path, FACTS, cache)
  assert found is not None
  assert found.tolist() == [0, 1, 2]
  # Without a place there is none, and no error.
  index_files.save("memory://a.csv", FACTS, None, np.arange(3, dtype=np.uint64))


def test_a_file_is_written_at_once_or_not_at_all(tmp_path, monkeypatch):
  place = tmp_path / "more" / "a.index"
  index_files.write(place, b"whole", memoryview(b" file"))
  assert place.read_bytes() == b"whole file"

  def fail(self, target):
    assert place.read_bytes() == b"whole file"
    raise OSError("no space left")

  monkeypatch.setattr(pathlib.Path, "replace", fail)
  with pytest.raises(OSError, match="no space left"):
    index_files.write(place, b"another")
  assert os.listdir(place.parent) == ["a.index"]
  assert place.read_bytes() == b"whole file"
