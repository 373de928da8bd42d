"""How much of the machine a run uses: FLOP/s and memory."""

import dataclasses
import os
from typing import Literal

import jax

from rankclip_jax.models import flops, sizes

_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Rates:
  """What a step's seconds mean.

  Attributes:
    batch_size: examples of a step, over all devices.
    devices: of all processes.
    flops: model FLOPs of an example, see `models.flops`.
    peak: FLOP/s of one device in the arithmetic of the run, None where it is not known.
  """

  batch_size: int
  devices: int
  flops: float
  peak: float | None = None

  def of(self, seconds: float) -> dict[str, float]:
    """Metrics by name. `mfu`, model FLOP/s utilisation, is a share of 1."""
    rate = self.batch_size / seconds
    work = rate * self.flops / self.devices
    found = {
      "examples_per_second": rate,
      "examples_per_second_per_device": rate / self.devices,
      "model_flops_per_second_per_device": work,
    }
    return found | ({"mfu": work / self.peak} if self.peak else {})


def rates_of(
  size: sizes.TwoTowerSize, batch_size: int, frozen: Literal["none", "image", "text"]
) -> Rates:
  """For the devices at hand; peaks are known of bfloat16 alone."""
  kind = jax.devices()[0].device_kind
  peak = flops.peak_flops(kind) if size.dtype == "bfloat16" else None
  work = flops.training_flops(size, frozen)
  return Rates(batch_size, jax.device_count(), work, peak)


def memory() -> dict[str, float]:
  """GiB now and at most, of the fullest device of this process, and of its host memory.

  Devices that do not say (CPUs) are left out.
  """
  stats = [device.memory_stats() or {} for device in jax.local_devices()]
  found = {}
  for name, key in (("", "bytes_in_use"), ("_peak", "peak_bytes_in_use")):
    if known := [x[key] for x in stats if key in x]:
      found[f"device_memory{name}_gib"] = max(known) / _GIB
  try:
    with open("/proc/self/statm", encoding="ascii") as file:
      pages = int(file.read().split()[1])
  except OSError:  # not Linux
    return found
  return found | {"host_memory_gib": pages * os.sysconf("SC_PAGE_SIZE") / _GIB}
