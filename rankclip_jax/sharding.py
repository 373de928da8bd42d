"""Which device holds what: the mesh, and one pure function of path and shape.

Two axes. The batch is spread over both; parameters and optimizer state are sharded over
`fsdp` and replicated over `data`. Weights are gathered in every block, so `fsdp` takes
the fast links: it lies within a slice, whose devices reach each other over ICI or NVLink,
and `data` reaches over slices.
"""

import collections
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

BATCH_AXES = ("data", "fsdp")
# Below this many elements a gather costs more than the memory it saves.
MIN_SHARDED = 2**12
# By platform: what JAX calls a slice, the links within, and those between.
_LINKS = {
  "tpu": ("slices", "ICI", "DCN"),
  "gpu": ("NVLink domains", "NVLink", "the network"),
  "cpu": ("hosts", "memory", "the network"),
}

log = logging.getLogger(__name__)


def make_mesh(
  data: int = -1, fsdp: int = 1, devices: Sequence[Any] | None = None
) -> Mesh:
  """Devices (all by default) as [data, fsdp]; one may be -1, for what the other leaves.

  Neighbours in the mesh are neighbours in the machine, as far as JAX knows it: the order
  is not that of `devices`, nor are those of a process side by side (see `own_rows`).

  Raises:
    ValueError: if the product is not the number of devices, if slices or processes have
      different numbers of them, or if `fsdp` cuts slices into unequal parts.
  """
  devices = list(jax.devices() if devices is None else devices)
  data, fsdp = _shape(data, fsdp, len(devices))
  slices = _equal_parts("slice", [_slice_of(d) for d in devices])
  _equal_parts("process", [d.process_index for d in devices])
  # Only where it must, JAX divides an axis of the machine between both of the mesh.
  split = {"allow_split_physical_axes": True}
  if slices == 1:
    arranged = mesh_utils.create_device_mesh((data, fsdp), devices, **split)
  else:
    within, across = _hybrid(data, fsdp, slices, devices[0].platform)
    arranged = mesh_utils.create_hybrid_device_mesh(within, across, devices, **split)
  types = (jax.sharding.AxisType.Auto,) * 2
  return Mesh(arranged, BATCH_AXES, axis_types=types)


def describe(mesh: Mesh) -> str:
  """The mesh as one line for people."""
  slices, fast, slow = _LINKS.get(mesh.devices.flat[0].platform, _LINKS["cpu"])
  several = len({_slice_of(d) for d in mesh.devices.flat}) > 1

  def axis(name: str, devices: np.ndarray) -> str:
    size, parts = len(devices), len({_slice_of(d) for d in devices})
    if parts > 1:
      return f"{name} {size} ({parts} {slices} over {slow} x {size // parts})"
    return f"{name} {size}" + (f" over {fast}" if several and size > 1 else "")

  columns, rows = mesh.devices[:, 0], mesh.devices[0]
  return f"Mesh: {axis('data', columns)} x {axis('fsdp', rows)}."


def own_rows(mesh: Mesh, batch_size: int, process: int | None = None) -> list[int]:
  """Rows of a global batch that devices of a process hold, this one's by default.

  Ascending, which is the order in which `jax.make_array_from_process_local_data` wants
  them. A mesh that follows the machine's links does not keep a process's devices side by
  side; whoever loads these rows makes the same global batch on any topology.
  """
  process = jax.process_index() if process is None else process
  each = batch_size // mesh.size
  return [
    row
    for place, device in enumerate(mesh.devices.flat)
    if device.process_index == process
    for row in range(place * each, (place + 1) * each)
  ]


def gather(mesh: Mesh) -> Callable[[Any], Any] | None:
  """What `models.layers.gather_blocks` needs: a tree to the same, whole on every device.

  The gradient of what is gathered is not asked for whole, as that of a constraint would
  be: it is reduce-scattered to where the parameters lie, and only shards are summed over
  `data`. None where no device shares its parameters.
  """
  if mesh.shape["fsdp"] == 1:
    return None
  constrain = lambda tree: jax.lax.with_sharding_constraint(tree, replicated(mesh))
  whole = jax.custom_vjp(constrain)
  # Not `whole` again: `layers.scan` has to see the constraint, to gather twice.
  whole.defvjp(lambda tree: (constrain(tree), None), lambda _, gradient: (gradient,))
  return whole


def _shape(data: int, fsdp: int, count: int) -> tuple[int, int]:
  """Both axes as numbers whose product is `count`."""
  shape = [data, fsdp]
  if shape.count(-1) == 1 and all(n == -1 or n > 0 for n in shape):
    known = max(shape)
    shape[shape.index(-1)] = count // known
  if min(shape) < 1 or math.prod(shape) != count:
    raise ValueError(
      f"mesh.data={data} x mesh.fsdp={fsdp} does not make the {count} devices there are; "
      f"use -1 for one of them and one of {_divisors(count)} for the other."
    )
  return shape[0], shape[1]


def _hybrid(
  data: int, fsdp: int, slices: int, platform: str
) -> tuple[tuple[int, int], tuple[int, int]]:
  """Shapes of the mesh within a slice and across slices; their product is the mesh's.

  More than a slice is only taken as whole slices, and with a warning: it is the one way
  to hold a model that does not fit into a slice, and slow.
  """
  size = data * fsdp // slices  # devices of a slice
  if size % fsdp == 0:
    return (size // fsdp, fsdp), (slices, 1)
  words, fast, slow = _LINKS.get(platform, _LINKS["cpu"])
  if fsdp % size:
    raise ValueError(
      f"mesh.fsdp={fsdp} neither fits into one of the {slices} {words} of {size} devices "
      f"nor fills some of them; use one of {_divisors(size)}."
    )
  log.warning(
    "mesh.fsdp=%d is more than the %d devices that reach each other over %s: weights "
    "travel over %s in every block. If the model fits, use mesh.fsdp=%d.",
    fsdp,
    size,
    fast,
    slow,
    size,
  )
  return (1, size), (data, fsdp // size)


def _equal_parts(name: str, parts: Sequence[int]) -> int:
  """How many different ones there are of these parts, each with as many devices.

  Raises:
    ValueError: if one has more than another.
  """
  sizes = collections.Counter(parts)
  fewest, most = min(sizes, key=sizes.__getitem__), max(sizes, key=sizes.__getitem__)
  if sizes[fewest] != sizes[most]:
    raise ValueError(
      f"Every {name} must have as many devices as the others, and {name} {fewest} has "
      f"{sizes[fewest]}, {name} {most} has {sizes[most]}; start with equal ones only."
    )
  return len(sizes)


def _slice_of(device: Any) -> int:
  """Its slice, by TPUs' name: also an NVLink domain of GPUs, or a host of CPUs.

  A single slice of TPUs does not say so.
  """
  return getattr(device, "slice_index", 0)


def _divisors(n: int) -> list[int]:
  return [d for d in range(1, n + 1) if n % d == 0]


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
    pieces = min(_divisors(rows), key=lambda n: abs(n - micro_batches))
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
