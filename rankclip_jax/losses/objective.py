"""The training objective: named terms, their weights, the ramp, and the presets.

    L = L_CLIP + w(t) [lambda_in L_in + lambda_cross L_cross] + cyclic terms

(RankCLIP Eq. 7; the ramp w is the released code's.) `plain.evaluate` computes it in the
readable form, `blocked.evaluate` in the one that trains.
"""

import dataclasses
import difflib
import math
from typing import Any, Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from rankclip_jax.losses import ranking

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
    anchor_stride: only every so many-th row, from a random first one, is the anchor of
      ranked lists (as long as ever): an unbiased estimate at a fraction of the cost.
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
  anchor_stride: int = 1

  @property
  def ranks(self) -> bool:
    """Whether any list-wise term is on."""
    return self.cross_modal_weight != 0.0 or self.in_modal_weight != 0.0

  @property
  def draws(self) -> bool:
    """Whether it needs a key for every step."""
    return self.ranks and (self.ties == "random" or self.anchor_stride > 1)

  @property
  def has_bias(self) -> bool:
    """Whether the logits have a learned bias."""
    return self.initial_bias is not None


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


_OF_RANKING = {
  "ramp",
  "ramp_slope",
  "ramp_ceiling",
  "decay",
  "top_k",
  "ties",
  "eps",
  "anchor_stride",
}


def named(name: str, **changes: Any) -> Objective:
  """The preset called `name`, with those of its fields changed that are not None.

  Raises:
    ValueError: for an unknown name, an option of terms that are switched off, lists of no
      positions, or a temperature that the first clamp would change.
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
  check_top_k(changed)
  low, high = (math.exp(x) for x in changed.log_scale_range)
  if not low * (1 - 1e-6) <= changed.initial_scale <= high * (1 + 1e-6):
    raise ValueError(
      f"initial_scale must lie between {low:.4g} and {high:.4g}, where the learned "
      f"temperature is kept, got {changed.initial_scale:.4g}."
    )
  return changed


def check_top_k(objective: Objective) -> None:
  """Refuses lists of no positions.

  Raises:
    ValueError: naming what came.
  """
  if objective.top_k is not None and objective.top_k < 1:
    raise ValueError(f"top_k must be at least 1, got {objective.top_k}; None is all.")


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
