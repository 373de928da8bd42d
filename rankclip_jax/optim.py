"""AdamW as CLIP uses it: decay on weights only, warm-up, cosine to zero."""

from typing import Any

import jax
import optax

# Last names of parameters that weight decay leaves alone (Radford et al. 2021, Sec. 2.5:
# all weights that are not gains or biases are decayed; the released code spares the
# temperature too).
UNDECAYED = ("bias", "scale", "logit_scale", "logit_bias")


def schedule(
  *, learning_rate: float, num_steps: int, warmup_fraction: float
) -> optax.Schedule:
  """Linear warm-up over a fraction of the steps, then a cosine to zero."""
  warmup = round(warmup_fraction * num_steps)
  return optax.warmup_cosine_decay_schedule(
    init_value=learning_rate / max(warmup, 1),
    peak_value=learning_rate,
    warmup_steps=warmup,
    decay_steps=max(num_steps, warmup + 1),
  )


def decay_mask(params: Any) -> Any:
  """True where weight decay applies, judged by the last name of the path."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: path[-1].key not in UNDECAYED, params
  )


def optimizer(
  learning_rate: optax.Schedule,
  *,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  weight_decay: float = 0.1,
  clip_norm: float = 0.0,
) -> optax.GradientTransformation:
  """AdamW behind an optional bound on the norm of the whole gradient (0 is off)."""
  adamw = optax.adamw(
    learning_rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mask=decay_mask
  )
  if not clip_norm:
    return adamw
  return optax.chain(optax.clip_by_global_norm(clip_norm), adamw)
