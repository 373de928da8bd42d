"""Two jobs of a kind on one workdir; what is left of one that was killed."""

import errno
import fcntl
import json
import os
import socket

import pytest

from rankclip_jax import suite
from rankclip_jax.suite import lock
from tests.suite.runs import changed


def held(path):
  return lock.held(path, "Job 0 of 1", "wait for it.")


def test_a_second_job_is_refused_with_host_and_process_of_the_first(tmp_path):
  path = tmp_path / "locks" / "0_of_1.json"
  here = f"on host {socket.gethostname()} as process {os.getpid()} since 20"
  with held(path):
    with pytest.raises(
      ValueError, match=f"Job 0 of 1 runs already {here}.*; wait for it."
    ):
      held(path).__enter__()
    path.write_text("")  # it has only just been taken
    with pytest.raises(ValueError, match="in another process, see .*0_of_1.json"):
      held(path).__enter__()
  with held(path):
    assert json.loads(path.read_text())["pid"] == os.getpid()


def test_the_lock_of_a_killed_job_does_not_block(tmp_path):
  path = tmp_path / "0_of_1.json"
  path.write_text('{"host": "elsewhere", "pid": 1, "since": "long ago"}')
  with held(path):
    assert json.loads(path.read_text())["host"] == socket.gethostname()


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, caplog):
  def flock(*_):
    raise OSError(errno.ENOTSUP, "Operation not supported")

  monkeypatch.setattr(fcntl, "flock", flock)
  with held(tmp_path / "x"):
    assert "cannot be locked (Operation not supported)" in caplog.text


def test_jobs_of_one_workdir_take_one_lock_a_shard(cfg, tmp_path):
  cfg = changed(cfg, datasets="stl10,flickr30k", num_shards=2)
  with held(tmp_path / "results" / "locks" / "0_of_2.json"):
    with pytest.raises(ValueError, match=r"Job 0 of 2 on .* runs already .*eval.shard"):
      suite.run(cfg, tmp_path)
    assert suite.run(changed(cfg, shard=1), tmp_path)
    with pytest.raises(ValueError, match=r"Job 0 of 2 on .*num_shards=2 here too"):
      suite.run(changed(cfg, shard=0, num_shards=1), tmp_path)
  assert suite.run(changed(cfg, shard=0, num_shards=1), tmp_path)
