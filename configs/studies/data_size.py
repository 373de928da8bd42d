"""CLIP and RankCLIP on less data (the paper's Fig. 4): nested subsets by one seed.

On the built-in data every size trains for equally many steps, so that sizes differ in how
many different examples are seen, not in how often the model is updated: 100 steps are 4
epochs of all the data and 20 of the smallest part. With another config every size trains
for that config's epochs, as the released code does, on the paper's subsets of CC3M.
"""

from rankclip_jax.studies import Study, Variant, variant_of

ALL = 3237  # of the built-in data, with 500 held out
EPOCHS = {640: 20, 1280: 10}  # times 5 and 10 batches of 128
OF_CC3M = (500_000, 750_000, 1_000_000)
_OBJECTIVES = {"clip": "CLIP", "rankclip": "RankCLIP"}


def get_study(arg: str | None = None) -> Study:
  """On `arg`, a config such as configs/cc3m.py:rn50; without, built-in data and small."""
  base = arg or "configs/openmoji.py:small"
  variants = []
  for name, shown in _OBJECTIVES.items():
    config = variant_of(base, name)
    for size in OF_CC3M if arg else EPOCHS:
      changes = {"data.subset": size}
      if not arg:
        changes["optim.epochs"] = EPOCHS[size]
      variants.append(Variant(f"{name}_of{size}", shown, size, config, changes))
    if not arg:
      variants.append(Variant(name, shown, ALL, config))
  return Study(
    name="data_size", x_label="training examples", variants=variants, log_x=True
  )
