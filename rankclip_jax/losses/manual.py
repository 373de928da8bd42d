"""Inside `jax.shard_map`: which arrays may differ between devices."""

from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import jax
from jaxtyping import Array


def axes_of(x: Array) -> frozenset[Any]:
  """Mesh axes over which `x` may differ; empty outside of `shard_map`."""
  return jax.typeof(x).manual_axis_type.varying


def check_spread(image: Array, text: Array, axis_name: Hashable | Sequence) -> None:
  """Refuses embeddings that may not differ over every one of some mesh axes.

  Raises:
    ValueError: naming the axes.
  """
  axes = axis_name if isinstance(axis_name, tuple | list) else (axis_name,)
  known = axes_of(image) & axes_of(text)
  if missing := [axis for axis in axes if axis not in known]:
    raise ValueError(
      f"image and text must be spread over the mesh axes {tuple(axes)}, got arrays that "
      f"jax.shard_map takes for the same all along {tuple(missing)}: a gradient taken "
      "outside of it would be too small by that number of devices. Leave its check_vma "
      "at True, and spread the rows over these axes in its in_specs."
    )


def varying(tree: Any, axes: Iterable) -> Any:
  """The same arrays, typed as differing over `axes`: gradients by them stay local."""

  def cast(x):
    missing = tuple(a for a in axes if a not in axes_of(x))
    return jax.lax.pcast(x, missing, to="varying") if missing else x

  return jax.tree.map(cast, tree)
