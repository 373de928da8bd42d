"""Large batches on few devices: a global batch embedded piece by piece, exactly.

A contrastive or ranking loss couples every pair of the batch. Averaging the gradients of
small batches (`optax.MultiSteps`, the usual accumulation) is therefore wrong for it: that
minimises another loss, whose negatives and lists end at a micro-batch. Here only the
towers, which see every row alone, work in pieces; the loss sees all embeddings at once.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from rankclip_jax import sharding

Embed = Callable[[Any, Mapping[str, Array]], tuple[Array, Array]]


def in_pieces(embed: Embed, mesh: Mesh, micro_batches: int) -> Embed:
  """`embed`, computed and differentiated on one micro-batch at a time.

  GradCache (Gao et al. 2021; Pham et al. 2021 for CLIP-like models) as reverse-mode
  differentiation of a scan whose body is rematerialised:

    1. forward, every piece is embedded and nothing but its embeddings is kept;
    2. the caller's loss, of all embeddings, gives their gradient, once;
    3. backward, every piece is embedded again and its embeddings' gradient pulled back
       to the parameters, whose gradient is summed in the scan's carry, in their float32.

  The gradient is that of the whole batch up to the rounding of sums in another order.
  Every piece costs a second forward pass, and one sum of gradients over the devices.

  Args:
    embed: (parameters, arrays [batch, ...] by name) to two embeddings [batch, dim]. Rows
      must not see each other (no batch statistics), nor be drawn at random.
    mesh: over all of whose devices rows are spread.
    micro_batches: into how many pieces every device cuts its own rows.

  Returns:
    A function of the same arguments and results, rows in the same order. It raises
    ValueError for rows that cannot be cut so.
  """

  def embed_in_pieces(params, batch):
    batch_size = jax.tree.leaves(batch)[0].shape[0]
    sharding.check_batch(batch_size, mesh, micro_batches=micro_batches)
    # The scan keeps the two passes apart; checkpoint's own barriers would only cost.
    body = jax.checkpoint(embed, prevent_cse=False)
    pieces = jax.tree.map(lambda x: split(x, mesh, micro_batches), batch)
    embeddings = jax.lax.map(lambda piece: body(params, piece), pieces)
    return jax.tree.map(lambda x: join(x, mesh), embeddings)

  return embed_in_pieces


def split(x: Array, mesh: Mesh, micro_batches: int) -> Array:
  """[batch, ...] to [micro_batches, batch / micro_batches, ...]; no row changes device.

  A plain reshape would hand the first piece the rows of the first devices, and so send
  the pictures around.
  """
  rows = x.shape[1:]
  own = x.reshape(mesh.size, micro_batches, -1, *rows)
  pieces = _pin(own, mesh, sharding.BATCH_AXES).swapaxes(0, 1)
  pieces = _pin(pieces, mesh, None, sharding.BATCH_AXES)
  return _pin(pieces.reshape(micro_batches, -1, *rows), mesh, None, sharding.BATCH_AXES)


def join(x: Array, mesh: Mesh) -> Array:
  """The inverse of `split`: pieces back to [batch, ...] in the original order."""
  micro_batches, _, *rows = x.shape
  pieces = x.reshape(micro_batches, mesh.size, -1, *rows)
  own = _pin(pieces, mesh, None, sharding.BATCH_AXES).swapaxes(0, 1)
  own = _pin(own, mesh, sharding.BATCH_AXES)
  return _pin(own.reshape(-1, *rows), mesh, sharding.BATCH_AXES)


def _pin(x: Array, mesh: Mesh, *axes: Any) -> Array:
  return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P(*axes)))
