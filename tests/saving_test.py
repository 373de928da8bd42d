"""Saves that fail: borne, told, tried again, and given up."""

import errno
import json
import os
import time
from typing import Any

import pytest

from rankclip_jax import saving
from rankclip_jax.checkpoint import Checkpoints

STATE: Any = None  # it is not looked at


class Disk(Checkpoints):
  """Checkpoints of a disk that is full while `full`; saves end when `ends` is called."""

  def __init__(self, full=True):
    self.full, self.saved, self.cleaned = full, [], 0
    self._writing = None

  def steps(self):
    return self.saved

  def check_scores(self, metrics):
    if metrics == {}:
      raise ValueError("no score")

  def save(self, state, step, facts, metrics=None):
    self._writing = step, self.full

  def is_saving(self):
    return False

  def wait(self):
    (step, full), self._writing = self._writing, None
    if full:
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    self.saved.append(step)

  def clean_up_after_failure(self):
    self.cleaned += 1


@pytest.fixture
def now(monkeypatch):
  clock = [100.0]
  monkeypatch.setattr(saving.time, "monotonic", lambda: clock[0])
  monkeypatch.setattr(saving.time, "sleep", lambda s: clock.__setitem__(0, clock[0] + s))
  return clock


def saver(disk, tmp_path, said, minutes=60.0, every_minutes=10.0):
  clock = saving.SaveClock(0, every_minutes)
  return saving.Saver(disk, tmp_path, clock, minutes, said.append)


def failures(tmp_path):
  lines = (tmp_path / saving.FILE).read_text().splitlines()
  return [json.loads(line) for line in lines]


def test_a_failure_is_told_once_and_tried_again_until_it_works(tmp_path, now):
  disk, said = Disk(), []
  s = saver(disk, tmp_path, said)
  assert not s.due
  now[0] += 600
  assert s.due
  s.save(STATE, 5, {})
  assert not s.due  # it is under way
  s.look()
  assert said == [
    "The checkpoint of step 5 could not be written (none was written yet): No space left "
    "on device. It is tried again every 60 s, for 60 min at most."
  ]
  assert disk.cleaned == 1
  now[0] += 59
  assert not s.due
  now[0] += 1
  assert s.due
  assert not s.hopeless
  s.save(STATE, 9, {})
  now[0] += 1
  s.look()
  assert len(said) == 2  # a minute later
  s.save(STATE, 10, {})
  s.look()
  assert len(said) == 2
  disk.full = False
  s.save(STATE, 11, {})
  s.look()
  assert said[2:] == ["Checkpoints can be written again: that of step 11 is complete."]
  assert disk.saved == [11]
  assert [(x["step"], x["error"], x["process"]) for x in failures(tmp_path)] == [
    (step, "No space left on device", 0) for step in (5, 9, 10)
  ]
  assert abs(failures(tmp_path)[0]["time"] - time.time()) < 60


def test_a_run_gives_up_when_its_config_says_so(tmp_path, now):
  s = saver(disk := Disk(), tmp_path, [], minutes=2)
  s.save(STATE, 5, {})
  s.look()
  assert not s.hopeless
  now[0] += 120
  s.save(STATE, 6, {})
  s.look()
  assert s.hopeless
  with pytest.raises(
    saving.SaveError, match=r"for 2 min .* there is none\. The reason: No space"
  ):
    s.give_up()
  disk.saved.append(6)  # as Orbax counts what is under way
  (tmp_path / "checkpoints" / "3").mkdir(parents=True)
  with pytest.raises(saving.SaveError, match="the last good one is of step 3"):
    s.give_up()
  s = saver(Disk(), tmp_path, [], minutes=0)
  s.save(STATE, 5, {})
  s.look()
  assert s.hopeless


def test_what_a_full_disk_does_not_take_is_noted_when_there_is_room(
  tmp_path, now, monkeypatch
):
  s = saver(disk := Disk(), tmp_path, [])
  with monkeypatch.context() as patch:

    def full(*_, **__):
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    patch.setattr(saving.pathlib.Path, "open", full)
    s.save(STATE, 5, {})
    s.look()
  assert not (tmp_path / saving.FILE).exists()
  disk.full = False
  s.save(STATE, 6, {})
  s.look()
  assert [x["step"] for x in failures(tmp_path)] == [5]


def test_the_last_save_is_tried_until_it_works_or_may_fail_no_more(tmp_path, now):
  disk = Disk()
  room = lambda message: setattr(disk, "full", "1 min" not in message and now[0] < 150)
  s = saving.Saver(disk, tmp_path, saving.SaveClock(0, 0.0), 1.0, room)
  began = now[0]
  with pytest.raises(saving.SaveError):
    saver(Disk(), tmp_path, [], minutes=1).save(STATE, 5, {}, complete=True)
  assert 60 <= now[0] - began < 80
  now[0] = 200.0
  s.save(STATE, 7, {}, complete=True)
  assert disk.saved == [7]


def test_a_score_that_is_missing_is_no_failure_of_the_disk(tmp_path, now):
  with pytest.raises(ValueError, match="no score"):
    saver(Disk(), tmp_path, []).save(STATE, 5, {}, {})
  assert not (tmp_path / saving.FILE).exists()


def test_the_loss_of_a_process_is_no_failure_of_the_disk(tmp_path, now, monkeypatch):
  monkeypatch.setattr(saving, "is_loss", lambda error: "space" in str(error))
  s = saver(Disk(), tmp_path, [])
  s.save(STATE, 5, {})
  with pytest.raises(OSError, match="No space"):
    s.look()


def test_a_checkpoint_that_is_complete_was_saved_whatever_followed(tmp_path, now):
  disk, said = Disk(), []
  s = saver(disk, tmp_path, said)
  s.save(STATE, 5, {})
  disk.saved.append(5)  # it has its name; what failed was to delete an older one
  s.look()
  assert said == [
    "The checkpoint of step 5 is complete, but what followed failed: No space left on "
    "device."
  ]
  assert not s.due
  assert [x["step"] for x in failures(tmp_path)] == [5]


def test_reasons_are_what_the_system_said():
  long = ValueError(
    'RESOURCE_EXHAUSTED: Error writing "a/0" in OCDBT database at local file "b/": '
    "Failed to write 3403776 bytes to file 5: x [os_error_code='28']"
  )
  assert saving.reason(long) == "No space left on device"
  assert saving.reason(PermissionError(13, "Permission denied")) == "Permission denied"
  assert saving.reason(TimeoutError("a\nb")) == "TimeoutError: a b"
  late = RuntimeError("the others did not wait")
  late.__context__ = long
  assert saving.reason(late) == "No space left on device"
