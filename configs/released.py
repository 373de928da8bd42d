"""RankCLIP's released hyper-parameters, on any CSV of pictures and captions.

    python main.py --config=configs/released.py:rn50,rankclip --workdir=runs/mine \\
      --config.data.train=train.csv --config.data.test=val.csv

After the colon: a model (rn50, vit_b32, the default, or vit_b16) and an objective, any
name of `rankclip_jax.losses.objective.PRESETS`; every objective gets the same numbers.
`cc3m.py`, `cc12m.py` and `yfcc15m.py` are this, and say what is known of runs on them.

Marks: [P] printed in the paper (arXiv 2404.09387; ICCV 2025), [C] read in the released
code (GitHub Jam1ezhang/RankCLIP), [?] second-hand or inferred.

- [C] AdamW, learning rate 5e-4, betas 0.9 and 0.999, epsilon 1e-8; weight decay 0.1, none
  on biases, norms and the temperature; 10,000 steps of warm-up, then a cosine to 0; 64
  epochs; no bound on gradients.
- [C] 224 pixels, bicubic resize and centre crop, no augmentation; 77 tokens; 8 workers
  that read.
- [C] The global batch is 128 by default and 64 in train.sh; scripts in the same account's
  fork of CyCLIP say 128 or 512. Which batch, epochs and hardware made the printed tables
  was not found. The length of the ranked lists is the batch, so it matters: set
  --config.data.batch_size, and compare only runs of one batch size.
- [C] RN50 (the default there) and ViT-B/32 are among its models, ViT-B/16 is not.
- Ours: bfloat16 arithmetic, and the ramp by steps (`rankclip_released` has it by epochs).
"""

import ml_collections

from rankclip_jax import config
from rankclip_jax.losses import objective

MODELS = {"rn50": "RN50", "vit_b32": "ViT-B-32", "vit_b16": "ViT-B-16"}


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """See above."""
  chosen = config.variants(arg, model=tuple(MODELS), objective=tuple(objective.PRESETS))
  return config.to_config_dict(
    config.Config(
      data=config.DataConfig(source="csv", batch_size=128, num_threads=8),
      model=config.ModelConfig(name=MODELS[chosen["model"] or "vit_b32"]),
      objective=config.ObjectiveConfig(name=chosen["objective"] or "rankclip"),
      optim=config.OptimConfig(
        epochs=64,
        learning_rate=5e-4,
        warmup_steps=10_000,
        b1=0.9,
        b2=0.999,
        eps=1e-8,
        weight_decay=0.1,
      ),
    )
  )
