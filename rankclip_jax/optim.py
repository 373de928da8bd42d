"""AdamW as CLIP uses it: decay on weights only, warm-up, cosine to zero.

And what fine-tuning adds: towers that do not learn, and layers that learn more slowly
the further they are from the output.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array

# Last names of parameters that weight decay leaves alone (Radford et al. 2021, Sec. 2.5:
# all weights that are not gains or biases are decayed; the released code spares the
# temperature too).
UNDECAYED = ("bias", "scale", "logit_scale", "logit_bias")
# Last names of running statistics, which the forward pass moves and no optimizer.
STATISTICS = ("mean", "var")
# Second names, in either tower, of what stands above all layers.
_HEAD = ("projection", "ln_post", "ln_final", "pool")
_TRANSFORMER_BLOCKS = ("transformer", "blocks")
_STAGES = ("stage1", "stage2", "stage3", "stage4")

Frozen = Literal["none", "image", "text"]


def schedule(
  *,
  learning_rate: float,
  num_steps: int,
  warmup_fraction: float,
  warmup_steps: int | None = None,
) -> optax.Schedule:
  """Linear warm-up over some steps, or a fraction of all, then a cosine to zero.

  Raises:
    ValueError: if the warm-up takes all steps.
  """
  if warmup_steps is not None and warmup_steps >= num_steps:
    raise ValueError(
      f"optim.warmup_steps {warmup_steps} leaves none of the {num_steps} steps to learn; "
      "set it lower, or train longer."
    )
  warmup = round(warmup_fraction * num_steps) if warmup_steps is None else warmup_steps
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


def trained(params: Any, frozen: Frozen = "none") -> Any:
  """True for what gradient descent changes: no statistics, and no frozen tower.

  A frozen image tower is LiT's (Zhai et al. 2022); its projection is frozen with it.
  """
  tower = {"none": None, "image": "vision", "text": "text"}[frozen]
  return jax.tree_util.tree_map_with_path(
    lambda path, _: path[0].key != tower and path[-1].key not in STATISTICS, params
  )


def layer_scales(params: Any, decay: float) -> dict:
  """Factors of the learning rate, each a number, or one per layer of a stacked array.

  The projection (or attention pool) and the norm before it have 1, the last of a tower's
  L layers `decay`, its first decay^L, and its embeddings (or stem) decay^(L+1), as in
  BEiT (Bao et al. 2022). A ResNet's layers are its four stages.
  """
  flat: dict[tuple[str, ...], Any] = flatten_dict(params)
  depth = {
    path[0]: x.shape[0] for path, x in flat.items() if path[1:3] == _TRANSFORMER_BLOCKS
  }

  def scale(path: tuple[str, ...], x: Array) -> Any:
    if path[0] not in ("vision", "text") or path[1] in _HEAD:
      return 1.0
    layers = depth.get(path[0], len(_STAGES))
    if path[1:3] == _TRANSFORMER_BLOCKS:
      exponents = layers - jnp.arange(layers)
      return (decay**exponents).reshape(-1, *(1,) * (x.ndim - 1))
    if path[1] in _STAGES:
      return decay ** (layers - _STAGES.index(path[1]))
    return decay ** (layers + 1)

  return unflatten_dict({path: scale(path, x) for path, x in flat.items()})


def optimizer(
  learning_rate: optax.Schedule,
  *,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  weight_decay: float = 0.1,
  clip_norm: float = 0.0,
  layer_decay: float = 1.0,
  frozen: Frozen = "none",
) -> optax.GradientTransformation:
  """AdamW behind an optional bound on the norm of the whole gradient (0 is off).

  It keeps no state for what is not `trained`, and leaves that alone; the gradients of
  such parameters must be zero.
  """
  steps: list[optax.GradientTransformation] = [
    optax.adamw(
      learning_rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mask=decay_mask
    )
  ]
  if clip_norm:
    steps.insert(0, optax.clip_by_global_norm(clip_norm))
  masked = optax.masked(optax.chain(*steps), lambda params: trained(params, frozen))
  if layer_decay == 1.0:
    return masked
  slower = optax.stateless(
    lambda updates, _: jax.tree.map(
      jnp.multiply, updates, layer_scales(updates, layer_decay)
    )
  )
  return optax.chain(masked, slower)
