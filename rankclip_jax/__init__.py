"""RankCLIP in JAX. `load` a model, whoever trained it, and use it: docs/use.md."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from rankclip_jax.inference import Model, load

__all__ = ["Model", "load"]


def __getattr__(name: str) -> Any:
  """`load` and `Model` when asked for: the rooms without jax must not import it."""
  if name not in __all__:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  from rankclip_jax import inference

  return getattr(inference, name)
