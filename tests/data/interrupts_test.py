import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from rankclip_jax.data import interrupts


def work(sent, signals):
  for number in signals:
    os.kill(os.getpid(), number)
  sent.put("still here")


@pytest.mark.parametrize("more", [(), (signal.SIGTERM,)])
def test_what_starts_within_passes_over_signals(more):
  spawn = multiprocessing.get_context("spawn")
  sent, signals = spawn.Queue(), (signal.SIGINT, signal.SIGUSR1, *more)
  process = spawn.Process(target=work, args=(sent, signals))
  with interrupts.blocked(*more):
    process.start()
  assert sent.get(timeout=60) == "still here"
  process.join(60)
  assert process.exitcode == 0


def lives_on():
  interrupts.end_with_parent()
  threading.Event().wait()


PARENT = """
import multiprocessing
from tests.data.interrupts_test import lives_on

process = multiprocessing.get_context("spawn").Process(target=lives_on)
process.start()
print(process.pid, flush=True)
process.join()
"""


def test_a_process_ends_with_one_that_is_killed():
  root = pathlib.Path(__file__).parents[2]
  parent = subprocess.Popen(
    [sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True, cwd=root
  )
  assert parent.stdout
  child = int(parent.stdout.readline())
  assert lives(child)
  parent.kill()
  parent.communicate()
  until = time.monotonic() + 60
  while lives(child):
    assert time.monotonic() < until
    time.sleep(0.05)


def lives(pid):
  """Whether it is there, and no zombie that nobody asks about."""
  try:
    stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
  except FileNotFoundError:
    return False
  return stat.rpartition(")")[2].split()[0] != "Z"
