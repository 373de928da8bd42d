"""Two real processes on loopback that are killed, frozen, stopped, and cannot save.

`benchmarks/failures.py` does the same with four, over and over.
"""

import json
import os
import random
import resource
import shutil
import signal
import time

import pytest

from benchmarks import failures
from benchmarks.failures import RESTARTED, Run
from rankclip_jax import saving
from rankclip_jax.stopping import EXIT_STOPPED


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("undisturbed")
  run = Run(workdir, 2, 1)
  assert run.wait() == (0, 0), run.said()
  return workdir


def test_a_run_survives_the_loss_of_any_of_its_processes(undisturbed, tmp_path):
  """Killed, frozen, told to stop: each time both end, and the same command goes on."""
  chance = random.Random(0)
  for how, step, within in (
    (signal.SIGKILL, 3, 2.0),
    (signal.SIGSTOP, 5, 3.0),  # nothing closes: heartbeats must tell
  ):
    who = chance.randrange(2)
    ended = failures.kill_one(Run(tmp_path, 2, 1), step, who, how)
    assert ended.codes[1 - who] in RESTARTED
    assert ended.seconds < within * failures.HEARTBEAT
    assert ended.saved < failures.STEPS

  # One alone is told; the second time amid the evaluation after the last step.
  for step in (7, failures.STEPS):
    # Small batches are many, so that it lasts for seconds.
    run = Run(tmp_path, 2, 1, "--config.eval.batch_size=4")
    logged = run.reach(step)
    run.processes[chance.randrange(2)].send_signal(signal.SIGTERM)
    assert run.wait() == (EXIT_STOPPED, EXIT_STOPPED), run.said()
    # It takes a step to tell the others and one to hear it.
    assert logged <= failures.newest(tmp_path) <= failures.STEPS
    assert f"Stopped by a signal at step {failures.newest(tmp_path)};" in run.said()
    if failures.newest(tmp_path) == failures.STEPS:
      break  # steps may be fast
  assert "eval/" not in (tmp_path / "metrics.jsonl").read_text()

  run = Run(tmp_path, 2, 1)
  assert run.wait() == (0, 0), run.said()
  assert failures.is_alike(tmp_path, undisturbed)


def test_an_evaluation_of_several_processes_stops_as_one(undisturbed, tmp_path):
  workdir = tmp_path / "copy"
  shutil.copytree(undisturbed, workdir, ignore=shutil.ignore_patterns("output.*"))
  shutil.rmtree(workdir / "results")
  run = Run(workdir, 2, 1, "--config.mode=eval", "--config.eval.batch_size=2")
  until = time.monotonic() + 120
  while "Held out: 100 pictures" not in run.outputs[1].read_text():
    assert run.processes[1].poll() is None, run.said()
    assert time.monotonic() < until, run.said()
    time.sleep(0.01)
  run.processes[1].send_signal(signal.SIGTERM)
  assert run.wait(60) == (EXIT_STOPPED, EXIT_STOPPED), run.said()
  assert not list((workdir / "results").glob("*.json"))


@pytest.mark.parametrize("who", [0, 1])
def test_training_goes_on_while_one_process_cannot_save(undisturbed, tmp_path, who):
  """A limit on the size of files stands for a full disk, of one process alone."""
  flags = "--config.checkpoint.timeout_seconds=3", "--config.mesh.fsdp=2"
  run = Run(tmp_path, 2, 1, *flags)
  run.reach(3)
  limit = lambda size: resource.prlimit(
    run.processes[who].pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY)
  )
  limit(2**14)
  told = tmp_path / saving.FILE
  until = time.monotonic() + 60
  while not (told.exists() and told.read_text().count("\n") >= 2):
    assert time.monotonic() < until, run.said()
    time.sleep(0.01)
  limit(resource.RLIM_INFINITY)
  assert run.wait() == (0, 0), run.said()
  # Orbax's threads of the saves that failed would hold both for 300 s.
  written = (tmp_path / "report" / "index.html").stat().st_mtime
  assert time.time() - written < 60
  assert "could not be written" in run.outputs[0].read_text()
  noted = [json.loads(line) for line in told.read_text().splitlines()]
  assert {x["process"] for x in noted} == {0, 1}  # who waited for it failed too
  assert "File too large" in {x["error"] for x in noted}
  found, wanted = failures.losses(tmp_path), failures.losses(undisturbed)
  assert found.keys() == wanted.keys()
  for step, loss in wanted.items():
    assert found[step] == pytest.approx(loss, rel=1e-6), step
  assert failures.newest(tmp_path) == failures.STEPS
  assert not list((tmp_path / "checkpoints").glob("*tmp*"))

  if who == 0:
    return
  # What process 1 wrote of the newest checkpoint is torn: none uses it, and none waits.
  newest = tmp_path / "checkpoints" / str(failures.STEPS)
  parts = list(newest.glob("*/ocdbt.process_1/d/*"))
  assert parts
  for path in parts:
    os.truncate(path, path.stat().st_size // 2)
  run = Run(tmp_path, 2, 1, *flags)
  assert run.wait() == (0, 0), run.said()
  assert list((tmp_path / "checkpoints_corrupt").glob(f"{failures.STEPS}.*"))
  assert failures.newest(tmp_path) == failures.STEPS
