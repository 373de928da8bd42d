"""One step of training as a pure function, and the same compiled for a mesh."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, PRNGKeyArray

from rankclip_jax import accumulate, optim, sharding
from rankclip_jax.losses import blocked
from rankclip_jax.losses import objective as objectives
from rankclip_jax.models import layers, two_tower
from rankclip_jax.plan import Plan
from rankclip_jax.state import TrainState, abstract


def global_loss(
  objective: objectives.Objective,
  mesh: Mesh,
  image: Array,
  text: Array,
  *,
  log_scale: Array,
  bias: Array | None,
  rank_weight: Array,
  tie_key: PRNGKeyArray,
  ids: Array | None = None,
  blocking: blocked.Blocking = blocked.AUTOMATIC,
) -> tuple[Array, dict[str, Array]]:
  """`blocked.evaluate` over embeddings [batch, dim] spread over the mesh.

  Every device gathers the embeddings once and computes the rows of the similarity
  matrices that belong to its own examples, some at a time.
  """
  rows, whole = P(sharding.BATCH_AXES), P()

  def local(image, text, ids, log_scale, bias, rank_weight, tie_key):
    return blocked.evaluate(
      objective,
      image,
      text,
      log_scale=log_scale,
      bias=bias,
      rank_weight=rank_weight,
      tie_key=tie_key,
      ids=ids,
      axis_name=sharding.BATCH_AXES,
      blocking=blocking,
      platform=mesh.devices.flat[0].platform,
    )

  return jax.shard_map(
    local, mesh=mesh, in_specs=(*(rows,) * 3, *(whole,) * 4), out_specs=(whole, whole)
  )(image, text, ids, log_scale, bias, rank_weight, tie_key)


def train_step(
  state: TrainState,
  batch: Mapping[str, Array],
  *,
  graph: nnx.GraphDef,
  objective: objectives.Objective,
  optimizer: optax.GradientTransformation,
  learning_rate: optax.Schedule,
  mesh: Mesh,
  num_steps: int,
  epoch_steps: int,
  frozen: optim.Frozen = "none",
  batch_norm_groups: int = 1,
  micro_batches: int = 1,
  blocking: blocked.Blocking = blocked.AUTOMATIC,
) -> tuple[TrainState, dict[str, Array]]:
  """One step of gradient descent on one global batch.

  Args:
    state: before the step.
    batch: "image" uint8 [batch, size, size, 3] and "tokens" int32 [batch, length];
      perhaps "same" int32 [batch, kinds], the `ids` of `plain.evaluate`.
    frozen: the tower that does not learn; nothing is computed for its gradient.
    batch_norm_groups: of `resnet.BatchNorm`; 0 leaves the running statistics alone.
    micro_batches: pieces in which the towers work through the batch, see `accumulate`;
      the loss is always of the whole batch.
    blocking: how the loss is cut.

  Returns:
    The state after the step, and the step's metrics by name.

  Raises:
    ValueError: if the rows of a device do not divide by `micro_batches`.
  """
  rank_weight = objectives.rank_weight(
    objective, state.step, num_steps=num_steps, epoch_steps=epoch_steps
  )
  tie_key = jax.random.fold_in(jax.random.wrap_key_data(state.rng), state.step)

  def embed(params, batch, groups):
    model = nnx.merge(graph, params)
    layers.gather_blocks(model, sharding.gather(mesh))
    image = model.encode_image(batch["image"], groups)
    return (image, model.encode_text(batch["tokens"])), two_tower.statistics_of(model)

  def embed_all(params):
    if micro_batches == 1:
      return embed(params, batch, batch_norm_groups)
    # `plan.make` has seen to it that no statistics of the batch are asked for.
    rows = lambda params, batch: embed(params, batch, 0)[0]
    return accumulate.in_pieces(rows, mesh, micro_batches)(params, batch), {}

  def loss_of(params):
    learns = optim.trained(params, frozen)
    still = jax.tree.map(
      lambda x, learns: x if learns else jax.lax.stop_gradient(x), params, learns
    )
    (image, text), statistics = embed_all(still)
    loss, terms = global_loss(
      objective,
      mesh,
      image,
      text,
      log_scale=params["logit_scale"],
      bias=params.get("logit_bias"),
      rank_weight=rank_weight,
      tie_key=tie_key,
      ids=batch.get("same"),
      blocking=blocking,
    )
    return loss, (terms, statistics)

  grad_of = jax.value_and_grad(loss_of, has_aux=True)
  (loss, (terms, statistics)), grads = grad_of(state.params)
  updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  params: Any = optax.apply_updates(state.params, updates)
  params = _replace(params, statistics)
  params["logit_scale"] = jnp.clip(params["logit_scale"], *objective.log_scale_range)
  numbers = {
    "train/loss": loss,
    **{f"train/{name}": value for name, value in terms.items()},
    "lr": jnp.asarray(learning_rate(state.step)),
    "logit_scale": jnp.exp(state.params["logit_scale"]),
    "grad_norm": optax.tree.norm(grads),
    "update_norm": optax.tree.norm(updates),
  }
  after = TrainState(state.step + 1, params, opt_state, state.rng)
  return after, numbers


def _replace(params: Mapping[str, Any], part: Mapping[str, Any]) -> dict[str, Any]:
  return unflatten_dict({**flatten_dict(params), **flatten_dict(part)})


def compile_step(p: Plan) -> Callable[[TrainState, Mapping[str, Array]], Any]:
  """`train_step` for a plan: jitted, sharded, and the old state's memory given back."""
  graph, _ = two_tower.abstract(p.size, with_bias=p.objective.has_bias)
  shapes = abstract(p.size, p.objective, p.optimizer, p.mesh)
  shardings = jax.tree.map(lambda x: x.sharding, shapes)
  step = functools.partial(
    train_step,
    graph=graph,
    objective=p.objective,
    optimizer=p.optimizer,
    learning_rate=p.learning_rate,
    mesh=p.mesh,
    num_steps=p.num_steps,
    epoch_steps=p.epoch_steps,
    frozen=p.frozen,
    batch_norm_groups=p.batch_norm_groups,
    micro_batches=p.micro_batches,
    blocking=p.blocking,
  )
  return jax.jit(
    step,
    in_shardings=(shardings, sharding.over_batch(p.mesh)),
    out_shardings=(shardings, sharding.replicated(p.mesh)),
    donate_argnums=0,
  )
