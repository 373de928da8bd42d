import pathlib
import re
import shlex
import signal

import pytest

from rankclip_jax import stopping

ROOT = pathlib.Path(__file__).parents[2]
JOBS = sorted((ROOT / "launch" / "slurm").glob("*.sbatch"))
# sbatch's options that we use, each with what its value looks like; None has no value.
OPTIONS = {
  "job-name": r"[\w-]+",
  "nodes": r"\d+",
  "ntasks": r"\d+",
  "ntasks-per-node": r"\d+",
  "gres": r"gpu:\d+",
  "cpus-per-task": r"\d+",
  "mem": r"\d+[KMGT]?",
  "time": r"\d+:\d\d:\d\d",
  "signal": r"(?:[RB]{1,2}:)?\w+@\d+",
  "requeue": None,
  "open-mode": "append",
  "output": r"[\w.-]*%j[\w.-]*",
}


def directives(path: pathlib.Path) -> dict[str, str | None]:
  """The #SBATCH lines that sbatch reads: those before the first command."""
  out = {}
  first_command = False
  for line in path.read_text(encoding="utf-8").splitlines():
    first_command |= bool(line.strip()) and not line.startswith("#")
    if line.startswith("#SBATCH"):
      assert not first_command, f"sbatch does not read {line!r} after a command"
      (word,) = shlex.split(line)[1:]
      name, _, value = word.removeprefix("--").partition("=")
      assert name in OPTIONS, line
      assert re.fullmatch(OPTIONS[name] or "", value), line
      assert name not in out, line
      out[name] = value or None
  return out


def test_there_are_jobs():
  assert [path.name for path in JOBS] == ["one_gpu.sbatch", "train.sbatch"]


@pytest.mark.parametrize("path", JOBS, ids=lambda p: p.name)
def test_a_job_is_told_before_its_time_is_up_and_queued_again(path):
  options = directives(path)
  assert "requeue" in options
  assert options["open-mode"] == "append"  # the log of the first part stays
  name, seconds = str(options["signal"]).split("@")
  # To the tasks and not to the shell, as the program saves and the shell asks it.
  assert signal.Signals[f"SIG{name}"] in stopping._SIGNALS
  assert int(seconds) >= 120  # Slurm's clock may be 60 seconds off


def test_a_task_has_a_gpu_and_sees_those_of_its_node():
  options = directives(ROOT / "launch" / "slurm" / "train.sbatch")
  assert options["gres"] == f"gpu:{options['ntasks-per-node']}"


@pytest.mark.parametrize("path", JOBS, ids=lambda p: p.name)
@pytest.mark.parametrize(
  "code, again", [(0, False), (1, False), (75, True), (134, True), (137, True)]
)
def test_exit_code_75_queues_the_job_again(shell, path, code, again):
  result = shell.run(
    ["bash", str(path), "--config=c.py"], SRUN=str(code), SLURM_JOB_ID="7"
  )
  assert result.returncode == code
  srun, *more = shell.calls()
  assert srun[0] == "srun"
  assert more == ([["scontrol", "requeue", "7"]] if again else [])


def test_what_tasks_run(shell):
  shell.run(["bash", "launch/slurm/train.sbatch", "--config=a b"])
  ((*_, program, mode, flag),) = shell.calls()
  assert (program, mode) == ("launch/run.sh", "--config.distributed.mode=auto")
  assert flag == "--config=a b"
  shell.run(["bash", "launch/slurm/one_gpu.sbatch", "--x=1"], SLURM_ARRAY_TASK_ID="3")
  ((*_, program, flag, shard),) = shell.calls()
  assert (program, flag, shard) == ("launch/run.sh", "--x=1", "--config.eval.shard=3")
  # Without an array nothing is added.
  shell.run(["bash", "launch/slurm/one_gpu.sbatch", "--x=1"])
  ((*_, program, flag),) = shell.calls()
  assert (program, flag) == ("launch/run.sh", "--x=1")


@pytest.mark.parametrize("path", JOBS, ids=lambda p: p.name)
def test_a_job_from_elsewhere_is_refused(shell, path, tmp_path):
  result = shell.run(f"cd {tmp_path} && bash {path}")
  assert result.returncode != 0
  assert "launch/slurm/step.sh" in result.stderr


def test_the_merge_waits_for_the_array(shell):
  flags = ["--config=c.py", "--workdir=w"]
  result = shell.run(["launch/slurm.sh", "evaluate", *flags], SHARDS="3")
  assert result.returncode == 0, result.stderr
  array, merge = shell.calls()
  assert "--array=0-2" in array
  # The stand-in answers as sbatch does in a federation: "123;cluster".
  assert "--dependency=afterok:123" in merge
  assert array[-3:-1] == ["--workdir=w", "--config.mode=eval"]
  assert merge[-2:] == ["--config.mode=merge", "--config.eval.num_shards=3"]
  dry = shell.run(["launch/slurm.sh", "evaluate", *flags, "--dry-run"], SHARDS="3")
  assert shell.calls() == []
  shell.run(dry.stdout.replace("ARRAY", "123"))
  assert shell.calls() == [array, merge]
