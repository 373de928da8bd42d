"""Inside `jax.shard_map`: which arrays may differ between devices."""

from collections.abc import Iterable
from typing import Any

import jax
from jaxtyping import Array


def axes_of(x: Array) -> frozenset[Any]:
  """Mesh axes over which `x` may differ; empty outside of `shard_map`."""
  return jax.typeof(x).manual_axis_type.varying


def varying(tree: Any, axes: Iterable) -> Any:
  """The same arrays, typed as differing over `axes`: gradients by them stay local."""

  def cast(x):
    missing = tuple(a for a in axes if a not in axes_of(x))
    return jax.lax.pcast(x, missing, to="varying") if missing else x

  return jax.tree.map(cast, tree)
