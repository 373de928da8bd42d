"""Real processes on loopback that are killed, frozen and terminated, over and over.

    python benchmarks/failures.py --kills=20 --freezes=5 --terminations=20
    python benchmarks/failures.py --kills=0 --freezes=0 --terminations=20 --save-every=0

One run of four processes with two devices each. Again and again one of them is killed
(SIGKILL) or frozen (SIGSTOP) at a random step, or all get SIGTERM within a second, and
the same command is given again. Asked: how soon the others end and with which codes, what
is saved, and whether the run ends bit-equal to one that nobody disturbed, in every loss
and in the state that it saved.

On Linux, collectives between processes of one machine wait 40 ms for each delayed
acknowledgment; `ip route replace local 127.0.0.0/8 dev lo table local proto kernel scope
host src 127.0.0.1 quickack 1`, as root, takes these away.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import random
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

STEPS, EPOCH_STEPS = 12, 6
_ADVANCE = 3  # steps after the newest checkpoint, at most, at which it is disturbed
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
    said: the last lines of all.
  """

  step: int
  seconds: float
  codes: tuple[int, ...]
  saved: int
  said: str

  @property
  def is_saved_by_all(self) -> bool:
    """Whether all ended as told, having saved where they stopped.

    A checkpoint is complete when every process has written its part of that step.
    """
    stopped = f"Stopped by a signal at step {self.saved};" in self.said
    return stopped and set(self.codes) == {EXIT_STOPPED} and self.saved >= self.step


class Run:
  """All processes of one command, on ports of this machine."""

  def __init__(self, workdir: pathlib.Path, processes: int, devices: int, *flags: str):
    self.workdir, self.began = workdir, time.time()
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
    """Waits until this run has logged that step or a later one; returns which.

    Raises:
      RuntimeError: if a process ends before.
    """
    until = time.monotonic() + PATIENCE
    while (logged := max(losses(self.workdir, self.began), default=0)) < step:
      if any(p.poll() is not None for p in self.processes) or time.monotonic() > until:
        self.kill()
        raise RuntimeError(f"It did not reach step {step}: {self.said()}")
      time.sleep(0.005)
    return logged

  def said(self) -> str:
    """The last lines of every process."""
    return "\n".join(path.read_text()[-2000:] for path in self.outputs)


def losses(workdir: pathlib.Path, since: float = 0.0) -> dict[int, float]:
  """By step, of all steps that were logged after a time."""
  path = workdir / "metrics.jsonl"
  lines = path.read_text().split("\n")[:-1] if path.exists() else []
  found = map(json.loads, filter(None, lines))
  return {
    x["step"]: x["train/loss"] for x in found if "train/loss" in x and x["time"] >= since
  }


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
  return Ended(logged, seconds, codes, newest(run.workdir), run.said())


def terminate_all(run: Run, step: int, within: float, chance: random.Random) -> Ended:
  """SIGTERM to all, in any order within some seconds, as schedulers send it."""
  logged = run.reach(step)
  began = time.monotonic()
  for process in chance.sample(run.processes, len(run.processes)):
    process.send_signal(signal.SIGTERM)
    time.sleep(chance.random() * within / len(run.processes))
  codes = run.wait()
  seconds = time.monotonic() - began
  return Ended(logged, seconds, codes, newest(run.workdir), run.said())


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
  parser.add_argument(
    "--save-every", type=int, default=2, help="steps; 0: only what a signal asks for"
  )
  parser.add_argument("--seed", type=int, default=0)
  args = parser.parse_args()
  chance = random.Random(args.seed)
  kinds = ["kill"] * args.kills + ["freeze"] * args.freezes
  kinds += ["terminate"] * args.terminations
  chance.shuffle(kinds)
  # A step tells the others of a signal, and another one passes before it is heard.
  steps = _ADVANCE * (len(kinds) + args.terminations)
  epochs = steps // EPOCH_STEPS + 1
  packages = ("jax", "jaxlib", "orbax-checkpoint")
  print(machine.describe(packages, os.cpu_count() or 1))
  print(
    f"{args.processes} processes with {args.devices} devices each, "
    f"{epochs * EPOCH_STEPS} steps."
  )
  with tempfile.TemporaryDirectory() as folder:
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{folder}/cache")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
    root = pathlib.Path(folder)
    flags = (
      f"--config.optim.epochs={epochs}",
      f"--config.checkpoint.every_steps={args.save_every}",
    )
    start = lambda name: Run(root / name, args.processes, args.devices, *flags)
    began = time.monotonic()
    finish(start("undisturbed"))
    print(f"Undisturbed: {time.monotonic() - began:.0f} s.\n")
    print("| what | at step | others ended after s | codes | saved | losses equal |")
    print("|---|---:|---:|---|---:|---|", flush=True)
    found: list[tuple[str, Ended]] = []
    expected = losses(root / "undisturbed")
    for kind in kinds:
      run = start("disturbed")
      step = max(newest(run.workdir), 0) + chance.randint(1, _ADVANCE)
      what, ended = disturb(run, kind, step, chance)
      same = losses(run.workdir).items() <= expected.items()
      codes = ", ".join(map(str, ended.codes))
      print(
        f"| {what} | {ended.step} | {ended.seconds:.1f} | {codes} | {ended.saved} | "
        f"{'yes' if same else 'NO'} |",
        flush=True,
      )
      found.append((kind, ended))
    finish(start("disturbed"))
    alike = is_alike(root / "disturbed", root / "undisturbed")
  for kind in dict.fromkeys(kinds):
    print(f"\n{summary(kind, [ended for k, ended in found if k == kind])}")
  print(f"\nThe whole run is {'' if alike else 'NOT '}bit-equal to the undisturbed one.")
  if not (alike and all(e.is_saved_by_all for k, e in found if k == "terminate")):
    sys.exit(1)


def finish(run: Run) -> None:
  """Waits for its end.

  Raises:
    RuntimeError: if a process fails.
  """
  if set(codes := run.wait()) != {0}:
    raise RuntimeError(f"The run ended with {codes}: {run.said()}")


def disturb(run: Run, kind: str, step: int, chance: random.Random) -> tuple[str, Ended]:
  """Does one thing to a run, and says what."""
  if kind == "terminate":
    return "SIGTERM to all", terminate_all(run, step, 1.0, chance)
  how = signal.SIGKILL if kind == "kill" else signal.SIGSTOP
  who = chance.randrange(len(run.processes))
  return f"{how.name} to {who}", kill_one(run, step, who, how)


def summary(kind: str, found: Sequence[Ended]) -> str:
  """One line on all disturbances of a kind."""
  seconds = sorted(ended.seconds for ended in found)
  codes = sorted({code for ended in found for code in ended.codes})
  common = sum(ended.is_saved_by_all for ended in found)
  saved = f"; saved at one step {common} of {len(found)}" if kind == "terminate" else ""
  return (
    f"{kind}: {len(found)} times; the others ended after "
    f"{seconds[len(seconds) // 2]:.1f} s (median), {seconds[-1]:.1f} s (longest); codes "
    f"{codes}{saved}."
  )


if __name__ == "__main__":
  main()
