"""Whether a step exchanges what it has to and nothing else, from its compiled program."""

import collections
import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

import jax

from aot import exchange, hlo
from rankclip_jax import optim, plan, state

# Elements of what is no array but numbers: terms of the loss, norms.
SMALL = 64
# Sums over the batch of every channel that batch normalisation has: two of the
# activations and two of their gradient.
STATISTICS = 4
PURPOSES = ("embeddings", "embeddings' gradient", "gradients", "parameters", "rest")


@dataclasses.dataclass(frozen=True)
class Expected:
  """What a step of this size has to exchange.

  Attributes:
    training: else it is one tower's step of evaluation.
    batch, dim: of the embeddings, over all devices.
    trained: elements of the parameters that learn.
    leaves: arrays of parameters.
    channels: of all batch normalisations that take statistics of the global batch.
    fsdp, data: devices over which parameters are sharded, and so many times.
    sharded: shapes of the arrays of which a device holds a part.
    pieces: the towers go through the batch in so many.
  """

  training: bool
  batch: int
  dim: int
  trained: int
  leaves: int
  channels: int = 0
  fsdp: int = 1
  data: int = 1
  sharded: tuple[tuple[int, ...], ...] = ()
  pieces: int = 1


def expected(p: plan.Plan, batch: int, part: str) -> Expected:
  """Of a plan's step of a global batch: "train", "encode_image" or "encode_text"."""
  params = state.abstract(p.size, p.objective, p.optimizer, p.mesh).params
  tower = {"encode_image": "vision", "encode_text": "text"}.get(part)
  used = {tower: params[tower]} if tower else params
  leaves = jax.tree.leaves(used)
  learns = jax.tree.leaves(optim.trained(params, p.frozen))
  statistics = [
    x
    for x, learns in zip(jax.tree.leaves(params), learns, strict=True)
    if not learns and p.batch_norm_groups == 1
  ]
  return Expected(
    training=tower is None,
    batch=batch,
    dim=p.size.embed_dim,
    trained=_elements(
      x for x, learns in zip(jax.tree.leaves(params), learns, strict=True) if learns
    ),
    leaves=len(leaves),
    channels=_elements(statistics) // 2,  # a mean and a variance
    fsdp=p.mesh.shape["fsdp"],
    data=p.mesh.shape["data"],
    sharded=tuple(x.shape for x in leaves if any(x.sharding.spec)),
    pieces=p.micro_batches,
  )


@dataclasses.dataclass
class Sum:
  """Of all that is exchanged for one purpose, per device and step."""

  arrays: int = 0
  elements: int = 0
  bytes: float = 0.0


def by_purpose(
  found: Sequence[exchange.Exchange], wanted: Expected
) -> tuple[dict[str, Sum], list[str]]:
  """What is exchanged, added up by purpose, and what serves no purpose, line by line."""
  sums = collections.defaultdict(Sum)
  unexpected = []
  for one in found:
    for shape in one.arrays:
      purpose = purpose_of(one, shape, wanted)
      if purpose is None:
        unexpected.append(f"{shape} x {one.times} in {one.text}")
        continue
      of = sums[purpose]
      of.arrays += one.times
      of.elements += one.times * shape.elements
      of.bytes += one.received(shape)
  return {name: sums[name] for name in PURPOSES}, unexpected


def purpose_of(one: exchange.Exchange, shape: hlo.Shape, wanted: Expected) -> str | None:
  """Why an array is exchanged; None is for no good reason.

  TPUs' compiler makes an all-reduce of a gather of little, whose parts do not overlap,
  and of a reduce-scatter; what it was is still to be seen from its shape and source. Of
  biases in training it is not, and they pass for gradients.
  """
  sums = one.kind in ("all-reduce", "reduce-scatter")
  if shape.dtype == "f32" and shape.sizes == (wanted.batch, wanted.dim):
    gathers = (
      not wanted.training or one.kind == "all-gather" or "all_gather" in one.source
    )
    if one.kind == "all-gather" or sums:
      return "embeddings" if gathers else "embeddings' gradient"
  if not wanted.training and shape.elements <= wanted.batch and not _floating(shape):
    return "rest"  # which rows they are, and which count
  gathered = one.kind == "all-gather" or (sums and not wanted.training)
  if gathered and is_parameter(shape, wanted):
    return "parameters"
  if sums and wanted.training and _floating(shape):
    # Whether they are gradients shows in how many they are.
    return "rest" if shape.elements <= SMALL else "gradients"
  return None


def is_parameter(shape: hlo.Shape, wanted: Expected) -> bool:
  """Whether it is as large as a sharded parameter, or as one layer of a stacked one.

  Compilers turn kernels around and fold biases.
  """
  sizes = {math.prod(x) for x in wanted.sharded}
  layers = {math.prod(x[1:]) for x in wanted.sharded if len(x) > 1}
  return shape.elements in sizes | layers


def complaints(
  sums: dict[str, Sum], unexpected: list[str], wanted: Expected
) -> list[str]:
  """What is wrong with what a step exchanges, in words; of a good one, nothing."""
  found = [f"unexpected: {line}" for line in unexpected]

  def check(what: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
      found.append(f"{what}: {value:,.0f}, expected from {low:,.0f} to {high:,.0f}")

  towers = 2 if wanted.training else 1
  one = wanted.batch * wanted.dim
  check("arrays of embeddings", sums["embeddings"].arrays, towers, towers)
  check("elements of embeddings", sums["embeddings"].elements, towers * one, towers * one)
  backward = towers if wanted.training else 0
  check(
    "arrays of embeddings' gradient",
    sums["embeddings' gradient"].arrays,
    backward,
    backward,
  )
  summed = sums["gradients"].elements + sums["rest"].elements
  check("elements of gradients and the rest", summed, *range_of_sums(wanted))
  sharded = sum(map(math.prod, wanted.sharded))
  passes = (2 if wanted.pieces == 1 else 3 * wanted.pieces) if wanted.training else 1
  check("elements of parameters", sums["parameters"].elements, sharded, passes * sharded)
  return found


def range_of_sums(wanted: Expected) -> tuple[int, int]:
  """Elements that have to be summed over devices, and how many more there may be.

  Each parameter's gradient once, or once a piece where it is the towers'; first over
  those that share a parameter and then, of a shard of it, over the others. On top come
  statistics, two norms of each array, and the loss's terms. In evaluation there is a
  row's number and whether it counts.
  """
  if not wanted.training:
    return 0, 2 * wanted.batch
  sharded = sum(map(math.prod, wanted.sharded))
  again = sharded // wanted.fsdp if wanted.fsdp > 1 and wanted.data > 1 else 0
  more = STATISTICS * wanted.channels + 2 * wanted.leaves + SMALL
  return wanted.trained, wanted.pieces * (wanted.trained + again) + more


def _floating(shape: hlo.Shape) -> bool:
  return shape.dtype.startswith(("f", "bf"))


def _elements(arrays: Iterable[Any]) -> int:
  return sum(math.prod(x.shape) for x in arrays)
