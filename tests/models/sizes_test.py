"""Sizes by name, what they refuse, and their journey through JSON."""

import dataclasses
import json

import pytest

from rankclip_jax.models import sizes


@pytest.mark.parametrize(
  "name, same",
  [
    ("ViT-B/32", "ViT-B-32"),
    ("ViT-L/14@336px", "ViT-L-14-336"),
    ("ViT-B-32-quickgelu", "ViT-B-32"),
    ("RN50x4", "RN50x4-quickgelu"),
  ],
)
def test_a_size_has_several_spellings(name, same):
  assert sizes.named(name) == sizes.named(same)


def test_suffixes_and_changes_reach_their_fields():
  assert sizes.named("ViT-B-16-gelu").activation == "gelu"
  changed = sizes.named("ViT-B-16", image_size=336, context_length=32, dtype=None)
  assert (changed.vision.grid, changed.context_length) == (21, 32)
  assert changed.dtype == sizes.named("ViT-B-16").dtype


@pytest.mark.parametrize(
  "name, changes, message",
  [
    ("ViT-B-33", {}, r"Unknown model 'ViT-B-33'.*Did you mean ViT-B-32\?"),
    ("ViT-B-32-gelu", {"activation": "quick_gelu"}, "says gelu, .* give one of them"),
    ("nano", {"image_size": 50}, "image_size 50 must be a multiple of patch_size 8.* 48"),
    ("RN50", {"image_size": 100}, "image_size 100 must be a multiple of the stride 32"),
    ("nano", {"dtype": "int8"}, "dtype must be one of float32, .*, got 'int8'"),
    ("nano", {"activation": "relu"}, "activation must be one of gelu, quick_gelu"),
  ],
)
def test_what_makes_no_model_is_refused(name, changes, message):
  with pytest.raises(ValueError, match=message):
    sizes.named(name, **changes)


@pytest.mark.parametrize(
  "make, message",
  [
    (lambda: sizes.TextSize(33, 2, 2), "text width 33 must be a multiple of its 2 heads"),
    (lambda: sizes.ViTSize(16, 8, 33, 2, 2), "vision width 33"),
    (lambda: sizes.ResNetSize(64, (1, 0, 1, 1)), "four stages of at least one block"),
    (lambda: sizes.ResNetSize(64, (1, 1, 1, 1), width=3), "even width|multiple"),
  ],
)
def test_towers_that_do_not_fit_are_refused(make, message):
  with pytest.raises(ValueError, match=message):
    make()


@pytest.mark.parametrize("name", sizes.SIZES)
def test_a_size_survives_json(name):
  size = sizes.SIZES[name]
  assert sizes.from_json(json.loads(json.dumps(dataclasses.asdict(size)))) == size


def test_a_size_knows_its_name():
  assert all(size.name == name for name, size in sizes.SIZES.items())
  size = sizes.named("ViT-B-32-gelu", dtype="bfloat16")
  assert size.name == "ViT-B-32"
  assert sizes.changed(size, image_size=256).name == ""
