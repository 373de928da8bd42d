import multiprocessing
import os
import signal

from rankclip_jax.data import interrupts


def work(sent):
  os.kill(os.getpid(), signal.SIGINT)
  os.kill(os.getpid(), signal.SIGUSR1)
  sent.put("still here")


def test_what_starts_within_passes_over_ctrl_c():
  spawn = multiprocessing.get_context("spawn")
  sent = spawn.Queue()
  process = spawn.Process(target=work, args=(sent,))
  with interrupts.blocked():
    process.start()
  assert sent.get(timeout=60) == "still here"
  process.join(60)
  assert process.exitcode == 0
