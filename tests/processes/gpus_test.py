"""How processes share the GPUs of hosts; no GPU is needed."""

import pytest

from rankclip_jax.processes import gpus
from rankclip_jax.processes.roll_call import Present

EIGHT = [f"GPU-{i}" for i in range(8)]


def present(index, gpus, devices, host="a") -> Present:
  return Present(index, 8, host, 100 + index, {"gpus": gpus, "devices": devices})


def one_each(host="a", start=0):
  return [present(start + i, EIGHT, [i], host) for i in range(8)]


@pytest.mark.parametrize(
  "everyone",
  [
    one_each(),
    one_each() + one_each("b", 8),
    [present(0, EIGHT, None), present(1, EIGHT, None, "b")],  # one a node, all GPUs
    [present(i, [EIGHT[i]], None) for i in range(8)],  # given one by CUDA_VISIBLE_DEVICES
    [present(i, [EIGHT[i]], [0]) for i in range(2)],  # the rest is hidden from both
    [present(0, [], None), present(1, [], None)],  # CPUs
  ],
)
def test_what_is_right(everyone):
  assert gpus.problem_of(everyone) == ""


def test_several_that_see_all_gpus():
  problem = gpus.problem_of([present(i, EIGHT, None, "node7") for i in range(8)])
  assert problem.startswith("Processes 0-7 on host node7 take the same GPU")


def test_idle_gpus():
  everyone = [*one_each(), present(8, EIGHT, [0], "b")]
  problem = gpus.problem_of(everyone)
  assert problem.startswith("GPUs 1-7 of the 8 on host b would be idle: it has 1 process")
  assert "--ntasks-per-node=8" in problem
  assert "JAX_LOCAL_DEVICE_IDS=0,1,2,3,4,5,6,7" in problem


def test_a_position_beyond_what_the_scheduler_gave():
  everyone = [present(i, [EIGHT[i]], [i]) for i in range(2)]
  problem = gpus.problem_of(everyone)
  assert problem.startswith("Process 1 on host a would take GPU 1 but sees only 1")
  assert "--gpus-per-node" in problem


@pytest.mark.parametrize(
  "variable, expected",
  [
    (None, EIGHT),
    ("", []),
    ("3,1", ["GPU-3", "GPU-1"]),
    ("GPU-5", ["GPU-5"]),
    ("0,99,1", ["GPU-0"]),  # CUDA stops at what it does not know
    ("-1", []),
    ("MIG-1234", ["MIG-1234"]),
  ],
)
def test_gpus_are_those_that_cuda_would_let_through(
  variable, expected, tmp_path, monkeypatch
):
  tool = tmp_path / "nvidia-smi"
  tool.write_text("#!/bin/sh\nprintf '%s\\n' " + " ".join(EIGHT) + "\n")
  tool.chmod(0o755)
  monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
  if variable is None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
  else:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
  assert gpus.visible() == expected


def test_without_nvidias_tools_nothing_is_known(tmp_path, monkeypatch):
  monkeypatch.setenv("PATH", str(tmp_path))
  assert gpus.visible() == []
  (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")  # a driver that fails
  (tmp_path / "nvidia-smi").chmod(0o755)
  assert gpus.visible() == []
