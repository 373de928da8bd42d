"""H100s and slices of TPUs, and compiling for them on a machine that has neither.

The compilers of both run on any x86-64 Linux with `requirements-aot.txt` installed. What
comes back is their answer for that chip: the memory they plan and the program they would
run. Nothing is run.
"""

import dataclasses
import functools
import importlib.metadata
import math
import os
import pathlib
import re
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.experimental import topologies

# Where the compilers are. Beside the environment, not in it: a CUDA plugin without CUDA
# would make every other program that imports jax complain.
DIRECTORY = pathlib.Path(__file__).parents[1] / ".aot"
INSTALL = "pip install --no-deps --target .aot -r requirements-aot.txt"
# An "NVIDIA H100 80GB HBM3" as XLA describes one to itself.
H100_DESCRIPTION = pathlib.Path(__file__).parent / "h100.txtpb"
# Triton's matmuls are chosen by timing them, which takes the GPU itself. Without it
# matmuls are cuBLAS calls.
H100_OPTIONS = {"xla_gpu_enable_triton_gemm": False}
# libtpu asks the cloud's metadata server and the host for the first three unless it is
# told, and lets one process at a time open chips, of which there are none here. It
# compiles for another generation than the host's all the same.
TPU_ENVIRONMENT = {
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_ACCELERATOR_TYPE": "v5litepod-8",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
# How XLA says that it has planned the whole program, and then wants to ask CUB, on a GPU,
# about a sort that became a call of it.
WANTS_GPU = "CUDA Runtime error"
CUDA_PACKAGES = ("jax-cuda12-pjrt", "jax-cuda12-plugin", "nvidia-cuda-nvcc-cu12")
TPU_PACKAGES = ("libtpu",)
PACKAGES = (*CUDA_PACKAGES, *TPU_PACKAGES)


@dataclasses.dataclass(frozen=True)
class Target:
  """Devices to compile for.

  Attributes:
    name: for tables.
    devices: make a mesh over these, or over some of them.
    options: of XLA, for every program.
    plans: whether the compiler's plan can be read where it does not finish.
  """

  name: str
  devices: Sequence[Any]
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  plans: bool = False


@dataclasses.dataclass(frozen=True)
class Memory:
  """What a program takes, in bytes and per device.

  Attributes:
    argument, output: `donated` is counted in both.
    donated: outputs written over arguments.
    temp: everything between the two, at its peak.
  """

  argument: int
  output: int
  donated: int
  temp: int

  @property
  def total(self) -> int:
    """What a device must have to spare while the program runs."""
    return self.argument + self.output - self.donated + self.temp


@dataclasses.dataclass(frozen=True)
class Program:
  """What a compiler made of a function.

  Attributes:
    memory: that it planned.
    seconds: that tracing and compiling took.
    hlo: the optimised program, to be read with `aot.hlo`.
    finished: False where the compiler stopped after planning, for want of a GPU.
  """

  memory: Memory
  seconds: float
  hlo: str
  finished: bool


def h100(count: int) -> Target:
  """`count` H100s (80 GB, SXM) in one machine."""
  _prepare(CUDA_PACKAGES)
  topology = topologies.get_topology_desc(
    platform="cuda",
    target_config=H100_DESCRIPTION.read_text(encoding="utf-8"),
    topology=f"1x1x{count}",
  )
  return Target(f"{count} x H100", topology.devices, H100_OPTIONS, plans=True)


def tpu(generation: str, shape: str) -> Target:
  """A slice of TPUs: of "v5e" such as "1x1" or "16x16" chips, of "v4" "4x4x4"."""
  _prepare(TPU_PACKAGES)
  count = math.prod(int(n) for n in shape.split("x"))
  asked: dict[str, Any] = {}
  if count == 1:
    # Slices come in hosts of four chips; fewer have to be asked for by the host's shape.
    asked["chips_per_host_bounds"] = (1, 1, 1)
  if generation == "v4":
    # A v4 has two cores, which are one device to JAX unless one asks for two.
    asked["chip_config_name"] = "megacore"
  topology = topologies.get_topology_desc(
    platform="tpu", topology_name=f"{generation}:{shape}", **asked
  )
  if len(topology.devices) != count:
    raise RuntimeError(
      f"Expected a device for each of the {count} chips of {generation}:{shape}, got "
      f"{len(topology.devices)}; see how this libtpu names a chip's configurations."
    )
  return Target(f"{count} x TPU {generation}", topology.devices)


# By the names that command lines and reports use, in every count that they use.
TARGETS: dict[str, dict[int, Callable[[], Target]]] = {
  "h100": {count: functools.partial(h100, count) for count in (1, 8)},
  "tpu_v5e": {
    chips: functools.partial(tpu, "v5e", shape)
    for chips, shape in ((1, "1x1"), (8, "2x4"), (256, "16x16"))
  },
  "tpu_v4": {64: functools.partial(tpu, "v4", "4x4x4")},
}
GIB = 2**30
# Of one device, in bytes: what is sold as "80 GB" for GPUs and "GiB" for TPUs.
DEVICE_MEMORY = {"h100": int(80e9), "tpu_v5e": 16 * GIB, "tpu_v4": 32 * GIB}


def compile_for(target: Target, function: Any, *args: Any, **kwargs: Any) -> Program:
  """Compiles a jitted function for a target.

  Args:
    target: whose devices the shardings are over.
    function: jitted; give it the target's shardings, or give them to the arguments.
    *args, **kwargs: trees of `jax.ShapeDtypeStruct`.

  Raises:
    RuntimeError: if the plan, which is all there is of a program that stops early, is
      misread in one that finishes.
    jax.errors.JaxRuntimeError: if the compiler refuses, as TPUs' does for a program that
      does not fit into the memory of a chip. GPUs' answers for any size.
  """
  start = time.perf_counter()
  lowered = function.lower(*args, **kwargs)
  with tempfile.TemporaryDirectory() as directory:
    options = dict(target.options)
    if target.plans:
      options["xla_dump_to"] = directory
    compiled = None
    try:
      compiled = lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as e:
      if not target.plans or WANTS_GPU not in str(e):
        raise
    seconds = time.perf_counter() - start
    planned = read_plan(pathlib.Path(directory)) if target.plans else None
  if compiled is None:
    assert planned is not None  # the compiler only stops early where there is a plan
    return Program(planned[0], seconds, planned[1], finished=False)
  text = compiled.as_text()
  assert text is not None  # both show their program
  memory = memory_of(compiled)
  if planned is not None and planned[0].temp != memory.temp:
    raise RuntimeError(
      f"XLA's written plan says {planned[0]}, its answer {memory}; `read_plan` must "
      "learn this version's form, or nothing that stops early can be trusted."
    )
  return Program(memory, seconds, text, finished=True)


def memory_of(compiled: jax.stages.Compiled) -> Memory:
  """Of a program whose compilation finished."""
  stats = compiled.memory_analysis()
  assert stats is not None  # both compilers plan memory
  return Memory(
    argument=stats.argument_size_in_bytes,
    output=stats.output_size_in_bytes,
    donated=stats.alias_size_in_bytes,
    temp=stats.temp_size_in_bytes,
  )


def read_plan(directory: pathlib.Path) -> tuple[Memory, str]:
  """Memory and optimised HLO of the one program whose plan XLA left in a directory.

  Raises:
    FileNotFoundError: if there is none, or more than one.
  """
  plans = list(directory.glob("*_gpu_after_optimizations-buffer-assignment.txt"))
  if len(plans) != 1:
    raise FileNotFoundError(
      f"Expected the plan of one program in {directory}, found {len(plans)}; see how "
      "this version of XLA names what it writes with xla_dump_to."
    )
  text = plans[0].with_name(plans[0].name.replace("-buffer-assignment", ""))
  argument = output = donated = temp = 0
  allocation = re.compile(r"^allocation \d+: size (\d+), (.*):$", re.MULTILINE)
  for size, kind in allocation.findall(plans[0].read_text(encoding="utf-8")):
    is_argument, is_output = "parameter " in kind, "maybe-live-out" in kind
    argument += int(size) * is_argument
    output += int(size) * is_output
    donated += int(size) * (is_argument and is_output)
    temp += int(size) * ("preallocated-temp" in kind)
  return Memory(argument, output, donated, temp), text.read_text(encoding="utf-8")


def versions() -> dict[str, str]:
  """Of the compilers' packages."""
  _look_beside()
  return {name: importlib.metadata.version(name) for name in ("jax", *PACKAGES)}


def _prepare(packages: Sequence[str]) -> None:
  """Sets this process up to compile for devices and to open none."""
  _look_beside()
  for name in packages:
    _check_installed(name)
  os.environ.update(TPU_ENVIRONMENT)
  jax.config.update("jax_platforms", "cpu")
  # The tests' environment, which children inherit, turns optimisations off.
  jax.config.update("jax_disable_most_optimizations", False)


def _look_beside() -> None:
  if str(DIRECTORY) not in sys.path:
    sys.path.append(str(DIRECTORY))


def _check_installed(name: str) -> None:
  try:
    version = importlib.metadata.version(name)
  except importlib.metadata.PackageNotFoundError as e:
    raise ModuleNotFoundError(
      f"Compiling for this target needs {name}, which is not installed; `{INSTALL}`."
    ) from e
  if name.startswith("jax-") and version != jax.__version__:
    raise ModuleNotFoundError(
      f"{name} {version} does not go with jax {jax.__version__}; `{INSTALL}`."
    )
