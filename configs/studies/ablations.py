"""The paper's ablations: CLIP, RankCLIP, and RankCLIP with one of its two terms.

RankCLIP^C has only the cross-modal ranking term, RankCLIP^I only the in-modal one.
"""

from rankclip_jax.studies import Study, Variant, variant_of

_NAMES = {
  "clip": "CLIP",
  "rankclip_c": "RankCLIP^C",
  "rankclip_i": "RankCLIP^I",
  "rankclip": "RankCLIP",
}


def get_study(arg: str | None = None) -> Study:
  """On `arg`, a config such as configs/cc3m.py:rn50; without, built-in data and small."""
  base = arg or "configs/openmoji.py:small"
  return Study(
    name="ablations",
    x_label="objective",
    variants=[
      Variant(name, series=shown, x=shown, config=variant_of(base, name))
      for name, shown in _NAMES.items()
    ],
  )
