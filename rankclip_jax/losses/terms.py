"""The terms of the objective for some rows of the similarity matrices, by name.

One description for `plain` and `blocked`, which differ in how many rows they take at once
and in how they find the gradient of the ranking terms.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from rankclip_jax.losses import contrastive
from rankclip_jax.losses import objective as objectives

Pair = Literal["cross_modal", "in_modal"]
PAIRS: tuple[Pair, ...] = ("cross_modal", "in_modal")


class Items(NamedTuple):
  """Matched embeddings in float32, and what each row shows."""

  image: Float[Array, "length dim"]
  text: Float[Array, "length dim"]
  ids: Int[Array, " length"] | Int[Array, "length kinds"] | None


def names(
  objective: objectives.Objective,
  pair: Pair,
  *,
  contrasts: bool = True,
  ranks: bool = True,
) -> tuple[str, ...]:
  """Which terms one pair of similarity matrices has.

  Args:
    objective: a term of weight 0 is none.
    pair: V T^T and T V^T, or V V^T and T T^T.
    contrasts, ranks: False leaves the contrastive and cyclic, or the ranking terms out.
  """
  has = {
    "contrastive_loss": contrasts and pair == "cross_modal",
    f"{pair}_loss": ranks and getattr(objective, f"{pair}_weight"),
    f"cyclic_{pair}_loss": contrasts and getattr(objective, f"cyclic_{pair}_weight"),
  }
  return tuple(name for name, weight in has.items() if weight)


def terms_of_rows(
  objective: objectives.Objective,
  rows: Items,
  columns: Items,
  positive: Int[Array, " rows"],
  log_scale: Float[Array, ""],
  bias: Float[Array, ""] | None,
  *,
  consistency: Callable[[Array, Array, Array, Array | None], Array],
  pair: Pair,
  **which: bool,
) -> dict[str, Float[Array, " rows"]]:
  """Every unweighted term of some rows of one pair of similarity matrices.

  Args:
    objective: which terms there are.
    rows: the anchors.
    columns: the whole batch, in any order.
    positive: the column of each row itself.
    log_scale, bias: of the logits.
    consistency: cosines a and b, their scale and which columns exist, to one value a row:
      `ranking.consistency` or one equal to it.
    pair, which: as for `names`.
  """
  present = names(objective, pair, **which)
  if not present:
    return {}
  s = jnp.exp(log_scale.astype(jnp.float32))
  where = _where(rows, columns, positive)
  if pair == "cross_modal":
    a, b = cosines(rows.image, columns.text), cosines(rows.text, columns.image)
  else:
    a, b = cosines(rows.image, columns.image), cosines(rows.text, columns.text)
  terms = {}
  if "contrastive_loss" in present:
    terms["contrastive_loss"] = _contrastive(objective, a, b, s, bias, positive, where)
  if f"{pair}_loss" in present:
    terms[f"{pair}_loss"] = consistency(a, b, s, where)
  if f"cyclic_{pair}_loss" in present:
    terms[f"cyclic_{pair}_loss"] = contrastive.cyclic(a, b, where)
  return terms


def total(
  objective: objectives.Objective,
  terms: dict[str, Float[Array, ""]],
  rank_weight: Float[Array, ""] | float,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
  """The weighted sum of `terms`, and the terms with `rank_loss` and `rank_weight`."""
  w = jax.lax.stop_gradient(jnp.float32(rank_weight))
  loss, rank_loss = terms.get("contrastive_loss", jnp.float32(0.0)), jnp.float32(0.0)
  for name in PAIRS:
    if f"{name}_loss" in terms:
      rank_loss += w * getattr(objective, f"{name}_weight") * terms[f"{name}_loss"]
    if f"cyclic_{name}_loss" in terms:
      weight = getattr(objective, f"cyclic_{name}_weight")
      loss += weight * terms[f"cyclic_{name}_loss"]
  if objective.ranks:
    terms = terms | {"rank_loss": rank_loss, "rank_weight": w}
  return loss + rank_loss, terms


def first_anchor(
  objective: objectives.Objective, tie_key: PRNGKeyArray | None
) -> Int[Array, ""]:
  """The first row that is the anchor of ranked lists; the rest follow by the stride."""
  assert tie_key is not None  # `check` has seen to it
  return jax.random.randint(
    jax.random.fold_in(tie_key, 1), (), 0, objective.anchor_stride
  )


def cosines(rows: Array, columns: Array) -> Array:
  """Row-wise similarities. Full float32: TF32 or bf16 passes would decide the order."""
  return jnp.matmul(rows, columns.T, precision=jax.lax.Precision.HIGHEST)


def _contrastive(objective, cos_it, cos_ti, s, bias, positive, where):
  if objective.contrastive == "softmax":
    rows = contrastive.info_nce(s * cos_it, positive, where)
    return 0.5 * (rows + contrastive.info_nce(s * cos_ti, positive, where))
  assert bias is not None  # `check` has seen to it
  return contrastive.sigmoid(s * cos_it + bias, positive, where)


def _where(rows: Items, columns: Items, positive: Array) -> Array | None:
  """Which columns exist for a row: itself, and all that show something else."""
  if rows.ids is None or columns.ids is None:
    return None
  length = columns.ids.shape[0]
  itself = positive[:, None] == jnp.arange(length)[None]
  same = jnp.zeros_like(itself)
  here, there = (x.reshape(x.shape[0], -1) for x in (rows.ids, columns.ids))
  for kind in range(here.shape[1]):  # all at once would be rows x batch x kinds
    same |= here[:, kind, None] == there[None, :, kind]
  return itself | ~same


def check(objective, image, text, bias, tie_key) -> None:
  """Raises what `evaluate` says it raises."""
  if image.shape != text.shape or image.ndim != 2:
    raise ValueError(
      "image and text must be matched embeddings of one shape [rows, dim], got "
      f"{image.shape} and {text.shape}."
    )
  if objective.draws and tie_key is None:
    raise ValueError(
      'ties="random" and anchor_stride > 1 need tie_key; pass a PRNG key for this step, '
      'or use ties="index" and anchor_stride=1.'
    )
  check_anchors(objective, image.shape[0])
  objectives.check_top_k(objective)
  if (objective.contrastive == "sigmoid") != (bias is not None):
    raise ValueError(
      "The sigmoid loss takes a bias and the softmax loss none, got "
      f"contrastive={objective.contrastive!r} with bias={bias}."
    )


def check_anchors(objective: objectives.Objective, rows: int) -> None:
  """Refuses a stride that does not divide a device's rows.

  Raises:
    ValueError: naming both.
  """
  if objective.anchor_stride < 1 or rows % objective.anchor_stride:
    raise ValueError(
      "anchor_stride must be at least 1 and divide the rows of every device, got "
      f"{objective.anchor_stride} for {rows} rows."
    )
