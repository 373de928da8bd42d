"""What a benchmark runs on, and how much memory its process takes of it."""

import ctypes
import datetime
import importlib.metadata
import platform
from pathlib import Path

GIB, MIB = 2**30, 2**20

# Version 2 and version 1 of control groups: what a container may take, and has taken.
_CGROUPS = (
  ("memory.max", "memory.current"),
  ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)


def describe(packages: tuple[str, ...], cores: int) -> str:
  """One line: processor, versions and date; packages that are not installed say so."""
  info = Path("/proc/cpuinfo").read_text().splitlines()
  cpu = next((x.split(":")[1].strip() for x in info if x.startswith("model name")), "?")
  versions = [f"Python {platform.python_version()}"]
  for package in packages:
    try:
      versions.append(f"{package} {importlib.metadata.version(package)}")
    except importlib.metadata.PackageNotFoundError:
      versions.append(f"no {package}")
  return f"{cpu}, {cores} cores; {', '.join(versions)}; {datetime.date.today()}"


def available_bytes() -> int:
  """Memory that a new process can have: of the machine and of its control group."""
  lines = Path("/proc/meminfo").read_text().splitlines()
  free = next(int(x.split()[1]) for x in lines if x.startswith("MemAvailable"))
  rooms = [1024 * free]
  for limit, used in _CGROUPS:
    root = Path("/sys/fs/cgroup")
    if (root / limit).exists() and (root / limit).read_text().strip() != "max":
      rooms.append(int((root / limit).read_text()) - int((root / used).read_text()))
  return min(rooms)


class PeakMemory:
  """Peak bytes above what is held when it is made: libraries, inputs, programs.

  On "cpu" the high-water mark of the process, on "gpu" JAX's, on "cuda" PyTorch's count
  of allocated device memory. JAX's peak cannot be restarted: what compiling took on the
  device is in it, if it was more.
  """

  def __init__(self, device: str):
    self._device = device
    if device == "cpu":
      # What compiling freed must not hide what runs.
      ctypes.CDLL(None).malloc_trim(0)
      Path("/proc/self/clear_refs").write_text("5")  # restarts the high-water mark
    elif device == "cuda":
      import torch

      torch.cuda.reset_peak_memory_stats()
    self._before = self._read("VmRSS", "bytes_in_use", "memory_allocated")

  def bytes(self) -> int:
    """The peak until now."""
    now = self._read("VmHWM", "peak_bytes_in_use", "max_memory_allocated")
    return now - self._before

  def _read(self, of_linux: str, of_jax: str, of_torch: str) -> int:
    if self._device == "cpu":
      return _status(of_linux)
    if self._device == "cuda":
      import torch

      return getattr(torch.cuda, of_torch)()
    import jax

    return (jax.devices()[0].memory_stats() or {}).get(of_jax, 0)


def _status(field: str) -> int:
  """Bytes, from this process's /proc/self/status."""
  for line in Path("/proc/self/status").read_text().splitlines():
    if line.startswith(field):
      return 1024 * int(line.split()[1])
  raise RuntimeError(f"/proc/self/status has no {field}; this benchmark needs Linux.")
