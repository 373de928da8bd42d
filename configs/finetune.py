"""Fine-tuning of weights from anywhere with the ranking objective.

    python main.py --config=configs/finetune.py:full,rankclip --workdir=runs/tuned \\
      --config.init.weights=PATH

PATH is a workdir, an export, or a checkpoint of OpenAI's CLIP, open_clip, transformers or
RankCLIP. The data is OpenMoji; your own takes --config.data.source=csv and the files
--config.data.train=PATH and --config.data.test=PATH.
After the colon: a recipe, and an objective of `rankclip_jax.losses.objective.PRESETS`.
The ramp begins with the contrastive loss alone; the ranking terms reach their full weight
after two thirds of the steps.

full (the default): everything, at one rate. The numbers are FLYP's for small data sets
  (Goyal et al. 2023, which also goes on with the contrastive loss; its README: learning
  rate 1e-5, weight decay 0.2, batch 256, 20 epochs).
layerwise: every layer at 0.6 times the rate of the one above, from 7.5e-5. FT-CLIP's for
  ViT-B/16 on ImageNet (Dong et al. 2022, its script: decay 0.6, 6e-4 at batch 2048, a
  fifth of warm-up, weight decay 0.05; ViT-L/14 has 0.65 and 4e-4); that it classifies and
  that we scale its rate linearly to batch 256 makes this a starting point, not a copy.
lit: the image tower is frozen (LiT, Zhai et al. 2022), the rest as in `full`. LiT itself
  (big_vision's lit_coco.py) has 1e-3, because its text tower has never seen a picture;
  --config.optim.learning_rate=1e-3 asks for that.

The tenth of warm-up of `full` and `lit` is ours. Useful beside:
--config.init.temperature=new starts from the objective's temperature, not the loaded one;
--config.model.batch_norm=frozen keeps a ResNet's statistics;
--config.optim.micro_batches=8 needs less memory (vision transformers);
--config.model.dtype=bfloat16 is faster on GPUs and TPUs.
"""

import dataclasses

import ml_collections

from rankclip_jax import config
from rankclip_jax.losses import objective

_FULL = config.OptimConfig(
  epochs=20, learning_rate=1e-5, warmup_fraction=0.1, weight_decay=0.2
)
RECIPES = {
  "full": _FULL,
  "layerwise": dataclasses.replace(
    _FULL,
    learning_rate=6e-4 * 256 / 2048,
    warmup_fraction=0.2,
    weight_decay=0.05,
    layer_decay=0.6,
  ),
  "lit": dataclasses.replace(_FULL, frozen="image"),
}


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """See above."""
  chosen = config.variants(arg, recipe=tuple(RECIPES), objective=tuple(objective.PRESETS))
  return config.to_config_dict(
    config.Config(
      data=config.DataConfig(source="openmoji", batch_size=256, holdout=500),
      model=config.ModelConfig(name="loaded", dtype="float32"),
      init=config.InitConfig(temperature="loaded"),
      objective=config.ObjectiveConfig(name=chosen["objective"] or "rankclip"),
      optim=RECIPES[chosen["recipe"] or "full"],
      eval=config.EvalConfig(every_epochs=5),
    )
  )
