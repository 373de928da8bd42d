import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from rankclip_jax import config

ROOT = pathlib.Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
FLAGS = [
  "--config=configs/cc3m.py:vit_b32,rankclip",
  "--workdir=/shared/runs/cc3m",
  "--config.data.train=/shared/cc3m/{00000..00331}.tar",
  "--config.attention.prompt=it's a {}; $HOME",
]
TPU = {
  "TPU_NAME": "run1",
  "ZONE": "us-west4-a",
  "ACCELERATOR_TYPE": "v5litepod-16",
  "RUNTIME_VERSION": "v2-alpha-tpuv5-lite",
  "IMAGE": "us-docker.pkg.dev/me/rankclip/rankclip:tpu",
  "NFS": "10.0.0.2:/share",
}
GKE = {"NAME": "run1", "IMAGE": "rankclip:1", "CLAIM": "shared"}
XPK = {"XPK": "cluster", "TPU_TYPE": "v5litepod-16"}
CASES = [
  *[
    ("tpu_vm.sh", action, TPU)
    for action in (
      "queue", "unqueue", "create", "delete", "wait", "install", "run", "follow", "merge",
      "status", "logs", "stop",
    )
  ],
  ("tpu_vm.sh", "queue", TPU | {"SPOT": "1", "PROJECT": "mine", "SHARDS": "2"}),
  ("tpu_vm.sh", "run", TPU | {"SHARDS": "2"}),
  ("tpu_vm.sh", "merge", TPU | {"SHARDS": "2"}),
  *[("gke.sh", "train", GKE | {"ACCELERATOR": kind}) for kind in ("gpu", "tpu")],
  *[("gke.sh", "evaluate", GKE | {"ACCELERATOR": kind}) for kind in ("gpu", "tpu")],
  *[("gke.sh", "follow", GKE | {"ACCELERATOR": kind}) for kind in ("gpu", "tpu")],
  *[("gke.sh", action, GKE) for action in ("merge", "status", "logs", "delete")],
  ("gke.sh", "train", GKE | {"ACCELERATOR": "tpu"} | XPK),
  *[("slurm.sh", action, {}) for action in ("train", "follow")],
  *[("gpu_node.sh", action, {}) for action in ("train", "follow", "evaluate")],
  ("gpu_node.sh", "train", {"CUDA_VISIBLE_DEVICES": "0,1"}),
  ("gpu_node.sh", "train", {"IMAGE": "rankclip:1"}),
  ("gpu_node.sh", "evaluate", {"IMAGE": "rankclip:1", "GPUS": "2"}),
]  # fmt: skip
IDS = [
  " ".join([c[0], c[1], *sorted(c[2].keys() - TPU.keys() - GKE.keys())]) for c in CASES
]


@pytest.mark.parametrize("script, action, environment", CASES, ids=IDS)
def test_a_dry_run_does_nothing_and_prints_what_would_run(
  shell, script, action, environment
):
  command = [f"launch/{script}", action, *FLAGS]
  dry = shell.run([*command, "--dry-run"], **environment)
  assert (dry.returncode, dry.stderr) == (0, "")
  assert shell.calls() == []
  assert shell.run(command, DRY_RUN="1", **environment).stdout == dry.stdout

  # What it prints does, when pasted, what the script does without it.
  assert shell.run(dry.stdout, **environment).returncode == 0
  pasted = shell.calls()
  assert shell.run(command, **environment).returncode == 0
  assert sorted(shell.calls()) == sorted(pasted)
  assert pasted


@pytest.mark.parametrize("script, action, environment", CASES, ids=IDS)
def test_flags_that_scripts_add_are_ours(shell, script, action, environment):
  dry = shell.run([f"launch/{script}", action, "--dry-run"], **environment).stdout
  config.check_flag_names(re.findall(r"--config\.[\w.]+=", dry))


def test_an_unknown_action_is_refused(shell):
  for script, environment in (
    ("tpu_vm.sh", TPU), ("gke.sh", GKE), ("slurm.sh", {}), ("gpu_node.sh", {}),
  ):  # fmt: skip
    result = shell.run([f"launch/{script}", "trian"], **environment)
    assert result.returncode == 2
    assert 'got "trian"' in result.stderr
    assert shell.calls() == []


@pytest.mark.parametrize(
  "script, action, environment, missing",
  [
    ("tpu_vm.sh", "queue", TPU, "TPU_NAME ZONE ACCELERATOR_TYPE RUNTIME_VERSION"),
    ("tpu_vm.sh", "install", TPU, "IMAGE NFS"),
    ("tpu_vm.sh", "run", TPU, "IMAGE"),
    ("tpu_vm.sh", "resume", TPU, "IMAGE NFS ACCELERATOR_TYPE RUNTIME_VERSION"),
    ("gke.sh", "train", GKE | {"ACCELERATOR": "gpu"}, "NAME IMAGE CLAIM ACCELERATOR"),
    ("gke.sh", "merge", GKE, "NAME IMAGE CLAIM"),
    ("gke.sh", "train", GKE | {"ACCELERATOR": "tpu"} | XPK, "TPU_TYPE"),
    ("run.sh", "", {"ACCELERATOR": "gpu"}, "ACCELERATOR"),
  ],
)
def test_what_is_missing_is_named_before_anything_is_done(
  shell, script, action, environment, missing
):
  for name in missing.split():
    others = {key: value for key, value in environment.items() if key != name}
    result = shell.run([f"launch/{script}", action], **others)
    assert result.returncode != 0
    assert name in result.stderr
    assert shell.calls() == []


def test_flags_arrive_on_a_worker_as_they_were_given(shell):
  shell.run(["launch/tpu_vm.sh", "run", *FLAGS], **TPU)
  ((*_, command),) = shell.calls()
  shell.run(command.removeprefix("--command="))
  removed, started = shell.calls()
  assert removed == ["sudo", "docker", "rm", "rankclip"]
  assert started[:3] == ["sudo", "docker", "run"]
  assert started[started.index(TPU["IMAGE"]) + 1 :] == [
    "--config.distributed.mode=auto",
    *FLAGS,
  ]


@pytest.mark.parametrize(
  "state, expected",
  [
    ("ACTIVE", ["describe", "ssh"]),
    ("SUSPENDED", ["describe", "delete", "create", "describe"]),
  ],
)
def test_resume_does_what_the_state_asks_for(shell, state, expected):
  result = shell.run(["launch/tpu_vm.sh", "resume", *FLAGS], STATE=state, **TPU)
  calls = shell.calls()
  assert [next(w for w in call if w in expected) for call in calls] == expected
  # The stand-in is lost again as soon as it is queued; that is said, not waited for.
  assert (result.returncode, "is SUSPENDED; queue it again" in result.stderr) == (
    (0, False) if state == "ACTIVE" else (2, True)
  )


def test_resume_waits_for_a_queued_slice_and_starts_on_it(shell):
  gcloud = shell.directory / "gcloud"
  # First it waits for resources, then it is there.
  text = gcloud.read_text(encoding="utf-8").replace(
    'echo "$STATE"', 'echo "$STATE"; sed -i "s/WAITING/ACTIVE/" "$0"'
  )
  gcloud.write_text(text.replace("$STATE", "WAITING"), encoding="utf-8")
  result = shell.run(["launch/tpu_vm.sh", "resume", *FLAGS], **TPU)
  assert result.returncode == 0, result.stderr
  ssh = [call for call in shell.calls() if "ssh" in call]
  assert ["docker pull" in ssh[0][-1], "docker run" in ssh[1][-1]] == [True, True]


def test_the_environment_is_the_accelerators_and_the_users(shell):
  shown = 'echo "$XLA_FLAGS|$LIBTPU_INIT_ARGS|$XLA_PYTHON_CLIENT_MEM_FRACTION"'
  run = lambda **more: shell.run(["launch/run.sh"], PYTHON=shown, **more).stdout.strip()
  ours = "--xla_gpu_enable_latency_hiding_scheduler=true"
  assert run(ACCELERATOR="gpu") == f"{ours}||0.9"
  # Of two values of one flag the last is taken.
  assert run(ACCELERATOR="gpu", XLA_FLAGS="--x=1") == f"{ours} --x=1||0.9"
  assert run(ACCELERATOR="cpu") == "||"
  assert run(ACCELERATOR="tpu", LIBTPU_INIT_ARGS="--y").endswith("=true --y|")


@pytest.mark.parametrize("flag, known", [(None, True), ("--xla_gpu_nonsense=1", False)])
def test_flags_of_gpus_are_known_to_the_installed_xla(shell, flag, known):
  python = f"{sys.executable} -c 'import jax; jax.devices()'"
  result = shell.run(
    ["launch/run.sh"],
    ACCELERATOR="gpu",
    JAX_PLATFORMS="cpu",
    PYTHON=f'export XLA_FLAGS="${{XLA_FLAGS}} {flag or ""}"; {python}',
  )
  # XLA ends the process.
  assert (result.returncode == 0) == known, result.stderr


def test_tunables_of_cpus_are_known_to_glibc_and_the_users_come_last(shell):
  shown = 'echo "$GLIBC_TUNABLES"'
  run = lambda **more: shell.run(["launch/run.sh"], PYTHON=shown, **more).stdout.strip()
  ours = run(ACCELERATOR="cpu")
  assert run(ACCELERATOR="cpu", GLIBC_TUNABLES="glibc.x=1") == f"{ours}:glibc.x=1"
  loaders = list(pathlib.Path("/lib64").glob("ld-linux*"))
  if not loaders:
    pytest.skip("no glibc")
  listed = subprocess.run([loaders[0], "--list-tunables"], capture_output=True, text=True)
  names = [x.split("=")[0] for x in ours.split(":")]
  assert [name for name in names if f"{name}:" in listed.stdout] == names


def test_flags_of_tpus_are_known_to_the_compiler(shell):
  library = ROOT / ".aot" / "libtpu" / "libtpu.so"
  if not library.exists():
    pytest.skip("no libtpu; pip install --no-deps --target .aot -r requirements-aot.txt")
  shown = 'echo "$LIBTPU_INIT_ARGS"'
  flags = shell.run(["launch/run.sh"], PYTHON=shown, ACCELERATOR="tpu").stdout.split()
  assert flags
  for flag in flags:
    name = flag.removeprefix("--").split("=")[0]
    found = subprocess.run(
      ["grep", "--quiet", "--text", "--fixed-strings", name, library]
    )
    assert found.returncode == 0, name


@pytest.mark.parametrize("codes, expected", [((0, 0), 0), ((0, 75), 75), ((1, 0), 1)])
def test_a_node_merges_only_when_all_jobs_are_done(shell, codes, expected):
  python = f'case "$*" in *shard=0*) exit {codes[0]};; *shard=1*) exit {codes[1]};; esac'
  result = shell.run(["launch/gpu_node.sh", "evaluate", *FLAGS], GPUS="2", PYTHON=python)
  assert result.returncode == expected
  merged = [c for c in shell.calls() if "--config.mode=merge" in c]
  assert len(merged) == (expected == 0)


def test_what_stops_a_node_stops_its_jobs_and_waits_for_them(shell):
  # Python's own exit is late and slow, as after a task that must end first.
  python = (
    "trap 'sleep 0.3; exit 75' TERM; touch \"$HOME/started$CUDA_VISIBLE_DEVICES\"; \
for _ in $(seq 200); do sleep 0.05; done"
  )
  process = subprocess.Popen(
    ["launch/gpu_node.sh", "evaluate"],
    cwd=ROOT,
    env=shell.environment(GPUS="2", PYTHON=python),
  )
  while not all((shell.directory / f"started{i}").exists() for i in range(2)):
    assert process.poll() is None
    time.sleep(0.02)
  os.kill(process.pid, signal.SIGTERM)
  assert process.wait(timeout=10) == 75


def test_training_on_a_node_is_one_process_that_gets_signals_itself(shell):
  result = shell.run(["launch/gpu_node.sh", "train"], PYTHON='echo "$PPID"; exit 75')
  assert result.returncode == 75
  assert result.stdout.strip() == str(os.getpid())


def _tool(name: str) -> str:
  beside = pathlib.Path(sys.executable).parent / name
  found = str(beside) if beside.exists() else shutil.which(name)
  assert found, f"{name} is missing; pip install -r requirements-dev.txt"
  return found


def test_shellcheck_has_nothing_to_say():
  files = [p for p in LAUNCH.rglob("*") if p.suffix in (".sh", ".sbatch")]
  assert len(files) >= 9
  checked = subprocess.run(
    [_tool("shellcheck"), "--external-sources", *files],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert checked.returncode == 0, checked.stdout


def test_hadolint_has_nothing_to_say():
  checked = subprocess.run(
    [_tool("hadolint"), LAUNCH / "Dockerfile"], capture_output=True, text=True
  )
  assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize(
  "script, action, environment, told",
  [
    ("gpu_node.sh", "evaluate", {"GPUS": "0"}, "GPUS must be a number from 1 on"),
    ("gpu_node.sh", "train", {"IMAGE": "a b"}, "IMAGE must be"),
    ("slurm.sh", "evaluate", {"SHARDS": "abc"}, "SHARDS must be"),
    ("slurm.sh", "train", {"NODES": "two"}, "NODES must be"),
    ("tpu_vm.sh", "run", TPU | {"SHARDS": "0"}, "SHARDS must be"),
    ("tpu_vm.sh", "install", TPU | {"MOUNT": "/my shared"}, "MOUNT must be"),
    ("tpu_vm.sh", "install", TPU | {"NFS": "host:/a; rm"}, "NFS must be"),
    ("gke.sh", "merge", GKE | {"NAME": "My Run"}, "NAME must be"),
    ("gke.sh", "merge", GKE | {"NAME": "1234"}, "NAME must be"),
    ("gke.sh", "merge", GKE | {"PASS_ENV": "NOT_SET"}, "PASS_ENV must be"),
    (
      "gke.sh",
      "merge",
      GKE | {"PASS_ENV": "PROCESS_ID", "PROCESS_ID": "1"},
      "sets itself",
    ),
  ],
)
def test_odd_values_are_refused_before_anything_is_done(
  shell, script, action, environment, told
):
  result = shell.run([f"launch/{script}", action, *FLAGS], **environment)
  assert (result.returncode, told in result.stderr) == (2, True), result.stderr
  assert shell.calls() == []


@pytest.mark.parametrize(
  "script, action, environment",
  [
    ("gpu_node.sh", "train", {"IMAGE": "rankclip:gpu"}),
    ("tpu_vm.sh", "run", TPU),
    ("gke.sh", "train", GKE | {"ACCELERATOR": "tpu"}),
  ],
)
def test_a_workdir_that_a_container_would_lose_is_refused(
  shell, script, action, environment
):
  command = [f"launch/{script}", action, "--config=c.py"]
  for workdir in ("runs/x", "/tmp/x", "/shared/../x"):
    result = shell.run([*command, f"--workdir={workdir}"], **environment)
    assert (result.returncode, "below MOUNT=/shared" in result.stderr) == (2, True)
  result = shell.run([*command, "--workdir", "/shared/x"], **environment)
  assert (result.returncode, "in one word" in result.stderr) == (2, True)
  assert shell.calls() == []
  environment = environment | {"MOUNT": "/shared/"}
  assert shell.run([*command, "--workdir=/shared/x"], **environment).returncode == 0


@pytest.mark.parametrize(
  "script, action, environment",
  [
    ("gpu_node.sh", "train", {"IMAGE": "rankclip:gpu"}),
    ("tpu_vm.sh", "run", TPU),
    ("gke.sh", "train", GKE | {"ACCELERATOR": "tpu"} | XPK),
  ],
)
def test_containers_get_the_variables_that_are_named(shell, script, action, environment):
  mine = {"PASS_ENV": "NCCL_DEBUG OTHER", "NCCL_DEBUG": "INFO", "OTHER": "a b"}
  result = shell.run([f"launch/{script}", action, *FLAGS], **environment, **mine)
  assert result.returncode == 0, result.stderr
  called = " ".join(shell.calls()[0])
  assert "--env=NCCL_DEBUG=INFO" in called
  assert "OTHER=a b" in called


def test_resume_starts_a_slice_that_has_no_container(shell):
  """One that was itself cut off leaves such a slice."""
  shell.run(["launch/tpu_vm.sh", "resume", *FLAGS], STATE="ACTIVE", **TPU)
  command = shell.calls()[-1][-1].removeprefix("--command=")
  docker = shell.directory / "sudo"
  docker.write_text(
    docker.read_text().replace(
      "case ", 'case "$*" in *inspect*) exit 1 ;; esac\ncase ', 1
    )
  )
  assert shell.run(command).returncode == 0
  done = [call[1:3] for call in shell.calls()]
  assert ["docker", "pull"] in done
  assert done[-1] == ["docker", "run"]


@pytest.mark.parametrize("name", ["train.sbatch", "one_gpu.sbatch"])
def test_dry_runs_of_a_job_can_be_pasted(shell, name):
  dry = shell.run(["bash", f"launch/slurm/{name}", "--dry-run", *FLAGS])
  assert dry.returncode == 0, dry.stderr
  assert shell.calls() == []
  pasted = 'echo "$ACCELERATOR"'
  assert shell.run(f"{dry.stdout}\n{pasted}").stdout.strip() == "gpu"
  (call,) = shell.calls()
  assert call[0] == "srun"
  assert call[-len(FLAGS) :] == FLAGS
