"""RankCLIP on OpenMoji: 3,737 emoji and their names, offline, in minutes on a laptop.

`--config=configs/openmoji.py:clip` trains the baseline; any name of
`rankclip_jax.losses.objective.PRESETS` may follow the colon.
"""

import ml_collections

from rankclip_jax import config
from rankclip_jax.losses import objective


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """The run of the README."""
  chosen = config.variants(arg, objective=tuple(objective.PRESETS))
  return config.to_config_dict(
    config.Config(
      data=config.DataConfig(source="openmoji", batch_size=256, holdout=500),
      model=config.ModelConfig(name="tiny", dtype="float32"),
      objective=config.ObjectiveConfig(name=chosen["objective"] or "rankclip"),
      optim=config.OptimConfig(epochs=20, learning_rate=1e-3),
      eval=config.EvalConfig(every_epochs=5),
      checkpoint=config.CheckpointConfig(every_minutes=1.0),
    )
  )
