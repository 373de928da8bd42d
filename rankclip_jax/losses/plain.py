"""The objective in the form to read: what `blocked` has to equal."""

from collections.abc import Hashable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from rankclip_jax.losses import objective as objectives
from rankclip_jax.losses import ranking, terms


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
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
  """The loss over the global batch, and every term of it by name.

  This is the form to read and to compare with: it keeps some 14 rows x batch floats for
  the backward pass. `blocked.evaluate` is what trains.

  Args:
    objective: what to minimise.
    image, text: L2-normalised embeddings of matched rows, this device's share.
    log_scale: s = exp(log_scale) multiplies the cosines.
    bias: added to the logits of the sigmoid loss.
    rank_weight: w, see `objective.rank_weight`; it carries no gradient.
    tie_key: one key for the whole batch; needed when ties are random.
    ids: what a row shows. Other rows of the same id are no negatives of it and no part of
      its lists; with several kinds of ids, those that agree in any. None is all
      different.
    axis_name: mesh axes over which rows are spread. Embeddings are gathered with their
      gradient and every device computes only its own rows of the similarity matrices.
      Differentiate around `shard_map`; a gradient taken inside it needs its check_vma,
      without which jax sums the loss's gradient once for every device.

  Returns:
    The loss, and its unweighted terms with `rank_loss`, their weighted sum. Both are the
    same on every device.

  Raises:
    ValueError: if shapes differ, or a key or a bias that the objective needs is missing.
  """
  terms.check(objective, image, text, bias, tie_key)
  gather = lambda x: x
  mean = jnp.mean
  first_row = 0
  if axis_name is not None:
    gather = lambda x: jax.lax.all_gather(x, axis_name, tiled=True)
    mean = lambda x: jax.lax.pmean(jnp.mean(x), axis_name)
    first_row = jax.lax.axis_index(axis_name) * image.shape[0]
  row = first_row + jnp.arange(image.shape[0])
  here = terms.Items(image.astype(jnp.float32), text.astype(jnp.float32), ids)
  everywhere = jax.tree.map(gather, here)

  def consistency(a, b, s, where):
    return ranking.consistency(
      s * a,
      s * b,
      where=where,
      decay=objective.decay,
      top_k=objective.top_k,
      tie_key=tie_key if objective.ties == "random" else None,
      eps=objective.eps,
    )

  rows = {}
  for pair in terms.PAIRS:
    rows |= terms.terms_of_rows(
      objective,
      here,
      everywhere,
      row,
      log_scale,
      bias,
      consistency=consistency,
      pair=pair,
    )
  if objective.anchor_stride > 1 and objective.ranks:
    chosen = row % objective.anchor_stride == terms.first_anchor(objective, tie_key)
    for name in ("cross_modal_loss", "in_modal_loss"):
      if name in rows:
        rows[name] = jnp.where(chosen, objective.anchor_stride * rows[name], 0.0)
  return terms.total(objective, {k: mean(v) for k, v in rows.items()}, rank_weight)
