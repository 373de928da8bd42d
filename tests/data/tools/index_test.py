import uuid

import fsspec
import pytest

from rankclip_jax.data.tools import index
from tests.data import tars
from tests.data.pictures import encoded, photograph

JPEG = encoded(photograph(20, 30))


def whole(samples):
  members = [
    (f"{i:04}.{kind}", data)
    for i in range(samples)
    for kind, data in (("jpg", JPEG), ("txt", b"a cat"))
  ]
  return tars.tar(members)


def lines(capsys):
  out = capsys.readouterr().out.splitlines()
  return {line.split("  ")[0]: line.split("  ", 1)[1].strip() for line in out if line}


def test_it_says_what_is_there_and_where_the_index_lies(tmp_path, capsys):
  for shard in range(3):
    (tmp_path / f"{shard}.tar").write_bytes(whole(4 + shard))
  assert index.main([f"{tmp_path}/*.tar"]) == 0
  assert len(list(tmp_path.glob("*.index"))) == 3
  found = lines(capsys)
  assert found["examples"] == "15"
  assert found["shards"] == "3"
  assert found["losses"] == "none"
  assert found["index"].startswith("3 files of")
  assert "beside the data" in found["index"]
  assert float(found["seconds"]) < 60


def test_what_a_shard_lost_is_shown(tmp_path, capsys):
  (tmp_path / "0.tar").write_bytes(whole(5))
  (tmp_path / "1.tar").write_bytes(whole(5)[:-4000])
  assert index.main([f"{tmp_path}/{{0,1}}.tar"]) == 0
  losses = lines(capsys)["losses"]
  assert "1.tar" in losses
  assert "0.tar" not in losses


@pytest.fixture
def remote():
  system, name = fsspec.filesystem("memory"), f"/{uuid.uuid4().hex}"
  system.pipe(f"{name}/0.tar", whole(3))
  yield f"memory:/{name}/0.tar"
  system.rm(name, recursive=True)


def test_indices_of_remote_data_lie_in_the_cache(remote, tmp_path, capsys):
  (tmp_path / "other.tar.0123456789abcdef.index").write_bytes(b"of other data")
  assert index.main([remote, f"--cache={tmp_path}"]) == 0
  found = lines(capsys)
  assert found["examples"] == "3"
  assert found["index"].startswith("1 file of")
  assert "beside" not in found["index"]


def test_small_tables_need_none(tmp_path, capsys):
  (tmp_path / "pairs.csv").write_text("image,caption\na.jpg,a cat\n")
  assert index.main([f"{tmp_path}/pairs.csv"]) == 0
  assert "none is kept" in lines(capsys)["index"]
