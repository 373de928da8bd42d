"""When a run saves, and what it does while it cannot: it trains on, and tries again."""

import contextlib
import dataclasses
import json
import logging
import os
import pathlib
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

from rankclip_jax.checkpoint import Checkpoints, steps_of
from rankclip_jax.processes import is_loss
from rankclip_jax.state import TrainState
from rankclip_jax.stopping import Left
from rankclip_jax.together import of_all

FILE = "save_failures.jsonl"
# After a failure the next try; room on a shared disk comes and goes by the minute.
RETRY_SECONDS = 60.0
# At the end of a run there is nothing to do but to try.
_FINAL_RETRY_SECONDS = 10.0

log = logging.getLogger(__name__)


class SaveError(ValueError):
  """Nothing could be saved for longer than the config allows."""


class SaveClock:
  """When the next checkpoint is due, by steps and by minutes (0 is never)."""

  def __init__(self, every_steps: int, every_minutes: float):
    self._every_steps, self._seconds = every_steps, 60.0 * every_minutes
    self._last = time.monotonic()

  def steps_are_up(self, step: int) -> bool:
    return bool(self._every_steps) and step % self._every_steps == 0

  def minutes_are_up(self) -> bool:
    return bool(self._seconds) and time.monotonic() - self._last >= self._seconds

  def saved(self) -> None:
    self._last = time.monotonic()


@dataclasses.dataclass(frozen=True)
class _Failing:
  """Since when nothing could be saved, when last, and why."""

  since: float
  last: float
  why: str


class Saver:
  """Saves that may fail: told, noted in the workdir, and tried again.

  A full disk, an exhausted quota, a folder that may not be written to, or a host that is
  slower than `checkpoint.timeout_seconds`: whatever Orbax raises, the state is still in
  the devices' memory, and the last good checkpoint is untouched. The loss of another
  process is none of these, and is raised.

  Args:
    saved: of the workdir.
    workdir: where failures are noted.
    clock: when saves are due.
    retry_minutes: for how long failures are borne; 0 is not at all.
    say: told of every failure and of its end.
  """

  def __init__(
    self,
    saved: Checkpoints,
    workdir: pathlib.Path,
    clock: SaveClock,
    retry_minutes: float,
    say: Callable[[str], None] = log.warning,
  ):
    self._saved, self._workdir, self.clock, self._say = saved, workdir, clock, say
    self._limit = 60.0 * retry_minutes
    self._failing: _Failing | None = None
    self._told: float | None = None
    self._notes = ""  # of failures, not yet on the disk
    self._writing: int | None = None  # the step of what is written in the background

  @property
  def due(self) -> bool:
    """Whether this process wants a save now."""
    if self._failing:
      return time.monotonic() - self._failing.last >= RETRY_SECONDS
    return self.clock.minutes_are_up()

  @property
  def hopeless(self) -> bool:
    """Whether saves have failed for longer than they may."""
    failing = self._failing
    return bool(failing) and failing.last - failing.since >= self._limit

  def look(self) -> None:
    """Notices, without waiting, how a save in the background has ended."""
    if self._writing is not None and not self._saved.is_saving():
      self._settle()

  def save(
    self,
    state: TrainState,
    step: int,
    facts: Mapping[str, Any],
    scores: Mapping[str, float | None] | None = None,
    *,
    complete: bool = False,
  ) -> None:
    """Starts a save as `Checkpoints.save`, which may fail now or later.

    Args:
      state, step, facts, scores: as of `Checkpoints.save`.
      complete: return when it is complete on all processes, however often it is tried.

    Raises:
      SaveError: with `complete`, on all of them, if it still fails when no more failures
        are borne.
    """
    self._saved.check_scores(scores)
    save = lambda: self._saved.save(state, step, facts, scores)
    start = lambda: self._start(step, save)
    start()
    while complete and self._has_failed_anywhere():
      if of_all(self.hopeless).any():
        self.give_up()
      time.sleep(_FINAL_RETRY_SECONDS)
      start()

  def give_up(self) -> None:
    """Raises `SaveError`, naming the last failure here."""
    why = self._failing.why if self._failing else "another process says why"
    good = max(steps_of(self._workdir), default=None)
    last = "there is none" if good is None else f"the last good one is of step {good}"
    raise SaveError(
      f"No checkpoint could be written for {self._limit / 60:g} min "
      f"(checkpoint.retry_minutes); {last}. The reason: {why}. Mend that, and run the "
      "same command again."
    )

  def _start(self, step: int, save: Callable[[], None]) -> None:
    self._settle()
    self.clock.saved()
    try:
      save()
      self._writing = step
    except Exception as error:
      if jax.process_count() > 1:
        raise  # the others may wait for this one within Orbax
      self._failed(step, error)

  def _has_failed_anywhere(self) -> bool:
    """Waits for the save that was started."""
    self._settle()
    return bool(of_all(self._failing is not None).any())

  def _settle(self) -> None:
    """Waits for what is written in the background, and judges it."""
    step, self._writing = self._writing, None
    if step is None:
      return
    try:
      self._saved.wait()
    except Exception as error:
      self._failed(step, error)
      return
    self._write_notes()
    if self._failing:
      self._say(f"Checkpoints can be written again: that of step {step} is complete.")
    self._failing = self._told = None

  def _failed(self, step: int, error: Exception) -> None:
    if is_loss(error):
      raise error
    self._saved.clean_up_after_failure()
    if jax.process_count() > 1:
      # Orbax's threads wait 300 s for each other, at the end too.
      Left.behind(with_others=True)
    why, now = reason(error), time.monotonic()
    self._note(step, why)
    if step in self._saved.steps():
      self._failing = self._told = None
      self._say(
        f"The checkpoint of step {step} is complete, but what followed failed: {why}."
      )
      return
    since = self._failing.since if self._failing else now
    self._failing = _Failing(since, now, why)
    if self._told is None or now - self._told >= RETRY_SECONDS:
      self._told = now
      good = max(steps_of(self._workdir), default=None)
      last = "none was written yet" if good is None else f"the last is of step {good}"
      self._say(
        f"The checkpoint of step {step} could not be written ({last}): {why}. It is "
        f"tried again every {RETRY_SECONDS:.0f} s, for {self._limit / 60:g} min at most."
      )

  def _note(self, step: int, why: str) -> None:
    noted = {"time": round(time.time(), 3), "step": step, "error": why}
    self._notes += json.dumps(noted | {"process": jax.process_index()}) + "\n"
    self._write_notes()

  def _write_notes(self) -> None:
    """Those that a full disk did not take before."""
    with contextlib.suppress(OSError):
      if self._notes:
        with (self._workdir / FILE).open("a", encoding="utf-8") as file:
          file.write(self._notes)
        self._notes = ""


def reason(error: Exception) -> str:
  """What went wrong, in a line; what the system said, where Orbax's libraries tell it.

  What a process met first may be hidden by what came of it: the others did not wait.
  """
  met: BaseException | None = error
  while met:
    if told := re.search(r"os_error_code='(\d+)'", str(met)):
      return os.strerror(int(told[1]))
    if isinstance(met, OSError) and met.strerror:
      return met.strerror
    met = met.__cause__ or met.__context__
  return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
