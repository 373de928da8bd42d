"""Real processes on loopback: what usually goes wrong is one line on each, soon."""

import os
import pathlib
import socket
import subprocess
import sys
import time

import pytest

from benchmarks.loopback import free_port
from rankclip_jax import launcher, lock, processes
from rankclip_jax.config import Config, DistributedConfig
from rankclip_jax.processes import table, workdir

ROOT = pathlib.Path(__file__).parents[2]
# What the launcher does before a mode begins.
PROGRAM = """
import ast, logging, pathlib, sys
from rankclip_jax import config, processes
logging.basicConfig(level=logging.INFO, format="%(message)s")
words = ast.literal_eval(sys.argv[1])
seed = words.pop("seed", 0)
folder = words.pop("folder", "")
cfg = config.Config(seed=seed, distributed=config.DistributedConfig(**words))
try:
  processes.join(cfg)
  if folder:
    processes.prepare(pathlib.Path(folder))
except ValueError as error:
  sys.exit(f"Error: {error}")
"""


def finish(*settings: dict, environments=({}, {})) -> list[tuple[int, str]]:
  """Exit code and output of one process for each of the settings."""
  running = [
    subprocess.Popen(
      [sys.executable, "-c", PROGRAM, repr(words)],
      cwd=ROOT,
      env={**os.environ, "JAX_NUM_CPU_DEVICES": "2", **variables},
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for words, variables in zip(settings, environments, strict=False)
  ]
  try:
    outputs = [process.communicate(timeout=120)[0] for process in running]
  finally:
    for process in running:
      process.kill()
  return [(p.returncode, out) for p, out in zip(running, outputs, strict=True)]


def explicit(index, count=2, port=0, timeout=60, **more) -> dict:
  address = f"127.0.0.1:{port or free_port()}"
  return {
    "mode": "explicit",
    "coordinator": address,
    "num_processes": count,
    "process_id": index,
    "timeout_seconds": timeout,
    **more,
  }


def refused(result: tuple[int, str]) -> str:
  code, output = result
  assert code == 1, output
  (line,) = output.splitlines()
  assert line.startswith("Error: ")
  return line


def test_a_wrong_count_and_another_config_are_told_to_all():
  port = free_port()
  zero, one = finish(explicit(0, 2, port), explicit(2, 3, port))
  assert refused(zero) == refused(one)
  assert "process 2" in refused(one)
  assert "of 3" in refused(one)
  port = free_port()
  zero, one = finish(explicit(0, 2, port), explicit(1, 2, port, seed=1))
  assert refused(zero) == refused(one)
  assert "Process 1 has config.seed 1, process 0 0" in refused(one)


def test_no_coordinator_and_a_port_in_use():
  (one,) = finish(explicit(1, timeout=1))
  assert "did not reach process 0" in refused(one)
  with socket.create_server(("", 0)) as server:
    (zero,) = finish(explicit(0, 2, server.getsockname()[1]))
    assert "cannot listen on port" in refused(zero)


def test_tasks_of_slurm_become_one_run(tmp_path):
  slurm = {
    "SLURM_JOB_ID": "1",
    "SLURM_STEP_NODELIST": "localhost",
    "SLURM_NTASKS": "2",
    "JAX_COORDINATOR_PORT": str(free_port()),
  }
  begun = time.monotonic()
  results = finish(
    *[{"mode": "auto", "folder": str(tmp_path / name)} for name in ("a", "b")],
    environments=[
      {**slurm, "SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)} for i in range(2)
    ],
  )
  first = "2 processes on 1 host(s), 4 devices, 2 each:"
  assert (
    f"By SLURM, coordinator localhost:{slurm['JAX_COORDINATOR_PORT']}" in results[0][1]
  )
  assert [first in output for _, output in results] == [True, False]
  # The two were given other folders.
  assert [code for code, _ in results] == [1, 1]
  assert "Process 1 failed; its own message says why" in results[0][1]
  assert f"{tmp_path / 'b'} is another folder for process 1 on host" in results[1][1]
  assert time.monotonic() - begun < 100


def test_auto_on_a_lone_machine_says_so(caplog):
  caplog.set_level("INFO", logger="rankclip_jax")
  processes.join(Config(distributed=DistributedConfig("auto")))
  assert "No cluster was found" in caplog.text


def test_accelerators_that_jax_does_not_see(monkeypatch):
  monkeypatch.setattr(processes, "_is_cpu_wanted", lambda: False)
  chips = "num_available_tpu_chips_and_device_id"
  monkeypatch.setattr(processes.hardware_utils, chips, lambda: (4, None))
  with pytest.raises(ValueError, match=r"4 TPU chips.* only its CPU: .*'jax\[tpu\]'"):
    processes.join(Config(distributed=DistributedConfig("auto")))


def test_a_training_that_is_one_of_many_tasks(monkeypatch):
  for name in ("SLURM_JOB_ID", "SLURM_PROCID", "SLURM_LOCALID"):
    monkeypatch.setenv(name, "0")
  monkeypatch.setenv("SLURM_STEP_NODELIST", "a")
  monkeypatch.setenv("SLURM_NTASKS", "2")
  with pytest.raises(ValueError, match="SLURM started 2 processes"):
    processes.join(Config())
  processes.join(Config(mode="eval"))  # as an array of jobs


def test_a_second_training_in_a_workdir_leaves_it_as_it_is(tmp_path):
  with lock.held(tmp_path / lock.TRAINING, "Training", "wait."):
    before = (tmp_path / lock.TRAINING).read_text()
    with pytest.raises(
      ValueError, match=r"Training in .* runs already on host .* as process"
    ):
      launcher.run(Config(), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [lock.TRAINING]
    assert (tmp_path / lock.TRAINING).read_text() == before


def test_a_folder_that_cannot_be(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(ValueError, match=r"cannot be written to \(Not a directory\)"):
    workdir.prepare(tmp_path / "file" / "below")
  workdir.prepare(tmp_path / "new" / "run")
  assert not list((tmp_path / "new" / "run").iterdir())


def test_the_table_names_what_processes_have():
  text = table.lines(["a", "a", "host"], [["H100:0", "H100:1"], ["H100:2"], []])
  assert text.splitlines() == [
    "3 processes on 2 host(s), 3 devices, 0 to 2 each:",
    "  process 0    a     2 H100 (0, 1)",
    "  process 1    a     1 H100 (2)",
    "  process 2    host  none",
  ]
  text = table.lines(["a"] * 256, [["TPU v4:0"]] * 256)
  assert len(text.splitlines()) == 18
  assert text.splitlines()[-2:] == ["  ...", "  process 255  a  1 TPU v4 (0)"]


@pytest.mark.parametrize("platform", ["abacus", "cuda"])
def test_accelerators_that_are_not_there(platform):
  environment = {**os.environ, "JAX_PLATFORMS": platform}
  command = [sys.executable, "-c", PROGRAM, repr({"mode": "off"})]
  ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
  line = refused((ran.returncode, ran.stderr))
  assert f"cannot use the devices of JAX_PLATFORMS='{platform}'" in line


def test_one_process_says_so_where_it_leaves_accelerators_idle(monkeypatch, caplog):
  """The default, mode="off": people with a GPU and JAX for CPUs may mean it."""
  monkeypatch.setattr(processes, "_is_cpu_wanted", lambda: False)
  monkeypatch.setattr(processes.gpus, "visible", lambda: ["GPU-1", "GPU-2"])
  monkeypatch.delenv("ACCELERATOR", raising=False)
  told = "This host has GPUs, but JAX sees only its CPU"
  processes.join(Config())
  assert told in caplog.text
  caplog.clear()
  processes.join(Config(mode="report"))  # reads and writes files
  assert not caplog.text
  # launch/ says what is to be used.
  monkeypatch.setenv("ACCELERATOR", "gpu")
  with pytest.raises(ValueError, match=told):
    processes.join(Config())
  monkeypatch.setattr(processes.gpus, "visible", lambda: [])
  with pytest.raises(ValueError, match=r"ACCELERATOR=gpu, but .*'jax\[cuda12\]'"):
    processes.join(Config())
  monkeypatch.setenv("ACCELERATOR", "cpu")
  processes.join(Config())
