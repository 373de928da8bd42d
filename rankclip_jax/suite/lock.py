"""One job of a kind at a time: a lock that its process holds while it lives."""

import contextlib
import datetime
import errno
import fcntl
import json
import logging
import os
import pathlib
import socket
from collections.abc import Iterator
from typing import IO

import jax

from rankclip_jax.together import together

log = logging.getLogger(__name__)


@contextlib.contextmanager
def held(path: pathlib.Path, job: str, remedy: str) -> Iterator[None]:
  """Holds the lock of a job, whose process 0 it belongs to.

  The system gives it back when the process ends, however it ends.

  Args:
    path: of the file, which stays.
    job: what it is of, for the error.
    remedy: likewise.

  Raises:
    ValueError: naming host and process that hold it.
  """
  take = lambda: _taken(path, job, remedy) if jax.process_index() == 0 else None
  file = together(take)
  try:
    yield
  finally:
    if file:
      file.close()


def check_free(path: pathlib.Path, job: str, remedy: str) -> None:
  """Refuses to go on while a process holds this lock; raises as `held`."""
  _taken(path, job, remedy).close()


def _taken(path: pathlib.Path, job: str, remedy: str) -> IO[str]:
  path.parent.mkdir(parents=True, exist_ok=True)
  file = path.open("a+", encoding="utf-8")
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError as error:
    if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
      log.warning(
        "%s cannot be locked (%s): nothing keeps a second %s from running beside this "
        "one.", path, error.strerror, job
      )  # fmt: skip
      return file
    holder = _holder(file)
    file.close()
    raise ValueError(f"{job} runs already {holder}; {remedy}") from error
  file.truncate(0)
  now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
  json.dump({"host": socket.gethostname(), "pid": os.getpid(), "since": now}, file)
  file.flush()
  return file


def _holder(file: IO[str]) -> str:
  file.seek(0)
  try:
    facts = json.loads(file.read())
    return f"on host {facts['host']} as process {facts['pid']} since {facts['since']}"
  except (ValueError, KeyError):  # it has only just been taken
    return f"in another process, see {file.name}"
