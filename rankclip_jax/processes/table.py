"""Who takes part, with which devices, as lines for people."""

import socket
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils

# Beyond so many processes, those in the middle are left out.
_MOST_LINES = 16
_HOST_BYTES = 64


def of_all() -> str:
  """The processes of this run with their hosts and devices; all must ask for it."""
  name = socket.gethostname().encode()[:_HOST_BYTES].ljust(_HOST_BYTES, b"\0")
  names = np.frombuffer(name, np.uint8)
  names = np.reshape(multihost_utils.process_allgather(names), (-1, _HOST_BYTES))
  hosts = [bytes(n).rstrip(b"\0").decode(errors="replace") for n in names]
  devices: list[list[str]] = [[] for _ in hosts]
  for device in jax.devices():
    devices[device.process_index].append(f"{device.device_kind}:{device.id}")
  return lines(hosts, devices)


def lines(hosts: Sequence[str], devices: Sequence[Sequence[str]]) -> str:
  """The table.

  Args:
    hosts: of each process.
    devices: of each process, as KIND:ID.
  """
  count = sum(map(len, devices))
  fewest, most = min(map(len, devices)), max(map(len, devices))
  each = f"{most}" if fewest == most else f"{fewest} to {most}"
  out = [
    f"{len(hosts)} processes on {len(set(hosts))} host(s), {count} devices, {each} each:"
  ]
  shown = list(range(len(hosts)))
  if len(shown) > _MOST_LINES:
    shown = [*shown[: _MOST_LINES - 1], -1, shown[-1]]
  width = max(map(len, hosts))
  for i in shown:
    if i < 0:
      out.append("  ...")
      continue
    kinds: dict[str, list[str]] = {}
    for kind, _, number in (d.rpartition(":") for d in devices[i]):
      kinds.setdefault(kind, []).append(number)
    each = "; ".join(f"{len(n)} {kind} ({', '.join(n)})" for kind, n in kinds.items())
    out.append(f"  process {i:<4} {hosts[i]:<{width}}  {each or 'none'}")
  return "\n".join(out)
