"""The objective over a large batch: some rows at a time, with their gradient at once.

Every device takes its rows of the similarity matrices in chunks, against the gathered
embeddings of the whole batch. A chunk yields its share of the loss *and* of every
gradient; what it adds to the gradients of gathered embeddings is summed over chunks, then
over devices by a reduce-scatter. No N x N matrix exists at any time, and the backward
pass of the whole operation is a multiplication. docs/scaling.md has the costs.
"""

import functools
import logging
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from rankclip_jax.losses import listwise, manual, order, terms
from rankclip_jax.losses import objective as objectives
from rankclip_jax.losses.blocking import AUTOMATIC, MIB, Blocking, Blocks, choose

log = logging.getLogger(__name__)


def evaluate(
  objective: objectives.Objective,
  image: Float[Array, "rows dim"],
  text: Float[Array, "rows dim"],
  *,
  log_scale: Float[Array, ""],
  bias: Float[Array, ""] | None = None,
  rank_weight: Float[Array, ""] | float = 1.0,
  tie_key: PRNGKeyArray | None = None,
  ids: Int[Array, " rows"] | Int[Array, "rows kinds"] | None = None,
  axis_name: Hashable | Sequence[Hashable] | None = None,
  blocking: Blocking = AUTOMATIC,
  platform: str | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
  """`plain.evaluate`, in memory linear in the batch.

  Args:
    objective, image, text, log_scale, bias, rank_weight, tie_key, ids: as there. Only the
      loss has a gradient, not its terms. The scores of one list, cosines times the scale,
      may lie `listwise.MAX_RANGE` apart: a scale of 140 for embeddings of norm 1. Beyond
      that gradients are wrong, and then nothing is finite.
    axis_name: as there, inside a `shard_map` that keeps its check_vma and spreads the
      rows over all of these axes: without it jax cannot know that a gradient is one
      device's share, and one taken outside would be too small by the number of devices.
    blocking: how the work is cut.
    platform: "cpu", "gpu" or "tpu", where it will run; None is JAX's default.

  Raises:
    ValueError: as `plain.evaluate` and `choose`, for a temperature at which the
      exponentials of one list leave float32, and for a `shard_map` without check_vma.
  """
  terms.check(objective, image, text, bias, tie_key)
  if objective.ranks:
    listwise.check_scale(objective.log_scale_range[1])
  (rows, dim), devices = image.shape, 1
  if axis_name is not None:
    manual.check_spread(image, text, axis_name)
    devices = jax.lax.axis_size(axis_name)
  blocks = choose(
    blocking,
    objective,
    rows=rows,
    length=rows * devices,
    dim=dim,
    platform=platform or jax.default_backend(),
  )
  _tell(objective, blocks, rows * devices)
  params = {"image": image, "text": text, "log_scale": log_scale}
  if bias is not None:
    params["bias"] = bias
  job = _Job(objective, axis_name, blocks)
  loss, named = _loss(job, params, _Context(jnp.float32(rank_weight), tie_key, ids))
  return loss, jax.lax.stop_gradient(named)


class _Job(NamedTuple):
  objective: objectives.Objective
  axis_name: Any
  blocks: Blocks


class _Context(NamedTuple):
  """What the loss depends on and is not differentiated by."""

  rank_weight: Float[Array, ""]
  tie_key: PRNGKeyArray | None
  ids: Int[Array, " rows"] | Int[Array, "rows kinds"] | None


def _value_and_gradient(job, params, context):
  """(loss, terms) over the global batch, and the loss's gradient by `params`."""
  objective, axis_name, _ = job
  here = terms.Items(
    params["image"].astype(jnp.float32), params["text"].astype(jnp.float32), context.ids
  )
  rows = here.image.shape[0]
  row, columns = jnp.arange(rows), here
  if axis_name is not None:
    row += jax.lax.axis_index(axis_name) * rows
    columns = jax.tree.map(lambda x: jax.lax.all_gather(x, axis_name, tiled=True), here)
  length = columns.image.shape[0]
  place = None
  if objective.ranks and objective.ties == "random":
    # Ties go by index, so random ties are a random numbering of the columns.
    shuffle = jax.random.permutation(context.tie_key, length)
    place = jnp.zeros_like(shuffle).at[shuffle].set(jnp.arange(length))
    row = place[row]
    columns = jax.tree.map(lambda x: x[shuffle], columns)
  weight = jnp.full(rows, 1.0 / length)
  scalars = {k: v for k, v in params.items() if k in ("log_scale", "bias")}
  # Zeros that may differ between devices, and scalars that do not sum over them yet.
  zeros = jax.tree.map(jnp.zeros_like, (columns[:2], scalars))
  scalars, zeros = manual.varying((scalars, zeros), manual.axes_of(columns.image))
  run = functools.partial(_over_chunks, job, columns, scalars, context.rank_weight)

  if not (objective.ranks and objective.anchor_stride > 1):
    sums, by_row, (by_column, by_scalar) = run(here, row, weight, zeros)
  else:
    every = objective.anchor_stride
    first = terms.first_anchor(objective, context.tie_key)
    cut = lambda x: x.reshape(-1, every, *x.shape[1:])
    pick = lambda x: cut(x)[:, first]
    anchors, its_row, its_weight = jax.tree.map(pick, (here, row, every * weight))
    sums, by_row, total = run(here, row, weight, zeros, ranks=False)
    ranked, by_anchor, total = run(anchors, its_row, its_weight, total, contrasts=False)
    put = lambda x, y: cut(x).at[:, first].add(y).reshape(x.shape)
    by_row = jax.tree.map(put, by_row, by_anchor)
    sums, (by_column, by_scalar) = sums | ranked, total

  if place is not None:
    by_column = jax.tree.map(lambda x: x[place], by_column)
  if axis_name is not None:
    sums, by_scalar = jax.lax.psum((sums, by_scalar), axis_name)
    scatter = lambda x: jax.lax.psum_scatter(x, axis_name, tiled=True)
    by_column = jax.tree.map(scatter, by_column)
  image, text = jax.tree.map(jnp.add, by_row, by_column)
  value = terms.total(objective, sums, context.rank_weight)
  gradient = {"image": image, "text": text, **by_scalar}
  return value, {k: v.astype(params[k].dtype) for k, v in gradient.items()}


def _value(
  job: _Job, params: dict[str, Array], context: _Context
) -> tuple[Array, dict[str, Array]]:
  return _value_and_gradient(job, params, context)[0]


def _backward(job, gradient, cotangents):
  loss_bar, _ = cotangents
  return {k: (loss_bar * v).astype(v.dtype) for k, v in gradient.items()}, None


_loss = jax.custom_vjp(_value, nondiff_argnums=(0,))
_loss.defvjp(_value_and_gradient, _backward)


def _over_chunks(
  job, columns, scalars, rank_weight, rows, positive, weight, start, **which
):
  """Weighted sums of the terms of `rows`, and the gradients of the loss they make.

  Returns:
    The sums by name, the gradient by the rows' embeddings, and `start` plus those by the
    columns' embeddings and by `scalars`.
  """
  objective, blocks = job.objective, job.blocks
  options = listwise.Options(
    objective.decay, objective.top_k, objective.eps, blocks.order, blocks.gathers
  )
  consistency = functools.partial(listwise.consistency, options)

  def loss(here, everywhere, scalars, ids, positive, weight, pair):
    values = terms.terms_of_rows(
      objective,
      terms.Items(*here, ids=ids),
      terms.Items(*everywhere, ids=columns.ids),
      positive,
      scalars["log_scale"],
      scalars.get("bias"),
      consistency=consistency,
      pair=pair,
      **which,
    )
    sums = {name: jnp.sum(weight * x) for name, x in values.items()}
    return terms.total(objective, sums, rank_weight)[0], sums

  def chunk(pair, carry, i):
    here, its_positive, its_weight = jax.tree.map(lambda x: x[i], cut)
    (more, *by_all), sums = jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(
      here[:2], columns[:2], scalars, here.ids, its_positive, its_weight, pair
    )
    by_row, total = carry
    by_row = jax.tree.map(lambda x, y: x.at[i].add(y), by_row, more)
    return (by_row, jax.tree.map(jnp.add, total, tuple(by_all))), sums

  count = len(weight)
  pieces = -(-count // blocks.rows)
  size = -(-count // pieces)
  cut = jax.tree.map(
    lambda x: _padded(x, pieces * size).reshape(pieces, size, *x.shape[1:]),
    (rows, positive, weight),
  )
  carry, sums = (jax.tree.map(jnp.zeros_like, cut[0][:2]), start), {}
  # One pair after the other: the matrices of both at once would take twice as much.
  for pair in terms.PAIRS:
    if terms.names(objective, pair, **which):
      run = functools.partial(chunk, pair)
      carry, named = jax.lax.scan(run, carry, jnp.arange(pieces))
      sums |= {name: x.sum(0) for name, x in named.items()}
  by_row, total = carry
  join = lambda x: x.reshape(pieces * size, *x.shape[2:])[:count]
  return sums, jax.tree.map(join, by_row), total


def _padded(x: Array, length: int) -> Array:
  """Rows of zeros: of weight 0, they add nothing."""
  return jnp.pad(x, [(0, length - len(x))] + [(0, 0)] * (x.ndim - 1))


def _tell(objective: objectives.Objective, blocks: Blocks, length: int) -> None:
  how = ""
  if objective.ranks:
    sort = blocks.order
    ties = 0.0 if sort == "native" else order.resolution(sort, length)
    if objective.top_k is not None and objective.top_k < length:
      sort, ties = "top_k", 0.0
    exactness = f"resolution {ties:.1g} of a list's range" if ties else "exact in float32"
    how = f" order by {sort} ({exactness}),"
  log.info(
    "Loss of %d x %d pairs: %d rows at once,%s about %d MiB a device.",
    length,
    length,
    blocks.rows,
    how,
    blocks.predicted_bytes / MIB,
  )
