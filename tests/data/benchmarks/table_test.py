import importlib.util
import pathlib
import re

import pytest
import tensorflow_datasets as tfds

from rankclip_jax.data.benchmarks import table
from rankclip_jax.data.benchmarks.table import BENCHMARKS

TFDS = pathlib.Path(importlib.util.find_spec("tensorflow_datasets").origin).parent
# Their code needs TensorFlow to be imported.
FILES = {"coco_captions": "object_detection/coco_captions.py"}
LACKING = {"fgvc_aircraft", "gtsrb", "renderedsst2", "flickr30k"}


def code(name):
  """What TFDS's builder is written in."""
  if name in FILES:
    return (TFDS / FILES[name]).read_text()
  module = tfds.builder_cls(name).__module__
  return pathlib.Path(importlib.util.find_spec(module).origin).read_text()


def test_what_tfds_lacks_is_what_the_installed_one_lacks():
  known = set(tfds.list_builders(with_community_datasets=False))
  public = [one for one in BENCHMARKS.values() if not one.built_in]
  assert {one.name for one in public if not one.tfds} == LACKING
  assert {one.tfds.partition("/")[0] for one in public if one.tfds} <= known
  # What is missing was looked for under each name that it might have.
  spellings = {re.sub("[^a-z0-9]", "", name) for name in known}
  assert not {"fgvcaircraft", "aircraft", "gtsrb"} & spellings
  assert not {"renderedsst2", "flickr30k", "flickr30kcaptions"} & spellings


@pytest.mark.parametrize("name", [one.name for one in BENCHMARKS.values() if one.tfds])
def test_splits_configs_and_labels_are_those_of_tfds(name):
  one = BENCHMARKS[name]
  tfds_name, _, config = one.tfds.partition("/")
  text = code(tfds_name)
  for split in {one.splits.train, one.splits.val, one.splits.test} - {""}:
    spelled = rf"""(["']{split}["']|tfds\.Split\.{split.upper()}\b)"""
    assert re.search(spelled, text), split
  assert re.search(rf"""["']{one.label}["']""", text)
  if config:
    assert config in tfds.builder_cls(tfds_name).builder_configs


def test_known_sets_have_what_their_task_needs():
  assert len(BENCHMARKS) == 27
  for one in BENCHMARKS.values():
    assert (one.metric == "recall") == (one.task == "retrieval")
    if not one.built_in:
      assert one.test_examples
      assert bool(one.names) == bool(one.templates) == (one.task == "classification")
    per_class = {"vtab/pets", "vtab/caltech101", "vtab/flowers", "fgvc_aircraft"}
    assert (one.metric == "mean_per_class_recall") == (one.name in per_class)


@pytest.mark.parametrize(
  "alias, name",
  [
    ("cifar10", "vtab/cifar10"),
    ("wds/vtab/cifar10", "vtab/cifar10"),
    ("wds/cifar10", "vtab/cifar10"),
    ("imagenet2012", "imagenet1k"),
    ("imagenet_v2/topimages", "imagenetv2/top-images"),
    ("tfds/cars196", "cars"),
    ("oxford_iiit_pet", "vtab/pets"),
    ("fashion_mnist", "tfds/fashion_mnist"),
    ("coco_captions", "mscoco_captions"),
    ("CIFAR-10", "vtab/cifar10"),
    ("wds/vtab-cifar10", "vtab/cifar10"),
    ("Stanford_Cars", "cars"),
    ("ImageNet_R", "imagenet-r"),
    ("rendered_sst2", "renderedsst2"),
  ],
)
def test_aliases(alias, name):
  assert table.find(alias).name == name


def test_no_alias_means_two_sets():
  plain = [{table._plain(x) for x in table._aliases(one)} for one in BENCHMARKS.values()]
  assert sum(map(len, plain)) == len(set.union(*plain))


def test_unknown_names_are_refused_with_the_nearest():
  with pytest.raises(ValueError, match="got 'cifar1O'; did you mean .*cifar10"):
    table.find("cifar1O")
