"""`python main.py` in processes of their own, for tests: started, waited for, read.

A shrunken run: the nano model, 12 steps of two epochs, one CPU device unless a test says
otherwise. Two of them give the same bits; on another number of devices sums round
otherwise.
"""

import json
import os
import pathlib
import subprocess
import sys
import time

import jax
import numpy as np

from benchmarks import loopback
from rankclip_jax import checkpoint, plan, state
from rankclip_jax.config import Config, from_config_dict

ROOT = pathlib.Path(__file__).parents[1]
STEPS = 12
FLAGS = (
  "--config=configs/openmoji.py",
  "--config.model.name=nano",
  "--config.data.batch_size=512",
  "--config.optim.epochs=2",
  # Above rounding noise: see step_test on the gradient of key biases.
  "--config.optim.eps=1e-5",
  "--config.checkpoint.every_steps=2",
  "--config.eval.every_epochs=0",
)


def start(workdir, *flags, devices=1, script="main.py") -> subprocess.Popen[str]:
  environment = {**os.environ, "JAX_NUM_CPU_DEVICES": str(devices)}
  return subprocess.Popen(
    [sys.executable, script, *FLAGS, f"--workdir={workdir}", *flags],
    cwd=ROOT,
    env=environment,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def finish(process, code=0) -> str:
  try:
    output, _ = process.communicate(timeout=300)
  finally:
    process.kill()
  assert process.returncode == code, output
  return output


def wait_until(condition, process, seconds=240):
  until = time.monotonic() + seconds
  while not condition():
    assert process.poll() is None, f"ended too soon:\n{process.stdout.read()}"
    assert time.monotonic() < until, "waited too long"
    time.sleep(0.002)


def lines(workdir) -> list[dict]:
  path = workdir / "metrics.jsonl"
  if not path.exists():
    return []
  whole = [line for line in path.read_text().split("\n")[:-1] if line]
  return [json.loads(line) for line in whole]


def losses(workdir) -> dict[int, float]:
  steps = [line for line in lines(workdir) if "train/loss" in line]
  assert [line["step"] for line in steps] == list(range(1, STEPS + 1))
  return {line["step"]: line["train/loss"] for line in steps}


def final_params(workdir):
  cfg: Config = from_config_dict(json.loads((workdir / "config.json").read_text()))
  p = plan.make(cfg)
  saved = checkpoint.Checkpoints(workdir, read_only=True)
  step, facts = saved.facts("latest")
  assert step == STEPS
  shapes = state.abstract(p.size, p.objective, p.optimizer, p.mesh).params
  return saved.restore_params(step, shapes), facts["fingerprint"]


def assert_close(a, b, atol):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=atol), a, b)


def start_several(count, workdir, *flags, **options) -> list[subprocess.Popen[str]]:
  """One run of `count` processes on loopback, with `devices` each."""
  return [start(workdir, *own, *flags, **options) for own in loopback.flags(count)]
