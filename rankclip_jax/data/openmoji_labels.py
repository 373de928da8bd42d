"""Classes of OpenMoji emoji, for zero-shot classification of its held-out pictures.

A class is read off the code points alone, which Unicode assigns; no picture was looked
at and no label guessed. An emoji for which the rule gives no single answer belongs to
no class of the set.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class LabelSet:
  """One way to classify emoji.

  Attributes:
    name: names the set in results, e.g. "skin_tone".
    classes: the class names; a label is an index into them.
    templates: prompts in CLIP_benchmark's form, "{c}" standing for the class name.
    label_of: maps the key of an emoji ("1F44D-1F3FB") to its class name, or to None.
  """

  name: str
  classes: tuple[str, ...]
  templates: tuple[str, ...]
  label_of: Callable[[str], str | None]


def label_sets() -> tuple[LabelSet, ...]:
  """Returns every label set of OpenMoji."""
  return (
    LabelSet(
      name="skin_tone",
      classes=tuple(SKIN_TONES.values()),
      templates=("{c}", "person {c}", "woman {c}", "man {c}", "hand {c}"),
      label_of=skin_tone,
    ),
    LabelSet(
      name="gender",
      classes=("woman", "man"),
      templates=("{c}", "a {c}", "{c} standing", "{c} walking", "{c} teacher"),
      label_of=gender,
    ),
    LabelSet(
      name="kind",
      classes=tuple(KINDS),
      templates=("{c}", "a {c}", "a picture of a {c}", "an emoji of a {c}"),
      label_of=kind,
    ),
  )


def labels_for(label_set: LabelSet, keys: Sequence[str]) -> np.ndarray:
  """Returns int32 [images]: the label of each key, -1 where it is not in the set."""
  index = {name: label for label, name in enumerate(label_set.classes)}
  names = [label_set.label_of(key) for key in keys]
  return np.array([-1 if name is None else index[name] for name in names], np.int32)


# Unicode's emoji modifiers (Fitzpatrick scale), by their CLDR names.
SKIN_TONES = {
  "1F3FB": "light skin tone",
  "1F3FC": "medium-light skin tone",
  "1F3FD": "medium skin tone",
  "1F3FE": "medium-dark skin tone",
  "1F3FF": "dark skin tone",
}


def skin_tone(key: str) -> str | None:
  """The skin tone of an emoji with a modifier; None for two people of two tones."""
  tones = {SKIN_TONES[code] for code in key.split("-") if code in SKIN_TONES}
  return tones.pop() if len(tones) == 1 else None


_WOMAN = {"1F469", "2640"}  # WOMAN, FEMALE SIGN
_MAN = {"1F468", "2642"}  # MAN, MALE SIGN
_CHILDREN = {"1F466", "1F467"}  # BOY, GIRL


def gender(key: str) -> str | None:
  """The gender a sequence spells by WOMAN, MAN or a gender sign.

  None for both in one emoji, for neither, and for families with children. Princesses,
  beards and the like, which have no such code point, are left out as well.
  """
  codes = set(key.split("-"))
  if codes & _CHILDREN or bool(codes & _WOMAN) == bool(codes & _MAN):
    return None
  return "woman" if codes & _WOMAN else "man"


def _codes(ranges: str) -> frozenset[int]:
  """Parses "26F5 1F680..1F688" into the set of those code points."""
  parts = [part.partition("..") for part in ranges.split()]
  return frozenset(
    code
    for first, _, last in parts
    for code in range(int(first, 16), int(last or first, 16) + 1)
  )


# The first code points of each kind, in Unicode's order. They follow the subgroups of
# Unicode's emoji-test.txt; left out is what two kinds could claim (a robot's or a cat's
# grinning face, a shrimp, a selfie, a crossed-out bicycle).
KINDS = {
  # Person, role, activity, sport, fantasy (human shapes only), family.
  "person": _codes(
    "26F9 1F385 1F3C2..1F3C4 1F3C7 1F3CA..1F3CC 1F466..1F478 1F47C 1F481..1F483"
    " 1F486..1F487 1F48F 1F491 1F574..1F575 1F57A 1F645..1F647 1F64B 1F64D..1F64E"
    " 1F6A3 1F6B4..1F6B6 1F6C0 1F6CC 1F926 1F930..1F931 1F934..1F93A 1F93C..1F93E"
    " 1F977 1F9B8..1F9B9 1F9CD..1F9CF 1F9D1..1F9DD 1FAC3..1FAC5"
  ),
  # Open hands, partial hands, single fingers, closed hands, pairs of hands.
  "hand": _codes(
    "261D 270A..270D 1F446..1F450 1F590 1F595..1F596 1F64C 1F64F 1F90C 1F90F"
    " 1F918..1F91F 1F932 1FAF0..1FAF8"
  ),
  # Yellow faces: smiling, affectionate, neutral, sleepy, unwell, concerned, negative.
  "face": _codes(
    "1F47F 1F600..1F637 1F641..1F644 1F910..1F915 1F917 1F920..1F925 1F927..1F92F"
    " 1F970..1F976 1F978..1F97A 1F9D0 1FAE0..1FAE5 1FAE8..1FAEA"
  ),
  # Mammal, bird, amphibian, reptile, fish, insect; no part of an animal, no seafood.
  "animal": _codes(
    "1F400..1F419 1F41B..1F43C 1F981..1F98F 1F992..1F99D 1F99F 1F9A1..1F9A9"
    " 1F9AB..1F9AE 1FAB0..1FAB3 1FABC 1FABF 1FACD..1FACF"
  ),
  # Fruit, vegetable, prepared, Asian, sweet, drink; no dishes or cutlery.
  "food or drink": _codes(
    "2615 1F32D..1F32F 1F345..1F373 1F375..1F37B 1F37F 1F382 1F942..1F943 1F950..1F960"
    " 1F964..1F96F 1F9C0..1F9C1 1F9C3..1F9C9 1F9CB 1FAD0..1FAD5 1FAD8 1FADA..1FADC"
  ),
  # Countries (two regional indicators), subdivisions, other flags.
  "flag": _codes("1F1E6..1F1FF 1F38C 1F3C1 1F3F3..1F3F4 1F6A9"),
  # Transport by ground, water and air.
  "vehicle": _codes(
    "26F5 1F680..1F688 1F68A..1F68E 1F690..1F6A2 1F6A4 1F6B2 1F6EB..1F6EC 1F6F4..1F6F6"
    " 1F6F8 1F6FA..1F6FB"
  ),
  # Buildings and places of worship.
  "building": _codes(
    "26EA 1F3E0..1F3E6 1F3E8..1F3ED 1F3EF..1F3F0 1F54C..1F54D 1F5FC 1F6D5..1F6D6"
  ),
  # Clock faces at the full and the half hour.
  "clock": _codes("1F550..1F567"),
  # Plain circles, squares, diamonds and triangles.
  "shape": _codes("25FD..25FE 26AA..26AB 2B1B..2B1C 1F534..1F53B 1F7E0..1F7EB"),
}


def kind(key: str) -> str | None:
  """What kind of thing an emoji shows, by its first code point (see `KINDS`)."""
  first = int(key.split("-")[0], 16)
  return next((name for name, codes in KINDS.items() if first in codes), None)
