"""Many runs for one figure: `python -m rankclip_jax.studies`, docs/evaluation.md."""

from rankclip_jax.studies.study import (
  RANKING,
  RETRIEVAL,
  Metric,
  Study,
  Variant,
  variant_of,
)

__all__ = ["RANKING", "RETRIEVAL", "Metric", "Study", "Variant", "variant_of"]
