"""Which of a host's GPUs its processes take, before any of them touches one."""

import os
import shutil
import subprocess
from collections.abc import Sequence

from rankclip_jax.processes.roll_call import Present, named, spans


def visible() -> list[str]:
  """Names, the same in every process, of the GPUs that this one may use.

  They are in CUDA's order, as far as `CUDA_VISIBLE_DEVICES` lets them through. Empty
  without NVIDIA's tools.
  """
  if not shutil.which("nvidia-smi"):
    return []
  try:
    printed = subprocess.run(
      ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"],
      capture_output=True, text=True, timeout=60, check=True,
    ).stdout  # fmt: skip
  except (OSError, subprocess.SubprocessError):
    return []
  there = [line.strip() for line in printed.splitlines() if line.startswith("GPU-")]
  return _let_through(there, os.environ.get("CUDA_VISIBLE_DEVICES"))


def _let_through(there: list[str], variable: str | None) -> list[str]:
  """As CUDA reads the variable: positions or (beginnings of) names, to the first bad."""
  if variable is None:
    return there
  out = []
  for word in (w.strip() for w in variable.split(",")):
    if word.isdecimal() and int(word) < len(there):
      out.append(there[int(word)])
    elif word.startswith("MIG-"):
      out.append(word)
    elif word.startswith("GPU-") and (found := [u for u in there if u.startswith(word)]):
      out.append(found[0])
    else:
      break
  return out


def problem_of(everyone: Sequence[Present]) -> str:
  """What is wrong with how processes share their hosts' GPUs; "" if nothing is.

  Facts are `gpus` (as of `visible`) and `devices`: positions that are taken, None is all.
  """
  hosts: dict[str, list[Present]] = {}
  for one in everyone:
    hosts.setdefault(one.host, []).append(one)
  for host, here in hosts.items():
    if problem := _problem_of_host(host, here):
      return problem
  return ""


def _problem_of_host(host: str, here: Sequence[Present]) -> str:
  taken: dict[str, list[int]] = {}
  for one in here:
    gpus, devices = one.facts["gpus"], one.facts["devices"]
    if not gpus:
      continue
    positions = range(len(gpus)) if devices is None else devices
    if beyond := [i for i in positions if i >= len(gpus)]:
      return (
        f"Process {one.index} on host {host} would take GPU {beyond[0]} but sees only "
        f"{len(gpus)}, numbered from 0: the scheduler has given it its own already. Let "
        "every process see all of its node's GPUs (SLURM: --gpus-per-node in place of "
        "--gpus-per-task), or set the variable JAX_LOCAL_DEVICE_IDS=0."
      )
    for i in positions:
      taken.setdefault(gpus[i], []).append(one.index)
  if shared := next((who for who in taken.values() if len(who) > 1), None):
    return (
      f"{named(shared)} on host {host} take the same GPU, and JAX takes a GPU whole. "
      "Start one process for all GPUs of a node, or give each its own by "
      "--config.distributed.mode=auto, or by the variable JAX_LOCAL_DEVICE_IDS or "
      "CUDA_VISIBLE_DEVICES."
    )
  seen = list(dict.fromkeys(gpu for one in here for gpu in one.facts["gpus"]))
  if idle := [i for i, gpu in enumerate(seen) if gpu not in taken]:
    every = ",".join(str(i) for i in range(len(seen)))
    return (
      f"GPUs {spans(idle)} of the {len(seen)} on host {host} would be idle: it has "
      f"{len(here)} process(es), and a scheduler's process takes one GPU. Start as many "
      f"as GPUs (SLURM: --ntasks-per-node={len(seen)}), or let one take all by the "
      f"variable JAX_LOCAL_DEVICE_IDS={every}, or hide the rest by CUDA_VISIBLE_DEVICES."
    )
  return ""
