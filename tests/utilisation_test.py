import mmap

import jax
import numpy as np
import pytest

from rankclip_jax import utilisation
from rankclip_jax.models import flops, sizes


def test_rates_of_a_step_by_hand():
  rates = utilisation.Rates(batch_size=512, devices=8, flops=3e9, peak=1e12)
  assert rates.of(0.5) == {
    "examples_per_second": 1024.0,
    "examples_per_second_per_device": 128.0,
    "model_flops_per_second_per_device": 128 * 3e9,
    "mfu": pytest.approx(0.384),
  }
  assert "mfu" not in utilisation.Rates(512, 8, 3e9).of(0.5)


def test_a_peak_is_taken_where_it_is_known_and_for_bfloat16_alone(monkeypatch):
  size = sizes.named("ViT-B-32", dtype="bfloat16")
  assert utilisation.rates_of(size, 64, "none").peak is None  # of a CPU nobody knows

  class H100:
    device_kind = "NVIDIA H100 80GB HBM3"

  monkeypatch.setattr(utilisation.jax, "devices", lambda: [H100()])
  rates = utilisation.rates_of(size, 64, "text")
  assert rates.peak == 989e12
  assert rates.flops == flops.training_flops(size, "text")
  assert rates.devices == jax.device_count() == 8
  single = sizes.named("ViT-B-32", dtype="float32")
  assert utilisation.rates_of(single, 64, "none").peak is None


def test_memory_of_host_and_devices(monkeypatch):
  before = utilisation.memory()["host_memory_gib"]
  with mmap.mmap(-1, 2**27) as held:  # new pages; an allocator may have some left over
    np.frombuffer(held, np.uint8)[:] = 1
    after = utilisation.memory()["host_memory_gib"]
  assert after - before == pytest.approx(1 / 8, abs=0.02)

  class Device:
    def __init__(self, now, peak):
      self._stats = {"bytes_in_use": now * 2**30, "peak_bytes_in_use": peak * 2**30}

    def memory_stats(self):
      return self._stats

  devices = [Device(1, 4), Device(2, 3)]
  monkeypatch.setattr(utilisation.jax, "local_devices", lambda: devices)
  found = utilisation.memory()
  assert found["device_memory_gib"] == 2
  assert found["device_memory_peak_gib"] == 4
