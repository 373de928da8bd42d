"""One job of a kind at a time: a lock that its process holds while it lives.

The system's own lock (flock) ends with its process, however that ends. Some file systems
do not carry it to other hosts, or have none; so the owner also touches the file every
`BEAT` seconds, which anyone can see who sees the file. No clocks are compared.
"""

import contextlib
import dataclasses
import datetime
import errno
import fcntl
import json
import logging
import os
import pathlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import IO

TRAINING = "training_lock.json"
"""The name, in a workdir, of the lock of its training."""

BEAT = 15.0  # seconds between signs of life

log = logging.getLogger(__name__)


class HeldError(ValueError):
  """Another process does this already."""


@dataclasses.dataclass(frozen=True)
class Owner:
  """Who took a lock: a process of a host, and when."""

  host: str
  pid: int
  since: str
  boot: str = ""  # of the host's kernel, where it says

  def __str__(self) -> str:
    return f"on host {self.host} as process {self.pid} since {self.since}"

  def is_gone(self) -> bool:
    """Whether this is known: of another host's processes nothing is."""
    if self.host != socket.gethostname():
      return False
    try:
      os.kill(self.pid, 0)
    except (ProcessLookupError, OverflowError):  # the latter for what is no process's
      return True
    except OSError:  # it belongs to someone else
      pass
    return False


@contextlib.contextmanager
def held(path: pathlib.Path, job: str, remedy: str) -> Iterator[None]:
  """Holds the lock of a job; use it with `together.of_first`.

  Args:
    path: of the file, which stays, empty after an orderly end.
    job: what it is of, for the error.
    remedy: likewise.

  Raises:
    HeldError: naming host and process that hold it.
  """
  with _taken(path, job, remedy) as file:
    ended = threading.Event()
    beating = threading.Thread(target=_beat, args=(file, ended), daemon=True)
    beating.start()
    try:
      yield
    finally:
      ended.set()
      beating.join()
      with contextlib.suppress(OSError):  # a full disk must not hide how the job ended
        file.truncate(0)


def owner(path: pathlib.Path) -> Owner | None:
  """Who took the lock last, unless it was given back or has only just been taken."""
  try:
    facts = json.loads(path.read_text(encoding="utf-8"))
    boot = str(facts.get("boot", ""))
    return Owner(str(facts["host"]), int(facts["pid"]), str(facts["since"]), boot)
  except (OSError, ValueError, KeyError, TypeError, AttributeError):
    return None  # damaged, if it is there


def silence(path: pathlib.Path) -> float:
  """Seconds since the last sign of life, by this host's clock; inf without a file."""
  try:
    return max(time.time() - path.stat().st_mtime, 0.0)
  except OSError:
    return float("inf")


def is_alive(path: pathlib.Path) -> bool:
  """Whether the job seems to run, as far as a look at the file can tell."""
  found = owner(path)
  return bool(found) and not found.is_gone() and silence(path) < 4 * BEAT


def _taken(path: pathlib.Path, job: str, remedy: str) -> IO[str]:
  path.parent.mkdir(parents=True, exist_ok=True)
  file = path.open("a+", encoding="utf-8")
  before = owner(path)
  try:
    free = _is_free(path, before, locked=_flock(file, job))
  except BlockingIOError:
    free = False
    # Servers of network file systems may keep the lock of a host that is gone.
    if before and not _is_here(before) and not _shows_life(path, before):
      if os.path.samestat(os.fstat(file.fileno()), path.stat()):
        path.replace(path.with_suffix(".stale"))  # and the lock with it
      file.close()
      return _taken(path, job, remedy)
  if not free:
    file.close()
    where = owner(path) or f"in another process, see {path}"
    raise HeldError(f"{job} runs already {where}; {remedy}")
  file.truncate(0)
  now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
  own = Owner(socket.gethostname(), os.getpid(), now, _boot())
  json.dump(dataclasses.asdict(own), file)
  file.flush()
  return file


def _boot() -> str:
  with contextlib.suppress(OSError):
    return pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
  return ""


def _is_here(before: Owner) -> bool:
  """Whether it is of this very kernel, whose locks end with their processes."""
  return before.host == socket.gethostname() and before.boot == _boot()


def _is_free(path: pathlib.Path, before: Owner | None, *, locked: bool) -> bool:
  """Whether `before` is over, given whether the system's lock is ours."""
  if before is None or before.is_gone():
    return True
  if locked and before.host == socket.gethostname():
    return True
  return not _shows_life(path, before)


def _flock(file: IO[str], job: str) -> bool:
  """Whether the system's lock is ours; False where there is none.

  Raises:
    BlockingIOError: if it is another's.
  """
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError as error:
    if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
      raise BlockingIOError from error
    log.warning(
      "%s cannot be locked (%s): a second %s is kept out by signs of life alone, and not "
      "if both start in the same moment.", file.name, error.strerror, job
    )  # fmt: skip
    return False
  return True


def _shows_life(path: pathlib.Path, before: Owner) -> bool:
  """Whether the file is touched while we look."""
  seconds = 1.5 * BEAT
  log.info(
    "%s was last taken %s, which gave no sign that it ended; looking for %.0f s whether "
    "it lives.", path.name, before, seconds
  )  # fmt: skip
  first = _touched(path)
  until = time.monotonic() + seconds
  while time.monotonic() < until:
    time.sleep(BEAT / 15)
    if _touched(path) != first:
      return True
  return False


def _touched(path: pathlib.Path) -> int:
  with path.open("rb") as file:  # opening asks network file systems for the truth
    return os.fstat(file.fileno()).st_mtime_ns


def _beat(file: IO[str], ended: threading.Event) -> None:
  while not ended.wait(BEAT):
    with contextlib.suppress(OSError):
      os.utime(file.fileno())
