"""Which device holds what: the mesh, and one pure function of path and shape.

Two axes. The batch is spread over both; parameters and optimizer state are sharded over
`fsdp` and replicated over `data`.
"""

import logging
import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

BATCH_AXES = ("data", "fsdp")
# Below this many elements a gather costs more than the memory it saves.
MIN_SHARDED = 2**12

log = logging.getLogger(__name__)


def make_mesh(
  data: int = -1, fsdp: int = 1, devices: Sequence[Any] | None = None
) -> Mesh:
  """Devices (all by default) as [data, fsdp]; one may be -1, for what the other leaves.

  Raises:
    ValueError: if the product is not the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  count = len(devices)
  shape = [data, fsdp]
  if shape.count(-1) == 1 and all(n == -1 or n > 0 for n in shape):
    known = max(shape)
    shape[shape.index(-1)] = count // known
  if min(shape) < 1 or math.prod(shape) != count:
    divisors = [n for n in range(1, count + 1) if count % n == 0]
    raise ValueError(
      f"mesh.data={data} x mesh.fsdp={fsdp} does not make the {count} devices there are; "
      f"use -1 for one of them and one of {divisors} for the other."
    )
  return jax.make_mesh(
    tuple(shape),
    BATCH_AXES,
    axis_types=(jax.sharding.AxisType.Auto,) * 2,
    devices=devices,
  )


def check_batch(
  batch_size: int, mesh: Mesh, num_processes: int = 1, *, micro_batches: int = 1
) -> None:
  """Refuses a global batch that devices, processes or micro-batches cannot share equally.

  Raises:
    ValueError: naming the nearest batch size, and the nearest number of micro-batches,
      that fit.
  """
  unit = math.lcm(mesh.size, num_processes)
  if batch_size % unit:
    raise ValueError(
      f"data.batch_size {batch_size} is global and does not divide by the {mesh.size} "
      f"devices; the nearest that does is {_nearest_multiple(batch_size, unit)}."
    )
  rows = batch_size // mesh.size
  if rows % micro_batches:
    divisors = [n for n in range(1, rows + 1) if rows % n == 0]
    pieces = min(divisors, key=lambda n: abs(n - micro_batches))
    nearest = _nearest_multiple(batch_size, math.lcm(mesh.size * micro_batches, unit))
    raise ValueError(
      f"data.batch_size {batch_size} gives each of the {mesh.size} devices {rows} rows, "
      f"which optim.micro_batches={micro_batches} does not divide; the nearest that fit "
      f"are optim.micro_batches={pieces} or data.batch_size={nearest}."
    )


def _nearest_multiple(n: int, unit: int) -> int:
  """The positive multiple of `unit` nearest to `n`; of two, the lower."""
  lower = n // unit * unit
  return lower if lower and n - lower <= unit / 2 else lower + unit


def over_batch(mesh: Mesh) -> NamedSharding:
  """The leading axis spread over all devices."""
  return NamedSharding(mesh, P(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
  """Everything on every device."""
  return NamedSharding(mesh, P())


def spec(path: tuple[str, ...], shape: tuple[int, ...], fsdp: int) -> P:
  """Shards the largest axis that `fsdp` divides, and nothing of a small array.

  The first axis of stacked blocks is what a scan walks over, so it stays whole.
  """
  if fsdp == 1 or math.prod(shape) < MIN_SHARDED:
    return P()
  first = 1 if "blocks" in path else 0
  axes = [i for i in range(first, len(shape)) if shape[i] % fsdp == 0]
  if not axes:
    return P()
  axis = max(axes, key=lambda i: shape[i])
  return P(*(None,) * axis, "fsdp")


def of_tree(shapes: Any, mesh: Mesh) -> Any:
  """A sharding for every array of a tree of shapes; logs how much of it is sharded.

  Raises:
    ValueError: if `fsdp` is more than 1 and divides no large array.
  """
  fsdp = mesh.shape["fsdp"]

  def choose(path, x) -> NamedSharding:
    names = tuple(str(getattr(k, "key", getattr(k, "name", k))) for k in path)
    return NamedSharding(mesh, spec(names, x.shape, fsdp))

  shardings = jax.tree_util.tree_map_with_path(choose, shapes)
  arrays = jax.tree.leaves(shapes)
  split = [
    x for x, s in zip(arrays, jax.tree.leaves(shardings), strict=True) if s.spec != P()
  ]
  if fsdp > 1:
    if not split:
      raise ValueError(
        f"mesh.fsdp={fsdp} divides no array of at least {MIN_SHARDED} elements; use "
        "mesh.fsdp=1 or a divisor of the model's widths."
      )
    elements = lambda xs: sum(math.prod(x.shape) for x in xs)
    log.info(
      "FSDP over %d devices: %d of %d arrays, %.1f %% of the elements.",
      fsdp,
      len(split),
      len(arrays),
      100 * elements(split) / elements(arrays),
    )
  return shardings
