"""Two jobs of a kind on one workdir; what is left of one that was killed."""

import errno
import fcntl
import json
import os
import socket
import subprocess
import sys
import threading
import time

import pytest

from rankclip_jax import lock


def held(path):
  return lock.held(path, "Job 0 of 1", "wait for it.")


def left_by(path, host, pid):
  path.write_text(json.dumps({"host": host, "pid": pid, "since": "long ago"}))


@pytest.fixture
def dead():
  """The id of a process that is over."""
  process = subprocess.Popen([sys.executable, "-c", ""])
  process.wait()
  return process.pid


@pytest.fixture(autouse=True)
def _short_beat(monkeypatch):
  monkeypatch.setattr(lock, "BEAT", 0.1)


@pytest.fixture
def no_flock(monkeypatch):
  def flock(*_):
    raise OSError(errno.ENOTSUP, "Operation not supported")

  monkeypatch.setattr(fcntl, "flock", flock)


def test_a_second_job_is_refused_with_host_and_process_of_the_first(tmp_path):
  path = tmp_path / "locks" / "0_of_1.json"
  here = f"on host {socket.gethostname()} as process {os.getpid()} since 20"
  with held(path):
    assert lock.is_alive(path)
    with pytest.raises(
      lock.HeldError, match=f"Job 0 of 1 runs already {here}.*; wait for it."
    ):
      held(path).__enter__()
    path.write_text("")  # it has only just been taken
    with pytest.raises(lock.HeldError, match="in another process, see .*0_of_1.json"):
      held(path).__enter__()
  assert lock.owner(path) is None  # given back
  with held(path):
    assert lock.owner(path).pid == os.getpid()  # pyright: ignore


def test_the_lock_of_a_killed_job_does_not_block(tmp_path, dead, caplog):
  path = tmp_path / "lock.json"
  for host, pid in ((socket.gethostname(), dead), ("elsewhere", 1)):
    left_by(path, host, pid)
    with held(path):
      assert lock.owner(path).host == socket.gethostname()  # pyright: ignore
  left_by(path, socket.gethostname(), dead)
  assert not lock.is_alive(path)


def test_another_host_that_shows_life_keeps_its_lock(tmp_path):
  path = tmp_path / "lock.json"
  left_by(path, "elsewhere", 7)  # where the system's lock does not reach

  def touch():
    time.sleep(0.05)
    os.utime(path)

  threading.Thread(target=touch).start()
  with pytest.raises(lock.HeldError, match="on host elsewhere as process 7 since long"):
    held(path).__enter__()
  assert lock.owner(path).pid == 7  # pyright: ignore


def test_a_lock_that_a_server_keeps_for_a_host_that_is_gone_does_not_block(tmp_path):
  path = tmp_path / "lock.json"
  left_by(path, "elsewhere", 1)
  with path.open() as kept:
    fcntl.flock(kept, fcntl.LOCK_EX)
    with held(path):
      assert lock.owner(path).host == socket.gethostname()  # pyright: ignore
      with pytest.raises(lock.HeldError, match="runs already on host"):
        held(path).__enter__()


def test_a_lock_that_the_system_holds_for_another_host_that_lives_is_kept(tmp_path):
  path = tmp_path / "lock.json"
  left_by(path, "elsewhere", 7)
  with path.open() as kept:
    fcntl.flock(kept, fcntl.LOCK_EX)
    threading.Timer(0.05, os.utime, [path]).start()
    with pytest.raises(lock.HeldError, match="on host elsewhere as process 7"):
      held(path).__enter__()
  assert lock.owner(path).pid == 7  # pyright: ignore


def test_a_holder_shows_life(tmp_path):
  path = tmp_path / "lock.json"
  with held(path):
    os.utime(path, (0, 0))
    assert not lock.is_alive(path)
    until = time.monotonic() + 5
    while not lock.is_alive(path):
      assert time.monotonic() < until
      time.sleep(0.02)


def test_without_locks_of_the_system_signs_of_life_decide(
  tmp_path, no_flock, dead, caplog
):
  path = tmp_path / "lock.json"
  with held(path):
    assert "cannot be locked (Operation not supported)" in caplog.text
    with pytest.raises(lock.HeldError, match="Job 0 of 1 runs already on host"):
      held(path).__enter__()
  left_by(path, socket.gethostname(), dead)
  with held(path):
    pass


@pytest.mark.parametrize(
  "content",
  ["[]", "null", "{", '{"host": "HOST", "pid": 99999999999999999999, "since": "now"}'],
)
def test_a_damaged_lock_blocks_nobody(tmp_path, content):
  path = tmp_path / "lock.json"
  path.write_text(content.replace("HOST", socket.gethostname()))
  with lock.held(path, "Training", "wait."):
    found = lock.owner(path)
    assert found
    assert found.pid == os.getpid()
