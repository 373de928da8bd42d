"""The weight of the ranking terms (the paper's Fig. 3).

What the figure calls lambda, from 1 to 3, is taken to be the multiplier w of the released
code, which rises over training and stays at 2: w(t) = clip(3 t, 0, 2), t from 0 to 1. The
paper does not say so; it is the one number of that range there is. Here the whole ramp is
scaled, w(t) = lambda clip(1.5 t, 0, 1), so that all runs have the released shape and
differ in the weight alone: 2 is the released objective, and 0 is CLIP. The terms are
weighted by 1/16 besides, as ever (`losses.objective.RANK_WEIGHT`).
"""

from rankclip_jax.studies import Study, Variant, variant_of

VALUES = (1.0, 2.0, 3.0)
_RELEASED = 2.0
_SLOPE = 1.5  # released: slope 3 to a ceiling of 2


def get_study(arg: str | None = None) -> Study:
  """On `arg`, a config such as configs/cc3m.py:rn50; without, built-in data and small."""
  base = arg or "configs/openmoji.py:small"
  rankclip = variant_of(base, "rankclip")
  swept = [
    # The released weight is RankCLIP as other studies have it, and is not run again.
    Variant("rankclip", "RankCLIP", value, rankclip)
    if value == _RELEASED
    else Variant(
      f"rankclip_lambda{value:g}",
      "RankCLIP",
      value,
      rankclip,
      {"objective.ramp_slope": _SLOPE * value, "objective.ramp_ceiling": value},
    )
    for value in VALUES
  ]
  return Study(
    name="lambda",
    x_label="λ, the final weight of the ranking terms (0 is CLIP)",
    variants=[Variant("clip", "CLIP", 0.0, variant_of(base, "clip")), *swept],
  )
