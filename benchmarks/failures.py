"""Real processes on loopback that are killed, frozen and terminated, over and over.

    python benchmarks/failures.py --kills=20 --freezes=5 --terminations=20

Of four processes with two devices each one is killed (SIGKILL) or frozen (SIGSTOP) at a
random step, or all get SIGTERM within a second. Asked: how soon the others end and with
which codes, at which step each saved, and whether the same command on all then ends bit-
equal to a run that nobody disturbed, in every loss and in the state that it saved.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import loopback, machine  # noqa: E402
from rankclip_jax.stopping import EXIT_STOPPED  # noqa: E402

STEPS = 12
FLAGS = (
  "--config=configs/openmoji.py",
  "--config.model.name=nano",
  "--config.data.batch_size=64",
  "--config.data.holdout=100",
  "--config.data.subset=384",
  "--config.optim.epochs=2",
  "--config.checkpoint.every_steps=2",
  "--config.eval.every_epochs=0",
)
HEARTBEAT = 10  # seconds, the least that the config takes
# 75, and what JAX's runtime ends a process with that has lost another: SIGABRT.
RESTARTED = (EXIT_STOPPED, -signal.SIGABRT)
# For four processes to import, meet and compile on two cores.
PATIENCE = 600.0


@dataclasses.dataclass(frozen=True)
class Ended:
  """What came of one disturbance.

  Attributes:
    step: that was logged when it came.
    seconds: until the last of the other processes had ended.
    codes: of all, as `subprocess` gives them.
    saved: the step of the newest checkpoint.
  """

  step: int
  seconds: float
  codes: tuple[int, ...]
  saved: int

  @property
  def is_saved_by_all(self) -> bool:
    """Whether all said that they had saved, at a step that had not been logged before.

    A checkpoint is complete when every process has written its part of that step.
    """
    return set(self.codes) == {EXIT_STOPPED} and self.saved >= self.step


class Run:
  """All processes of one command, on ports of this machine."""

  def __init__(self, workdir: pathlib.Path, processes: int, devices: int, *flags: str):
    self.workdir = workdir
    workdir.mkdir(parents=True, exist_ok=True)
    environment = {
      **os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)
    }  # fmt: skip
    beat = f"--config.distributed.heartbeat_seconds={HEARTBEAT}"
    command = [sys.executable, "main.py", *FLAGS, f"--workdir={workdir}", beat, *flags]
    self.outputs = [workdir / f"output.{i}.txt" for i in range(processes)]
    self.processes = []
    for path, own in zip(self.outputs, loopback.flags(processes), strict=True):
      with path.open("a") as out:
        out.write(f"--- {time.ctime()}\n")
        out.flush()
        self.processes.append(
          subprocess.Popen(
            [*command, *own], cwd=ROOT, env=environment, stdout=out, stderr=out
          )
        )

  def wait(self, seconds: float = PATIENCE) -> tuple[int, ...]:
    """The codes of all.

    Raises:
      subprocess.TimeoutExpired: if one does not end in time; all are killed.
    """
    until = time.monotonic() + seconds
    try:
      return tuple(p.wait(max(until - time.monotonic(), 0.1)) for p in self.processes)
    finally:
      self.kill()

  def kill(self) -> None:
    """Whatever is left of it."""
    for process in self.processes:
      process.kill()
      process.wait()

  def reach(self, step: int) -> int:
    """Waits until so many steps are logged; returns how many are.

    Raises:
      RuntimeError: if a process ends before.
    """
    until = time.monotonic() + PATIENCE
    while (logged := last_step(self.workdir)) < step:
      if any(p.poll() is not None for p in self.processes) or time.monotonic() > until:
        self.kill()
        raise RuntimeError(f"It did not reach step {step}: {self.said()}")
      time.sleep(0.005)
    return logged

  def said(self) -> str:
    """The last lines of every process."""
    return "\n".join(path.read_text()[-2000:] for path in self.outputs)


def losses(workdir: pathlib.Path) -> dict[int, float]:
  """By step, of all steps that are logged."""
  path = workdir / "metrics.jsonl"
  lines = path.read_text().split("\n")[:-1] if path.exists() else []
  found = map(json.loads, filter(None, lines))
  return {x["step"]: x["train/loss"] for x in found if "train/loss" in x}


def last_step(workdir: pathlib.Path) -> int:
  return max(losses(workdir), default=0)


def newest(workdir: pathlib.Path) -> int:
  """The step of the newest complete checkpoint; -1 without any."""
  found = (workdir / "checkpoints").glob("*")
  return max((int(p.name) for p in found if p.name.isdecimal()), default=-1)


def fingerprint(workdir: pathlib.Path) -> tuple[int, dict]:
  """Of the newest checkpoint: its step, and sums over the bits of all its arrays."""
  step = newest(workdir)
  facts = json.loads((workdir / f"checkpoints/{step}/facts/metadata").read_text())
  return step, facts["fingerprint"]


def kill_one(run: Run, step: int, who: int, how: signal.Signals) -> Ended:
  """Sends a signal to one process at a step, and waits for the others to end."""
  logged = run.reach(step)
  began = time.monotonic()
  run.processes[who].send_signal(how)
  others = [p for i, p in enumerate(run.processes) if i != who]
  try:
    for process in others:
      process.wait(max(began + 10 * HEARTBEAT - time.monotonic(), 0.1))
    seconds = time.monotonic() - began
  finally:
    run.kill()
  codes = tuple(p.returncode for p in run.processes)
  return Ended(logged, seconds, codes, newest(run.workdir))


def terminate_all(run: Run, step: int, within: float, chance: random.Random) -> Ended:
  """SIGTERM to all, in any order within some seconds, as schedulers send it."""
  logged = run.reach(step)
  began = time.monotonic()
  for process in chance.sample(run.processes, len(run.processes)):
    process.send_signal(signal.SIGTERM)
    time.sleep(chance.random() * within / len(run.processes))
  codes = run.wait()
  return Ended(logged, time.monotonic() - began, codes, newest(run.workdir))


def is_alike(workdir: pathlib.Path, undisturbed: pathlib.Path) -> bool:
  """Whether two finished runs are bit-equal."""
  same = losses(workdir) == losses(undisturbed)
  return same and fingerprint(workdir) == fingerprint(undisturbed)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--processes", type=int, default=4)
  parser.add_argument("--devices", type=int, default=2, help="of each process")
  parser.add_argument("--kills", type=int, default=20)
  parser.add_argument("--freezes", type=int, default=5)
  parser.add_argument("--terminations", type=int, default=20)
  parser.add_argument("--seed", type=int, default=0)
  args = parser.parse_args()
  packages = ("jax", "jaxlib", "orbax-checkpoint")
  print(machine.describe(packages, os.cpu_count() or 1))
  print(f"{args.processes} processes with {args.devices} devices each, {STEPS} steps.")
  chance = random.Random(args.seed)
  with tempfile.TemporaryDirectory() as folder:
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{folder}/cache")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
    root = pathlib.Path(folder)
    began = time.monotonic()
    run = Run(root / "undisturbed", args.processes, args.devices)
    if set(codes := run.wait()) != {0}:
      raise RuntimeError(f"The undisturbed run ended with {codes}: {run.said()}")
    print(f"Undisturbed: {time.monotonic() - began:.0f} s.\n")
    print("| what | at step | others ended after s | codes | saved | bit-equal then |")
    print("|---|---:|---:|---|---:|---|")
    trials = ["kill"] * args.kills + ["freeze"] * args.freezes
    trials += ["terminate"] * args.terminations
    rows = [trial(name, root, args, chance) for name in trials]
  for name in dict.fromkeys(trials):
    print(f"\n{summary(name, [r for n, r in rows if n == name])}")
  if not all(alike for _, (_, alike) in rows):
    sys.exit(1)
  if not all(e.is_saved_by_all for name, (e, _) in rows if name == "terminate"):
    sys.exit(1)


def trial(
  name: str, root: pathlib.Path, args: argparse.Namespace, chance: random.Random
) -> tuple[str, tuple[Ended, bool]]:
  """One disturbance and the run that goes on; prints its row."""
  workdir = root / "disturbed"
  run = Run(workdir, args.processes, args.devices)
  step = chance.randint(1, STEPS - 1)
  if name == "terminate":
    what, ended = "SIGTERM to all", terminate_all(run, step, 1.0, chance)
  else:
    how = signal.SIGKILL if name == "kill" else signal.SIGSTOP
    who = chance.randrange(args.processes)
    what, ended = f"{how.name} to {who}", kill_one(run, step, who, how)
  again = Run(workdir, args.processes, args.devices)
  codes = again.wait()
  alike = set(codes) == {0} and is_alike(workdir, root / "undisturbed")
  shown = ", ".join(map(str, ended.codes))
  print(
    f"| {what} | {ended.step} | {ended.seconds:.1f} | {shown} | {ended.saved} | "
    f"{'yes' if alike else f'NO: {codes} {again.said()}'} |",
    flush=True,
  )
  shutil.rmtree(workdir)
  return name, (ended, alike)


def summary(name: str, found: Sequence[tuple[Ended, bool]]) -> str:
  """One line on all disturbances of a kind."""
  seconds = sorted(ended.seconds for ended, _ in found)
  equal = sum(alike for _, alike in found)
  codes = sorted({code for ended, _ in found for code in ended.codes})
  common = sum(ended.is_saved_by_all for ended, _ in found)
  saved = f"saved at one step {common} of {len(found)}; " if name == "terminate" else ""
  return (
    f"{name}: {len(found)} times; the others ended after "
    f"{seconds[len(seconds) // 2]:.1f} s (median), {seconds[-1]:.1f} s (longest); codes "
    f"{codes}; {saved}bit-equal afterwards {equal} of {len(found)}."
  )


if __name__ == "__main__":
  main()
