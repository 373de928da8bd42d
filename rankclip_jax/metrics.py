"""Numbers of a run: JSON lines are the truth, all else are mirrors."""

import contextlib
import json
import logging
import math
import pathlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

# tensorboardX imports PyTorch where it finds it, which takes seconds, and needs it for
# nothing that is used here.
_TORCH = sys.modules.setdefault("torch", None)  # pyright: ignore[reportArgumentType]
import tensorboardX.summary  # noqa: E402
from tensorboardX.event_file_writer import EventsWriter  # noqa: E402
from tensorboardX.proto import event_pb2  # noqa: E402

if _TORCH is None:
  del sys.modules["torch"]

FILE = "metrics.jsonl"
BOARD = "tensorboard"

_EVENTS: Any = event_pb2  # its classes are made at run time, unknown to type checkers

log = logging.getLogger(__name__)


class Mirror(Protocol):
  """Numbers for people, whose truth is in `metrics.jsonl`."""

  def write(self, step: int, values: Mapping[str, float | None]) -> None: ...

  def close(self) -> None: ...


class MetricsLog:
  """Writes `{"step", "time", name: value, ...}`, one object a line.

  Opening it for a run that goes on at `step` drops what was written beyond that step,
  and lines that a killed process left torn. While the disk is full, lines are kept
  in memory, and written when there is room again.

  Args:
    workdir: of the run.
    step: that it goes on from.
    mirrors: told the same; they must not raise. TensorBoard's is always there.
  """

  def __init__(
    self, workdir: pathlib.Path, *, step: int = 0, mirrors: Sequence[Mirror] = ()
  ):
    self._path = workdir / FILE
    _drop_after(self._path, step)
    self._path.touch()
    self._unwritten = b""
    self._told = False
    self._mirrors: list[Mirror] = [Board(workdir / BOARD, step), *mirrors]

  def write(self, step: int, values: Mapping[str, float | None]) -> None:
    """Appends the values after `step` steps. What is not finite is written as null."""
    finite = {k: _finite(v) for k, v in values.items()}
    line = {"step": step, "time": round(time.time(), 3), **finite}
    self._unwritten += json.dumps(line).encode() + b"\n"
    self._flush()
    for mirror in self._mirrors:
      mirror.write(step, finite)

  def close(self) -> None:
    self._flush()
    if lost := self._unwritten.count(b"\n"):
      log.error("%d lines of metrics could not be written to %s.", lost, self._path)
    for mirror in self._mirrors:
      mirror.close()

  def _flush(self) -> None:
    try:
      with self._path.open("ab", buffering=0) as file:
        while self._unwritten:  # a disk that fills up takes a part
          written = file.write(self._unwritten)
          self._unwritten = self._unwritten[written:]
      self._told = False
    except OSError as error:
      if not self._told:
        self._told = True
        log.warning(
          "%s cannot be written to (%s); training goes on, and its numbers are kept in "
          "memory until it can.", self._path, error.strerror
        )  # fmt: skip


class Board(contextlib.AbstractContextManager):
  """A mirror for TensorBoard; a context. Told once, it ends where it cannot write.

  It writes within the call: tensorboardX's own writer has a thread, and once that has met
  a full disk whoever hands it numbers waits for ever.

  Args:
    folder: of its own, because TensorBoard reads one growing file of a folder. It is made
      when the first numbers come.
    step: what TensorBoard has of later ones is not shown any more; 0 is nothing.
  """

  def __init__(self, folder: pathlib.Path, step: int = 0):
    self._folder, self._step = folder, step
    self._events: EventsWriter | None = None
    self._ended = False

  def __exit__(self, *_) -> None:
    self.close()

  def write(self, step: int, values: Mapping[str, float | None]) -> None:
    """Writes the values of `step`; those that are not finite are left out."""
    event = _EVENTS.Event(wall_time=time.time(), step=step)
    for name, value in values.items():
      if (number := _finite(value)) is not None:
        # TensorBoard knows no "@" in names.
        tag = name.replace("@", "_at_")
        event.summary.value.extend(tensorboardX.summary.scalar(tag, number).value)
    self._try(lambda events: events.write_event(event) or events.flush())

  def close(self) -> None:
    if self._events:
      self._try(lambda events: events.close())
      self._events = None

  def _try(self, work: Callable[[EventsWriter], Any]) -> None:
    if self._ended:
      return
    try:
      self._events = self._events or self._opened()
      work(self._events)
    except OSError as error:
      log.warning("TensorBoard gets no more numbers: %s.", error.strerror)
      self._ended, events, self._events = True, self._events, None
      # What is left in its buffer would be tried again whenever it is collected.
      with contextlib.suppress(OSError):
        if events:
          events._py_recordio_writer.close()

  def _opened(self) -> EventsWriter:
    self._folder.mkdir(parents=True, exist_ok=True)
    # Files are called by the second, and a run may start twice in one.
    events = EventsWriter(str(self._folder / "events"), f".{time.time_ns()}")
    if self._step:
      began = _EVENTS.SessionLog(status=_EVENTS.SessionLog.START)
      events.write_event(_EVENTS.Event(step=self._step + 1, session_log=began))
    return events


def _finite(value: float | None) -> float | None:
  return float(value) if value is not None and math.isfinite(value) else None


def _drop_after(path: pathlib.Path, step: int) -> None:
  if not path.exists():
    return
  lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
  kept = [f"{line}\n" for line in lines if _step_of(line) <= step]
  replacement = path.with_suffix(".tmp")
  replacement.write_text("".join(kept), encoding="utf-8")
  replacement.replace(path)


def _step_of(line: str) -> float:
  """Infinite where it is damaged."""
  try:
    return float(json.loads(line)["step"])
  except (ValueError, KeyError, TypeError):
    return math.inf
