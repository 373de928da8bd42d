"""The Plackett-Luce likelihood of an order, and the consistency of two rankings.

The last axis is the list, leading axes are batch. This is the readable form: what a
faster one has to equal.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

Decay = Literal["none", "log"]

# Stands for the score of a padded item: its exponential is 0 next to any real score, and
# unlike -inf it never makes inf - inf.
_PADDED = -1e30


def plackett_luce_nll(
  scores: Float[Array, "*batch length"],
  reference: Float[Array, "*batch length"],
  *,
  decay: Decay = "none",
  top_k: int | None = None,
  where: Bool[Array, "*batch length"] | None = None,
  tie_key: PRNGKeyArray | None = None,
  eps: float | None = None,
) -> Float[Array, "*batch"]:
  """Negative log-likelihood, under `scores`, of the order that sorts `reference`.

  With pi sorting `reference` from high to low (RankCLIP Sec. 3.2; Xia et al. 2008):

      NLL = sum_k mu_k [logsumexp_{j >= k} p_pi(j) - p_pi(k)]

  Args:
    scores: p, in any float type; the arithmetic is float32.
    reference: what defines the order; it carries no gradient.
    decay: `"none"` is mu_k = 1 (the released code), `"log"` is mu_k = 1 / ln(k + 1),
      k = 1, 2, ... (the paper's first version).
    top_k: keep the first `top_k` positions of the sum; each still competes with the
      whole rest of the list. None keeps all.
    where: items that exist. Padding is ranked last, is worth nothing and counts nowhere.
    tie_key: equal reference scores are ordered by one random permutation of the items,
      shared by all lists (as released); None orders them by index.
    eps: None for the log-space form. A number gives the released code's
      `log(sum exp(p - max) + eps)`, which loses every position whose remaining mass is
      below `eps`: for parity only.

  Raises:
    ValueError: if shapes differ or `top_k` is not positive.
  """
  if scores.shape != reference.shape:
    raise ValueError(
      f"scores and reference must have one shape, got {scores.shape} and "
      f"{reference.shape}."
    )
  length = scores.shape[-1]
  where = jnp.ones(scores.shape, bool) if where is None else where
  if tie_key is not None:
    shuffle = jax.random.permutation(tie_key, length)
    scores, reference, where = (x[..., shuffle] for x in (scores, reference, where))

  scores = jnp.where(where, scores.astype(jnp.float32), _PADDED)
  order = _descending_order(reference.astype(jnp.float32), where)
  p = jnp.take_along_axis(scores, order, axis=-1)
  p = p - jnp.max(p, axis=-1, keepdims=True)  # small numbers keep more of float32
  log_mass = _suffix_logsumexp(p) if eps is None else _suffix_log_with_eps(p, eps)
  mu = position_weights(length, decay=decay, top_k=top_k)
  position = jax.lax.broadcasted_iota(jnp.int32, p.shape, p.ndim - 1)
  exists = position < where.sum(-1, keepdims=True)
  return jnp.sum(jnp.broadcast_to(mu, p.shape) * (log_mass - p), axis=-1, where=exists)


def position_weights(
  length: int, *, decay: Decay = "none", top_k: int | None = None
) -> Float[Array, " length"]:
  """mu_k for k = 1..length, zero beyond `top_k`."""
  if top_k is not None and top_k < 1:
    raise ValueError(f"top_k must be at least 1, got {top_k}; use None for whole lists.")
  k = jnp.arange(1, length + 1, dtype=jnp.float32)
  if decay == "none":
    mu = jnp.ones_like(k)
  elif decay == "log":
    mu = 1.0 / jnp.log(k + 1.0)
  else:
    raise ValueError(f'decay must be "none" or "log", got {decay!r}.')
  return mu if top_k is None else jnp.where(k <= top_k, mu, 0.0)


def consistency(
  a: Float[Array, "*batch length"],
  b: Float[Array, "*batch length"],
  *,
  decay: Decay = "none",
  top_k: int | None = None,
  where: Bool[Array, "*batch length"] | None = None,
  tie_key: PRNGKeyArray | None = None,
  eps: float | None = None,
) -> Float[Array, "*batch"]:
  """How unlikely each of two rankings of one list finds the other's order.

      1/2 [NLL(a | order of b) + NLL(b | order of a)] / K

  with K the number of positions in the sum. Cross-modal consistency takes a from the
  rows of s V T^T and b from those of s T V^T; in-modal consistency s V V^T and s T T^T
  (RankCLIP Sec. 3.3, both directions as in the released code). Options as in
  `plackett_luce_nll`.
  """
  options: dict[str, Any] = dict(
    decay=decay, top_k=top_k, where=where, tie_key=tie_key, eps=eps
  )
  both = plackett_luce_nll(a, b, **options) + plackett_luce_nll(b, a, **options)
  items = a.shape[-1] if where is None else where.sum(-1)
  return 0.5 * both / jnp.clip(items, 1, top_k)


def _descending_order(reference: Array, where: Array) -> Array:
  """Indices that sort the real items from high to low, ties by index, padding last."""
  key = jnp.where(where, -jax.lax.stop_gradient(reference), jnp.inf)
  return jnp.argsort(key, axis=-1, stable=True)


def _suffix_logsumexp(p: Array) -> Array:
  """`L_k = logsumexp_{j >= k} p_j`.

  A scan of logaddexp never leaves log space, so nothing underflows at any temperature; on
  CPU it is faster than `lax.cumlogsumexp`.
  """
  return jax.lax.associative_scan(jnp.logaddexp, p, reverse=True, axis=p.ndim - 1)


def _suffix_log_with_eps(p: Array, eps: float) -> Array:
  mass = jnp.cumsum(jnp.exp(p)[..., ::-1], axis=-1)[..., ::-1]
  return jnp.log(mass + eps)
