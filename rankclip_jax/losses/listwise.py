"""The Plackett-Luce likelihood with its gradient in the same pass.

With p in the order of the reference, S_k = sum_{j >= k} exp p_j and

    NLL = sum_k mu_k (log S_k - p_k)
    dNLL / dp_k = exp(p_k) sum_{i <= k} mu_i / S_i - mu_k

so nothing of size [rows, length] has to be kept for a backward pass. Equal to
`ranking.plackett_luce_nll`, which is the form to read.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from rankclip_jax.losses import native, order, ranking

# The scores of one list may differ by this much. A sum of 2^20 exponentials as large as
# exp(280 / 4) is a float32, and so is its reciprocal times the smallest mu, 1 / ln(2^20):
# of what is below 1e-38, devices make zero. A scale of 100 needs 200.
MAX_RANGE = 280.0


def check_scale(log_scale: float) -> None:
  """Refuses temperatures at which a list of cosines spans more than `MAX_RANGE`.

  Raises:
    ValueError: naming the limit.
  """
  limit = math.log(MAX_RANGE / 2)
  if log_scale > limit:
    raise ValueError(
      f"log_scale_range must stay below {limit:.2f} (a scale of {MAX_RANGE / 2:.0f}), "
      f"got {log_scale:.2f}: the exponentials of one list, or their reciprocals, would "
      "leave float32."
    )


class Options(NamedTuple):
  """What `ranking.plackett_luce_nll` and `order.arrange` call the same."""

  decay: ranking.Decay = "none"
  top_k: int | None = None
  eps: float | None = None
  backend: order.Backend | native.Backend = "packed"
  gathers: bool = True


def _consistency(
  options: Options,
  a: Float[Array, "rows length"],
  b: Float[Array, "rows length"],
  scale: Float[Array, ""],
  where: Bool[Array, "rows length"] | None,
) -> Float[Array, " rows"]:
  return _forward(options, a, b, scale, where)[0]


def _forward(options, a, b, scale, where):
  items = jnp.float32(a.shape[-1]) if where is None else where.sum(-1)
  half = jnp.broadcast_to(0.5 / jnp.clip(items, 1, options.top_k), a.shape[:1])
  rank = functools.partial(nll_and_gradient, options, where=where)

  def finish(nll, x_bar, x):
    by_scale = half * jnp.sum(x_bar * x, axis=1)
    return half * nll, by_scale, half[:, None] * scale * x_bar

  # Cosines order as their multiples do, and no rounding of a product makes ties of them.
  of_a, a_scale, a_bar = finish(*rank(scale * a, b), a)
  # One list after the other, so that what one needs on the way is free for the next.
  a, b, a_bar = jax.lax.optimization_barrier((a, b, a_bar))
  of_b, b_scale, b_bar = finish(*rank(scale * b, a), b)
  return of_a + of_b, (a_bar, b_bar, a_scale + b_scale)


def _backward(options, gradients, cotangent):
  a_bar, b_bar, scale_bar = gradients
  rows = cotangent[:, None]
  return rows * a_bar, rows * b_bar, jnp.sum(cotangent * scale_bar), None


# `ranking.consistency(scale * a, scale * b)` with ties by index.
consistency = jax.custom_vjp(_consistency, nondiff_argnums=(0,))
consistency.defvjp(_forward, _backward)


def nll_and_gradient(
  options: Options,
  scores: Float[Array, "rows length"],
  reference: Float[Array, "rows length"],
  where: Bool[Array, "rows length"] | None = None,
) -> tuple[Float[Array, " rows"], Float[Array, "rows length"]]:
  """NLL of each list and its gradient by `scores`; see `ranking.plackett_luce_nll`."""
  rows, length = scores.shape
  k = min(options.top_k or length, length)
  mu = ranking.position_weights(k, decay=options.decay)
  if options.backend == "native" and options.eps is None and k == length:
    return native.nll_and_gradient(scores, reference, mu, where)

  items = jnp.int32(length) if where is None else where.sum(-1, keepdims=True)
  position = jax.lax.broadcasted_iota(jnp.int32, (rows, k), 1)
  mu = jnp.where(position < items, mu, 0.0)
  if where is not None:
    scores = jnp.where(where, scores, _highest(scores, where))

  if k < length:
    index, remains = order.top(reference, k, where=where)
    p = jnp.take_along_axis(scores, index, axis=1, mode="clip")
    nll, p_bar, gradient = _in_order(
      p, mu, position < items, scores, remains, options.eps
    )
    row = jax.lax.broadcasted_iota(jnp.int32, (rows, k), 0)
    gradient = gradient.at[row, index].set(p_bar, mode="drop", unique_indices=True)
  else:
    backend = options.backend
    if backend == "native":
      backend = order.default(length)
    index, p = order.arrange(
      reference,
      scores,
      backend=backend,
      where=where,
      gathers=options.gathers,
    )
    nll, p_bar, _ = _in_order(p, mu, position < items, scores, None, options.eps)
    gradient = order.restore(p_bar, index, gathers=options.gathers)
  if options.eps is not None:  # the maximum that it subtracts has a gradient too
    top = scores == jnp.max(scores, axis=1, keepdims=True)
    top = top if where is None else top & where
    share = jnp.sum(gradient, axis=1, keepdims=True) / top.sum(1, keepdims=True)
    gradient = gradient - jnp.where(top, share, 0.0)
  return nll, gradient


def _in_order(p, mu, exists, scores, remains, eps) -> tuple[Array, Array, Any]:
  """Value, gradient by `p` [rows, k], and by those of `scores` that remain, if any.

  The exponentials of one list span e^200 at scale 100, which float32 does not. They are
  kept in two registers: above the middle of the list's range relative to e^high, below it
  relative to e^low. Every sum is one of positive numbers, so nothing cancels.
  """
  top, low = (f(scores, axis=1, keepdims=True) for f in (jnp.max, jnp.min))
  middle, quarter = 0.5 * (top + low), 0.25 * (top - low)
  if eps is not None:  # released: all relative to the maximum, what is small is lost
    middle, quarter = top, jnp.zeros_like(top)
  fall = jnp.exp(-quarter)

  def registers(x, counts):
    upper = x >= middle if eps is None else jnp.ones_like(x, bool)
    e = jnp.exp(x - middle + jnp.where(upper, -quarter, quarter))
    e = jnp.where(counts, e, 0.0)
    return e, upper, jnp.where(upper, e, 0.0), jnp.where(upper, 0.0, e)

  def gradient(e, upper, high, low):
    return e * jnp.where(upper, high, fall * (fall * high) + low)

  e, upper, high, low = registers(p, exists)
  high, low = (jax.lax.cumsum(x, axis=1, reverse=True) for x in (high, low))
  rest = None if remains is None else registers(scores, remains)
  if rest is not None:
    high, low = (
      x + r.sum(1, keepdims=True) for x, r in zip((high, low), rest[2:], strict=True)
    )
  if eps is not None:
    high = high + eps
  above = high > 0.0  # false behind the last score of the upper half
  mass = jnp.where(above, high + fall * (fall * low), low)
  mass = jnp.where(exists, mass, 1.0)
  log_mass = jnp.log(mass) + middle + jnp.where(above, quarter, -quarter)
  nll = jnp.sum(mu * (log_mass - p), axis=1)

  weight = mu / mass
  high = jax.lax.cumsum(jnp.where(above, weight, 0.0), axis=1)
  low = jax.lax.cumsum(jnp.where(above, 0.0, weight), axis=1)
  p_bar = gradient(e, upper, high, low) - mu
  if rest is None:
    return nll, p_bar, None
  return nll, p_bar, gradient(*rest[:2], high[:, -1:], low[:, -1:])


def _highest(scores: Array, where: Array) -> Array:
  """The maximum of the items that exist; 0 where there are none."""
  top = jnp.max(scores, axis=1, keepdims=True, where=where, initial=-jnp.inf)
  return jnp.where(jnp.isfinite(top), top, 0.0)
