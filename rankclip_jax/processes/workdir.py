"""One folder that all processes can write to, tried before any time is spent."""

import contextlib
import os
import pathlib
import secrets
import time

import jax
import numpy as np
from jax.experimental import multihost_utils

from rankclip_jax.together import together

# Network file systems show new files late.
_SECONDS_TO_APPEAR = 10.0


def prepare(workdir: pathlib.Path) -> None:
  """Makes the workdir; sees that all processes can write to it and mean the same one.

  Raises:
    ValueError: naming the host.
  """
  token = np.frombuffer(secrets.token_bytes(8), np.uint8)
  if jax.process_count() > 1:
    token = np.asarray(multihost_utils.broadcast_one_to_all(token), np.uint8)
  shared = workdir / f".shared.{token.tobytes().hex()}"
  first = jax.process_index() == 0
  try:
    together(lambda: _make(workdir, shared if first else None))
    together(lambda: None if first else _see(shared))
  finally:
    if first:
      with contextlib.suppress(OSError):
        shared.unlink(missing_ok=True)


def _make(workdir: pathlib.Path, shared: pathlib.Path | None) -> None:
  """Writes a file of its own, which goes, or the one for all."""
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    trial = workdir / f".writable.{jax.process_index()}"
    try:
      trial.write_bytes(bytes(2**16))  # a full disk takes empty files
    finally:
      trial.unlink(missing_ok=True)
    if shared:
      shared.touch()
  except OSError as error:
    raise ValueError(
      f"--workdir={workdir} cannot be written to{_here()} ({error.strerror}); make room, "
      "or choose a folder of yours."
    ) from error


def _see(shared: pathlib.Path) -> None:
  until = time.monotonic() + _SECONDS_TO_APPEAR
  while not shared.exists():
    if time.monotonic() > until:
      raise ValueError(
        f"--workdir={shared.parent} is another folder{_here()} than for process 0: what "
        "that wrote does not appear here. Choose a folder on a file system that all "
        "hosts share."
      )
    os.listdir(shared.parent)  # makes NFS look again
    time.sleep(0.2)


def _here() -> str:
  if jax.process_count() == 1:
    return ""
  return f" for process {jax.process_index()} on host {os.uname().nodename}"
