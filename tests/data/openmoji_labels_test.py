import itertools
import re

import numpy as np
import pytest

from rankclip_jax.data import openmoji
from rankclip_jax.data import openmoji_labels as labels


@pytest.fixture(scope="module")
def captions():
  return openmoji.emoji_captions()


@pytest.fixture(scope="module")
def held_out_keys():
  return [example.key for example in openmoji.OpenMoji("test", render_size=8)]


@pytest.fixture(scope="module")
def pictures(captions):
  return [picture.tobytes() for picture in openmoji.draw(list(captions), 24)]


@pytest.mark.parametrize(
  "key, expected",
  [
    ("1F44D-1F3FB", "light skin tone"),
    ("1F469-1F3FD-200D-1F52C", "medium skin tone"),
    ("1F44D", None),
    ("1F9D1-1F3FF-200D-1F91D-200D-1F9D1-1F3FF", "dark skin tone"),
    ("1F9D1-1F3FB-200D-1F91D-200D-1F9D1-1F3FF", None),
  ],
)
def test_skin_tone(key, expected):
  assert labels.skin_tone(key) == expected


@pytest.mark.parametrize(
  "key, expected",
  [
    ("1F469-200D-1F52C", "woman"),  # woman scientist
    ("1F93E-1F3FB-200D-2642-FE0F", "man"),  # man playing handball
    ("1F9D1-200D-1F52C", None),  # scientist
    ("1F469-200D-2764-FE0F-200D-1F468", None),  # couple with heart: woman, man
    ("1F468-200D-1F467", None),  # family: man, girl
    ("1F600", None),
  ],
)
def test_gender(key, expected):
  assert labels.gender(key) == expected


@pytest.mark.parametrize(
  "key, expected",
  [
    ("1F468-1F3FB-200D-1F692", "person"),  # a firefighter is no fire engine
    ("1F415-200D-1F9BA", "animal"),  # service dog
    ("1F1EB-1F1F7", "flag"),
    ("1F3F4-E0067-E0062-E0065-E006E-E0067-E007F", "flag"),  # England
    ("1F44D-1F3FB", "hand"),
    ("1F600", "face"),
    ("1F63A", None),  # grinning cat
    ("1F511", None),  # key
  ],
)
def test_kind(key, expected):
  assert labels.kind(key) == expected


def test_no_emoji_is_of_two_kinds():
  for one, other in itertools.combinations(labels.KINDS.values(), 2):
    assert not one & other


def test_skin_tones_agree_with_the_names(captions):
  """Unicode's names are an independent witness of what the code points mean."""
  for key, (name, *_) in captions.items():
    named = set(re.findall(r"(?:medium-)?(?:light|medium|dark) skin tone", name))
    assert labels.skin_tone(key) == (named.pop() if len(named) == 1 else None)


def test_genders_agree_with_the_names(captions):
  for key, (name, *_) in captions.items():
    female = bool(re.search(r"\b(woman|women|mermaid)\b", name))
    male = bool(re.search(r"\b(man|men|merman)\b", name))
    expected = {"woman": (True, False), "man": (False, True)}
    gender = labels.gender(key)
    assert gender is None or (female, male) == expected[gender]


@pytest.mark.parametrize("label_set", labels.label_sets(), ids=lambda s: s.name)
class TestEverySet:
  def test_classes_have_several_held_out_examples(self, label_set, held_out_keys):
    counts = np.bincount(labels.labels_for(label_set, held_out_keys) + 1)
    assert len(counts) == 1 + len(label_set.classes)
    assert counts[1:].min() >= 5

  def test_templates_are_distinct_and_name_the_class(self, label_set):
    assert len(set(label_set.templates)) == len(label_set.templates)
    assert all(template.count("{c}") == 1 for template in label_set.templates)

  def test_pictures_drawn_alike_have_one_label(self, label_set, captions, pictures):
    """Or no model could be right about both."""
    numbers = labels.labels_for(label_set, list(captions))
    label_of_picture = {}
    for picture, label in zip(pictures, numbers, strict=True):
      if label >= 0:
        assert label_of_picture.setdefault(picture, label) == label


def test_labels_for_gives_minus_one_outside_the_set():
  skin_tone = labels.label_sets()[0]
  numbers = labels.labels_for(skin_tone, ["1F44D-1F3FF", "1F600", "1F44D-1F3FB"])
  assert numbers.dtype == np.int32
  assert numbers.tolist() == [4, -1, 0]
