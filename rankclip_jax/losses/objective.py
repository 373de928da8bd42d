"""The training objective: named terms, their weights, the ramp, and the presets.

    L = L_CLIP + w(t) [lambda_in L_in + lambda_cross L_cross] + cyclic terms

(RankCLIP Eq. 7; the ramp w is the released code's.) `evaluate` works on the rows that
one device holds: give it an axis name and it gathers the rest.
"""

import dataclasses
import difflib
import math
from collections.abc import Hashable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from rankclip_jax.losses import contrastive, ranking

LOG_MAX_SCALE = math.log(100.0)  # Radford et al. 2021, Sec. 2.5
RELEASED_EPS = 1e-10  # what the released ListMLE adds inside the logarithm
# Released: (ListMLE + ListMLE) / 32 over sums of positions, then / N: for the mean over
# positions and over the two directions this is 1/16, which the paper calls lambda.
RANK_WEIGHT = 1.0 / 16.0
CYCLIC_WEIGHT = 0.25  # Goel et al. 2022, Sec. 4


@dataclasses.dataclass(frozen=True)
class Objective:
  """What is minimised. Weights are multipliers of means over rows and positions.

  Attributes:
    contrastive: "softmax" (InfoNCE, both directions) or "sigmoid" (SigLIP).
    cross_modal_weight: lambda_cross (the paper's lambda_2).
    in_modal_weight: lambda_in (the paper's lambda_1).
    ramp: w(t) over the progress t in [0, 1]: "none" is 1, "step" is
      clip(ramp_slope t, 0, ramp_ceiling) at every step, "epoch" the same with t held
      for an epoch, (e - 1) / (E - 1), as released.
    decay, top_k, ties, eps: see `ranking.plackett_luce_nll`; ties are "random" or
      "index".
    cyclic_cross_modal_weight, cyclic_in_modal_weight: CyCLIP's two terms.
    initial_scale, initial_bias: of the logits; a bias of None means there is none.
    log_scale_range: the learned log-temperature is clamped to it after every step.
  """

  contrastive: Literal["softmax", "sigmoid"] = "softmax"
  cross_modal_weight: float = 0.0
  in_modal_weight: float = 0.0
  ramp: Literal["none", "step", "epoch"] = "step"
  ramp_slope: float = 3.0
  ramp_ceiling: float = 2.0
  decay: ranking.Decay = "none"
  top_k: int | None = None
  ties: Literal["random", "index"] = "random"
  eps: float | None = None
  cyclic_cross_modal_weight: float = 0.0
  cyclic_in_modal_weight: float = 0.0
  initial_scale: float = 1.0 / 0.07
  initial_bias: float | None = None
  log_scale_range: tuple[float, float] = (0.0, LOG_MAX_SCALE)

  @property
  def ranks(self) -> bool:
    """Whether any list-wise term is on."""
    return self.cross_modal_weight != 0.0 or self.in_modal_weight != 0.0


_RANKCLIP = Objective(cross_modal_weight=RANK_WEIGHT, in_modal_weight=RANK_WEIGHT)

PRESETS: dict[str, Objective] = {
  "rankclip": _RANKCLIP,
  "rankclip_c": dataclasses.replace(_RANKCLIP, in_modal_weight=0.0),
  "rankclip_i": dataclasses.replace(_RANKCLIP, cross_modal_weight=0.0),
  # The paper's first version: top ranks count more, constant lambda = 1/16.
  "rankclip_paper": dataclasses.replace(_RANKCLIP, ramp="none", decay="log"),
  # The released numbers, faults included; 4.6052 is the released clamp.
  "rankclip_released": dataclasses.replace(
    _RANKCLIP, ramp="epoch", eps=RELEASED_EPS, log_scale_range=(0.0, 4.6052)
  ),
  "clip": Objective(),
  "cyclip": Objective(
    cyclic_cross_modal_weight=CYCLIC_WEIGHT, cyclic_in_modal_weight=CYCLIC_WEIGHT
  ),
  # Zhai et al. 2023, Sec. 3.2: t' = log 10, b = -10.
  "siglip": Objective(contrastive="sigmoid", initial_scale=10.0, initial_bias=-10.0),
}


_OF_RANKING = {"ramp", "ramp_slope", "ramp_ceiling", "decay", "top_k", "ties", "eps"}


def named(name: str, **changes: Any) -> Objective:
  """The preset called `name`, with those of its fields changed that are not None.

  Raises:
    ValueError: for an unknown name, or an option of terms that are switched off.
  """
  if name not in PRESETS:
    close = difflib.get_close_matches(name, PRESETS, n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    raise ValueError(f"Unknown objective {name!r}; there are {', '.join(PRESETS)}.{hint}")
  changes = {field: value for field, value in changes.items() if value is not None}
  changed = dataclasses.replace(PRESETS[name], **changes)
  if idle := sorted(_OF_RANKING & changes.keys()) if not changed.ranks else []:
    raise ValueError(
      f"The objective {name!r} ranks nothing, so {', '.join(idle)} would do nothing; "
      "choose rankclip, or set cross_modal_weight or in_modal_weight."
    )
  return changed


def rank_weight(
  objective: Objective, step: Int[Array, ""] | int, *, num_steps: int, epoch_steps: int
) -> Float[Array, ""]:
  """w at `step` = 0..num_steps-1, with `epoch_steps` steps an epoch.

  Raises:
    ValueError: for the epoch ramp of a single epoch, which the released code divides
      by zero.
  """
  if objective.ramp == "none":
    return jnp.float32(1.0)
  if objective.ramp == "step":
    now, last = step, num_steps - 1
  else:
    now, last = step // epoch_steps, -(-num_steps // epoch_steps) - 1
    if last < 1:
      raise ValueError(
        "The released epoch ramp, 3 (e - 1) / (E - 1), needs at least 2 epochs, got "
        f'{num_steps} steps of {epoch_steps} an epoch; use ramp="step".'
      )
  progress = jnp.asarray(now, jnp.float32) / max(last, 1)
  return jnp.clip(objective.ramp_slope * progress, 0.0, objective.ramp_ceiling)


def evaluate(
  objective: Objective,
  image: Float[Array, "rows dim"],
  text: Float[Array, "rows dim"],
  *,
  log_scale: Float[Array, ""],
  bias: Float[Array, ""] | None = None,
  rank_weight: Float[Array, ""] | float = 1.0,
  tie_key: PRNGKeyArray | None = None,
  axis_name: Hashable | Sequence[Hashable] | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
  """The loss over the global batch, and every term of it by name.

  Args:
    objective: what to minimise.
    image, text: L2-normalised embeddings of matched rows, this device's share.
    log_scale: s = exp(log_scale) multiplies the cosines.
    bias: added to the logits of the sigmoid loss.
    rank_weight: w, see `rank_weight`.
    tie_key: one key for the whole batch; needed when ties are random.
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
  _check(objective, image, text, bias, tie_key)
  image, text = image.astype(jnp.float32), text.astype(jnp.float32)
  gather = lambda x: x
  mean = jnp.mean
  first_row = 0
  if axis_name is not None:
    gather = lambda x: jax.lax.all_gather(x, axis_name, tiled=True)
    mean = lambda x: jax.lax.pmean(jnp.mean(x), axis_name)
    first_row = jax.lax.axis_index(axis_name) * image.shape[0]
  positive = first_row + jnp.arange(image.shape[0])
  all_image, all_text = gather(image), gather(text)
  s = jnp.exp(log_scale.astype(jnp.float32))

  cos_it, cos_ti = _cosines(image, all_text), _cosines(text, all_image)
  if objective.contrastive == "softmax":
    rows = contrastive.info_nce(s * cos_it, positive)
    rows = 0.5 * (rows + contrastive.info_nce(s * cos_ti, positive))
  else:
    assert bias is not None  # `_check` has seen to it
    rows = contrastive.sigmoid(s * cos_it + bias, positive)
  terms = {"contrastive_loss": mean(rows)}
  loss = terms["contrastive_loss"]

  in_modal = objective.in_modal_weight or objective.cyclic_in_modal_weight
  cos_ii = _cosines(image, all_image) if in_modal else None
  cos_tt = _cosines(text, all_text) if in_modal else None
  pairs = {"cross_modal": (cos_it, cos_ti), "in_modal": (cos_ii, cos_tt)}

  rank_loss = 0.0
  for name, (a, b) in pairs.items():
    if weight := getattr(objective, f"{name}_weight"):
      rows = ranking.consistency(
        s * a,
        s * b,
        decay=objective.decay,
        top_k=objective.top_k,
        tie_key=tie_key if objective.ties == "random" else None,
        eps=objective.eps,
      )
      terms[f"{name}_loss"] = mean(rows)
      rank_loss += rank_weight * weight * terms[f"{name}_loss"]
    if weight := getattr(objective, f"cyclic_{name}_weight"):
      terms[f"cyclic_{name}_loss"] = mean(contrastive.cyclic(a, b))
      loss += weight * terms[f"cyclic_{name}_loss"]
  if objective.ranks:
    terms |= {"rank_loss": rank_loss, "rank_weight": jnp.float32(rank_weight)}
  return loss + rank_loss, terms


def _cosines(rows: Array, columns: Array) -> Array:
  """Row-wise similarities. Full float32: TF32 or bf16 passes would decide the order."""
  return jnp.matmul(rows, columns.T, precision=jax.lax.Precision.HIGHEST)


def _check(objective, image, text, bias, tie_key) -> None:
  if image.shape != text.shape or image.ndim != 2:
    raise ValueError(
      "image and text must be matched embeddings of one shape [rows, dim], got "
      f"{image.shape} and {text.shape}."
    )
  if objective.ranks and objective.ties == "random" and tie_key is None:
    raise ValueError(
      'ties="random" needs tie_key; pass a PRNG key for this step or use ties="index".'
    )
  if (objective.contrastive == "sigmoid") != (bias is not None):
    raise ValueError(
      "The sigmoid loss takes a bias and the softmax loss none, got "
      f"contrastive={objective.contrastive!r} with bias={bias}."
    )
