import multiprocessing
import os
import signal

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
