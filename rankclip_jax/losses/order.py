"""The order of every list, high to low, by whichever sort the hardware does fast.

On NVIDIA GPUs XLA hands a sort to CUB's radix sort only if it has one key and at most one
payload, and only for long lists (H100: from about 2^15 items); on CPU a single uint32
operand sorts several times faster than an argsort. So a similarity becomes an unsigned
key that falls as the similarity rises:

| backend | operands | resolution | longest list |
|---|---|---|---|
| `packed` | one uint32, the index in its low bits | see below | 65536 |
| `payload` | uint32 and a uint16 index | exact float32 | 65536 |
| `short` | uint16 and a uint16 index | 2^-16 | 65536 |
| `exact` | uint32 and an int32 index | exact float32 | any |

Resolutions are fractions of a list's own range, from its lowest to its highest item.
`packed` resolves 2^(ceil(log2 N) - 32), 5e-7 at N = 2048 and 1.5e-5 at 65536, and never
finer than 2^-24. Items closer than the resolution are tied; ties are ordered by index.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt

Backend = Literal["packed", "payload", "short", "exact"]

LONGEST = {"packed": 2**16, "payload": 2**16, "short": 2**16, "exact": 2**31 - 1}
# Up to here ties of packed keys, 2e-6 of a list's range, put a gradient off by 1.5e-6 of
# its norm at a scale of 100 (benchmarks/resolution.py), about as float32's rounding does.
PACKED_LENGTH = 2**13
# A finer grid than float32's own would only number its gaps.
_FLOAT_BITS = 24


def check(backend: Backend, length: int) -> None:
  """Refuses lists whose indices do not fit.

  Raises:
    ValueError: naming the backends that can order `length` items.
  """
  if backend not in LONGEST:
    raise ValueError(f"Unknown order {backend!r}; there are {', '.join(LONGEST)}.")
  if length > LONGEST[backend]:
    able = [name for name, longest in LONGEST.items() if length <= longest]
    raise ValueError(
      f"order={backend!r} has index bits for lists of {LONGEST[backend]}, got a global "
      f"batch of {length}; use order={' or '.join(map(repr, able))}."
    )


def default(length: int) -> Backend:
  """The fastest for lists of this length whose ties cost no accuracy."""
  if length <= PACKED_LENGTH:
    return "packed"
  return "payload" if length <= LONGEST["payload"] else "exact"


def resolution(backend: Backend, length: int) -> float:
  """The width of a tie, as a fraction of the range of a list; 0 is exact."""
  if backend in ("payload", "exact"):
    return 0.0
  return 1.0 / _steps(backend, length)


def arrange(
  reference: Float[Array, "rows length"],
  scores: Float[Array, "rows length"],
  *,
  backend: Backend,
  where: Bool[Array, "rows length"] | None = None,
  gathers: bool = True,
) -> tuple[Int[Array, "rows length"], Float[Array, "rows length"]]:
  """Sorts each row from high to low, ties by index, items not `where` last.

  Args:
    reference: float32; what is sorted by.
    scores: what is brought into that order.
    backend: see the table above.
    where: items that exist.
    gathers: False where moving single numbers costs more than sorting them along, as on
      TPUs, whose compiler makes a sort of every such gather and scatter.

  Returns:
    The indices in order, and the scores at them.
  """
  length = reference.shape[-1]
  check(backend, length)
  index = jax.lax.broadcasted_iota(jnp.uint32, reference.shape, 1)
  bits = _index_bits(length)
  if backend == "packed":
    key = _on_grid(reference, _steps(backend, length), where) << bits | index
    operands = (key,)
  elif backend == "short":
    key = _on_grid(reference, _steps(backend, length), where).astype(jnp.uint16)
    operands = (key, index.astype(jnp.uint16))
  else:
    wide = jnp.int32 if backend == "exact" else jnp.uint16
    operands = (_float_bits(reference, where), index.astype(wide))
  if gathers:  # a radix sort has one key, and is stable
    stable = backend != "packed"
    operands = jax.lax.sort(operands, dimension=1, num_keys=1, is_stable=stable)
  else:  # a stable sort would carry a second index
    operands = jax.lax.sort(
      (*operands, scores), dimension=1, num_keys=len(operands), is_stable=False
    )
  index = operands[0] & (2**bits - 1) if backend == "packed" else operands[1]
  index = index.astype(jnp.int32)
  if gathers:
    return index, jnp.take_along_axis(scores, index, axis=1, mode="clip")
  return index, operands[-1]


def restore(
  x: Float[Array, "rows length"],
  index: Int[Array, "rows length"],
  *,
  gathers: bool = True,
) -> Float[Array, "rows length"]:
  """Undoes what `arrange` did to the scores."""
  if not gathers:
    return jax.lax.sort((index, x), dimension=1, num_keys=1, is_stable=False)[1]
  row = jax.lax.broadcasted_iota(jnp.int32, x.shape, 0)
  return jnp.zeros_like(x).at[row, index].set(x, mode="drop", unique_indices=True)


def top(
  reference: Float[Array, "rows length"],
  k: int,
  *,
  where: Bool[Array, "rows length"] | None = None,
) -> tuple[Int[Array, "rows k"], Bool[Array, "rows length"]]:
  """Indices of the `k` highest items of each row, in order, and which items remain.

  Exact in float32, ties by index, for lists of any length, by `jax.lax.top_k`: without a
  full sort where XLA has a better way, which on GPUs is up to k = 16. Remaining items
  exist.
  """
  reference = _one_zero(reference)
  if where is not None:
    reference = jnp.where(where, reference, -jnp.inf)
  value, index = jax.lax.top_k(reference, k)
  last, last_index = value[:, -1:], index[:, -1:]
  column = jax.lax.broadcasted_iota(jnp.int32, reference.shape, 1)
  remains = (reference < last) | ((reference == last) & (column > last_index))
  return index, remains if where is None else remains & where


def _index_bits(length: int) -> int:
  return max(1, (length - 1).bit_length())


def _steps(backend: Backend, length: int) -> int:
  """Keys are 0 .. steps; one more stands for items that do not exist."""
  bits = 16 if backend == "short" else min(_FLOAT_BITS, 32 - _index_bits(length))
  return 2**bits - 2


def _on_grid(
  reference: Array, steps: int, where: Array | None
) -> UInt[Array, "rows length"]:
  """0 for the highest of a row, `steps` for the lowest, steps + 1 for what is missing."""
  top = jnp.max(reference, 1, keepdims=True, where=where, initial=-jnp.inf)
  low = jnp.min(reference, 1, keepdims=True, where=where, initial=jnp.inf)
  scale = steps / jnp.maximum(top - low, 1e-30)
  key = jnp.clip((top - reference) * scale, 0.0, steps).astype(jnp.uint32)
  return key if where is None else jnp.where(where, key, jnp.uint32(steps + 1))


def _float_bits(reference: Array, where: Array | None) -> UInt[Array, "rows length"]:
  """IEEE 754 bits, rearranged so that they fall as the number rises."""
  bits = jax.lax.bitcast_convert_type(_one_zero(reference), jnp.uint32)
  negative = bits >> 31 == 1
  key = jnp.where(negative, bits, bits ^ jnp.uint32(0x7FFFFFFF))
  return key if where is None else jnp.where(where, key, jnp.uint32(0xFFFFFFFF))


def _one_zero(x: Array) -> Array:
  """-0 and 0 are a tie."""
  return jnp.where(x == 0.0, 0.0, x)
