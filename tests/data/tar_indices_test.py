import os
import signal

import numpy as np
import pytest

from rankclip_jax.data import tar_index, tar_indices
from rankclip_jax.data.tar_indices import open_indices
from rankclip_jax.data.tar_source import TarSource
from tests.data import tars
from tests.data.examples import put


@pytest.fixture
def folder(tmp_path):
  """Nine tars of 1 to 9 samples."""
  for shard in range(9):
    tars.img2dataset(tmp_path, shard, [(b"picture", "caption")] * (shard + 1))
  return tmp_path


def paths(folder) -> list[str]:
  return [f"{folder}/{shard:05}.tar" for shard in range(9)]


def counts(indices) -> list[int]:
  return [len(index) for index in indices.values()]


def test_a_tar_named_twice_counts_twice_and_is_indexed_once(folder, monkeypatch):
  build, built = tar_index.build, []
  monkeypatch.setattr(tar_index, "build", lambda path: built.append(path) or build(path))
  path = f"{folder}/00001.tar"
  assert counts(open_indices([path, path])) == [2]
  assert built == [path]
  source = TarSource(f"{path}::{path}")
  assert [source[index].key for index in range(4)] == ["000010000", "000010001"] * 2


@pytest.mark.parametrize("workers", [None, 1, 2])
def test_processes_index_tars(folder, workers):
  names = paths(folder)
  indices = open_indices(names, workers=workers)
  assert {path: len(index) for path, index in indices.items()} == {
    path: shard + 1 for shard, path in enumerate(names)
  }
  assert len(list(folder.glob("*.tar.index"))) == 9
  assert not list(folder.glob(".*"))
  again = open_indices(names, workers=workers)
  for path, index in indices.items():
    np.testing.assert_array_equal(again[path].members, index.members)


def test_threads_index_tars_elsewhere(folder, remote, tmp_path):
  names = [
    put(f"{remote}/{shard}.tar", (folder / f"{shard:05}.tar").read_bytes())
    for shard in range(9)
  ]
  assert sorted(counts(open_indices(names, cache=tmp_path / "c"))) == list(range(1, 10))
  assert len(list((tmp_path / "c").iterdir())) == 9


def test_an_error_in_a_process_names_the_tar(folder):
  put(folder / "00004.tar", b"BZh" + bytes(99))
  with pytest.raises(ValueError, match="00004.tar is compressed"):
    open_indices(paths(folder), workers=2)


def die(path, cache):
  os._exit(1)


def test_processes_that_die_are_an_error(folder, monkeypatch):
  """As those do that run a script without a guard."""
  monkeypatch.setattr(tar_indices, "_build_and_store", die)
  with pytest.raises(ValueError, match="if __name__ == .*workers=1"):
    open_indices(paths(folder), workers=2)


def interrupt(path, cache):
  """What a terminal does to every process of it."""
  os.kill(os.getpid(), signal.SIGINT)
  return tar_indices._build_and_store(path, cache)


def test_processes_leave_ctrl_c_to_their_parent(folder, monkeypatch):
  monkeypatch.setattr(tar_indices, "_build_and_store", interrupt)
  assert sorted(counts(open_indices(paths(folder), workers=2))) == list(range(1, 10))


def test_tars_that_are_not_there_are_named_up_to_five(folder):
  absent = [f"{folder}/{shard:05}.tar" for shard in range(5, 15)]
  with pytest.raises(ValueError, match=r"6 of 10 tars cannot be opened: ") as error:
    open_indices(absent * 2)
  for shard in range(5, 15):
    assert (f"{shard:05}.tar" in str(error.value)) == (9 <= shard < 14), shard
  assert "; .... Put them there" in str(error.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_may_only_be_read(folder, tmp_path_factory):
  cache = tmp_path_factory.mktemp("cache")
  folder.chmod(0o555)
  try:
    assert len(open_indices(paths(folder), cache=cache)) == 9
  finally:
    folder.chmod(0o755)
  assert len(list(cache.iterdir())) == 9
