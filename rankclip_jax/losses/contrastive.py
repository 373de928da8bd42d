"""Losses that know which pair belongs together: InfoNCE, sigmoid, and CyCLIP's cycles.

Every function maps rows of a similarity matrix to one value a row, in float32, so that a
device can hold any subset of the rows; the mean over the global batch is the caller's.
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int


def info_nce(
  logits: Float[Array, "rows length"],
  positive: Int[Array, " rows"],
  where: Bool[Array, "rows length"] | None = None,
) -> Float[Array, " rows"]:
  """Cross-entropy of each row against its matched column: `logsumexp_j l_j - l_pos`.

  CLIP's loss is the mean of this over the rows of s V T^T and of its transpose
  (Radford et al. 2021, Fig. 3; RankCLIP Eq. 1). Columns not `where` are no negatives.
  """
  return optax.losses.softmax_cross_entropy_with_integer_labels(
    logits.astype(jnp.float32), positive, where=where
  )


def sigmoid(
  logits: Float[Array, "rows length"],
  positive: Int[Array, " rows"],
  where: Bool[Array, "rows length"] | None = None,
) -> Float[Array, " rows"]:
  """SigLIP: `sum_j -log sigmoid(z_j l_j)`, z = +1 at the matched column, else -1.

  `logits` are s <v, t> + b (Zhai et al. 2023, Sec. 3.2; the mean over rows is its loss).
  """
  logits = logits.astype(jnp.float32)
  z = 2.0 * jax.nn.one_hot(positive, logits.shape[-1]) - 1.0
  return -jnp.sum(jax.nn.log_sigmoid(z * logits), axis=-1, where=where)


def cyclic(
  a: Float[Array, "rows length"],
  b: Float[Array, "rows length"],
  where: Bool[Array, "rows length"] | None = None,
) -> Float[Array, " rows"]:
  """CyCLIP's consistency `sum_j (a_j - b_j)^2` of two rows of cosines.

  Cross-modal: a from V T^T, b from T V^T. In-modal: a from V V^T, b from T T^T. The
  mean over rows is (1/N) sum_ij (...)^2, Goel et al. 2022, Eqs. 3 and 4.
  """
  square = jnp.square(a.astype(jnp.float32) - b.astype(jnp.float32))
  return jnp.sum(square, axis=-1, where=where)
