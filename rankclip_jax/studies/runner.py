"""Runs what a study still lacks, one after the other, on this machine."""

import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import IO, Any

from rich.console import Console

from rankclip_jax.studies import disk
from rankclip_jax.studies.study import Run, Study

_SECONDS_BETWEEN_LOOKS = 1.0
# Runs of a study compile the same programs, but for the variants' own.
_CACHE = "JAX_COMPILATION_CACHE_DIR"


def run(study: Study, runs: Sequence[Run], console: Console) -> bool:
  """Runs what is not done; returns whether all is done now.

  A run that fails is told and the next one begins; one that was interrupted goes on. What
  another runner is at is left to it.

  Raises:
    ValueError: before anything runs, if a folder belongs to a run of another config.
    KeyboardInterrupt: after SIGTERM or Ctrl-C, when the run in hand has saved.
  """
  left = [each for each in runs if disk.status(each, study).state != "done"]
  console.print(f"{study.name}: {len(runs) - len(left)} of {len(runs)} runs are done.")
  began, ended = time.monotonic(), 0
  with _StopSignal() as stop:
    for place, each in enumerate(left):
      status = disk.status(each, study)
      if status.state not in ("running", "done"):  # by another runner
        rest = _remaining(time.monotonic() - began, ended, len(left) - place)
        console.print(f"{each.name} ({place + 1} of {len(left)}{rest}) ...")
        status = _finish(each, study, console, stop)
        ended += 1
      console.print(f"{each.name}: {status.state} {status.detail}".rstrip())
  return all(disk.status(each, study).state == "done" for each in runs)


class _StopSignal:
  """SIGTERM and SIGINT, remembered until somebody asks; a context.

  Not raised where they come: what is raised within a callback of the garbage collector,
  of which jax has one, is lost.
  """

  def __init__(self):
    self.received = False
    self._previous: dict[int, Any] = {}

  def __enter__(self) -> "_StopSignal":
    for number in (signal.SIGTERM, signal.SIGINT):
      self._previous[number] = signal.signal(number, self._remember)
    return self

  def __exit__(self, *_) -> None:
    for number, handler in self._previous.items():
      signal.signal(number, handler)

  def _remember(self, number, frame) -> None:
    del number, frame
    self.received = True


def _finish(run: Run, study: Study, console: Console, stop: _StopSignal) -> disk.Status:
  """Does what is left of a run; says how it ended."""
  path = disk.log_path(run)
  path.parent.mkdir(parents=True, exist_ok=True)
  with path.open("ab") as log:
    if not disk.lock(log):
      return disk.status(run, study)
    code = 0
    for words in run.commands():
      code = code or _child([sys.executable, *words], log, path, console, stop)
    log.write(f"\n{disk.EXIT_LINE} {code}\n".encode())
  return disk.status(run, study)


def _child(
  words: list[str],
  log: IO[bytes],
  path: pathlib.Path,
  console: Console,
  stop: _StopSignal,
) -> int:
  """Runs a command, its output in the log, of which a terminal shows the last line."""
  cache = str((path.parent.parent / "jax_cache").resolve())
  process = subprocess.Popen(
    words,
    stdin=subprocess.DEVNULL,
    stdout=log,
    stderr=log,
    env={_CACHE: cache, **os.environ},
  )
  with console.status("starting") as status:
    while not stop.received:
      try:
        return process.wait(_SECONDS_BETWEEN_LOOKS)
      except subprocess.TimeoutExpired:
        status.update(_last_line(path))
    process.terminate()  # which saves; a second Ctrl-C ends it at once
    process.wait()
  raise KeyboardInterrupt


def _last_line(path: pathlib.Path) -> str:
  with path.open("rb") as log:
    log.seek(max(0, path.stat().st_size - 1000))
    lines = log.read().decode(errors="replace").split("\n")
  return next((line for line in reversed(lines) if line.strip()), "")[-100:]


def _remaining(seconds: float, ended: int, left: int) -> str:
  return f", {seconds / ended * left / 60:.0f} min left" if ended else ""
