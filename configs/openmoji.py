"""RankCLIP on OpenMoji: 3,737 emoji and their names, offline, in minutes on a laptop.

`--config=configs/openmoji.py:clip` trains the baseline; any name of
`rankclip_jax.losses.objective.PRESETS` may follow the colon. `small` is a short run, of
which studies can have many: `--config=configs/openmoji.py:small,clip`.
"""

import ml_collections

from rankclip_jax import config
from rankclip_jax.losses import objective


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """The run of the README, or the small one."""
  chosen = config.variants(arg, objective=tuple(objective.PRESETS), size=("small",))
  small = chosen["size"] is not None
  return config.to_config_dict(
    config.Config(
      data=config.DataConfig(
        source="openmoji", batch_size=128 if small else 256, holdout=500
      ),
      model=config.ModelConfig(name="tiny", dtype="float32"),
      objective=config.ObjectiveConfig(name=chosen["objective"] or "rankclip"),
      optim=config.OptimConfig(epochs=4 if small else 20, learning_rate=1e-3),
      eval=config.EvalConfig(every_epochs=0 if small else 5),
      checkpoint=config.CheckpointConfig(every_minutes=1.0),
    )
  )
