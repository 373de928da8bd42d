import collections
import pickle
import re
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds

from rankclip_jax.data import decoding, openmoji_labels
from rankclip_jax.data.benchmarks import opening, prompts, status
from rankclip_jax.data.benchmarks.items import NotPrepared
from rankclip_jax.data.benchmarks.opening import Options, open_benchmark
from rankclip_jax.data.benchmarks.table import BENCHMARKS
from rankclip_jax.data.source import BadExample
from tests.data import tfds_sets
from tests.data.benchmarks import sets

DIGITS = "0123456789"


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
  """Nothing here may ask for anything from outside."""

  def refuse(*arguments, **keywords):
    raise AssertionError(f"a connection: {arguments}")

  monkeypatch.setattr("socket.socket.connect", refuse)


@pytest.fixture
def where(tmp_path):
  return Options(data_dir=str(tmp_path / "tfds"), folder_dir=str(tmp_path / "folders"))


def prepare(where, name, classes, **splits):
  return sets.prepare_labels(where.data_dir, BENCHMARKS[name].tfds, classes, splits)


def labels(opened):
  """Labels by the number that is drawn into each picture."""
  items = [opened.source[i] for i in range(len(opened.source))]
  numbers = [int(decoding.exact(item)[0, 0, 0]) for item in items]
  return dict(sorted(zip(numbers, (item.label for item in items), strict=True)))


def look(name, where):
  options = {"data_dir": where.data_dir, "folder_dir": where.folder_dir}
  return status.status(BENCHMARKS[name], **options)


def test_tfds_labels_follow_their_names_not_their_order(where):
  folder = prepare(where, "vtab/svhn", DIGITS[::-1], train=DIGITS, test="3790")
  opened = open_benchmark("svhn", options=where)
  assert labels(opened) == {0: 3, 1: 7, 2: 9, 3: 0}
  assert opened.classes[3] == "three"
  assert opened.templates == prompts.templates_of(BENCHMARKS["vtab/svhn"])
  assert (opened.where, opened.complete) == (str(folder), False)
  keys = {opened.source[i].key for i in range(4)}
  assert keys == {"test0", "test1", "test2", "test3"}
  assert opened.source[0].shard == "svhn_cropped/1.0.0"
  assert look("vtab/svhn", where).state == "ready"


def test_imagenet_a_is_evaluated_on_its_classes(where):
  whole = prompts.classes_of(BENCHMARKS["imagenet1k"])
  part = prompts.classes_of(BENCHMARKS["imagenet-a"])
  outside = next(label for label in whole.labels if label not in part.labels)
  prepare(where, "imagenet-a", whole.labels, test=[part.labels[7], outside])
  opened = open_benchmark("imagenet_a", options=where)
  assert len(opened.classes) == 200
  found, errors = [], []
  for i in range(2):
    try:
      found.append(opened.source[i].label)
    except BadExample as error:
      errors.append(str(error))
  assert found == [7]
  message = rf"imagenet_a/1.0.0, example 'test1': .*200 classes.*got '{outside}'"
  assert re.search(message, errors[0])


def test_a_label_that_is_no_class(where):
  prepare(where, "vtab/svhn", DIGITS, test=[-1])
  opened = open_benchmark("svhn", options=where)
  with pytest.raises(BadExample, match="'test0': expected a label of the 10 classes"):
    opened.source[0]


def test_tfds_with_other_classes(where):
  prepare(where, "vtab/svhn", "012345678x", test="1")
  message = r"1.0.0: expected the 10 classes .* missing are \['9'\], unknown \['x'\]"
  with pytest.raises(ValueError, match=message):
    open_benchmark("svhn", options=where)


def test_captions_of_tfds(where):
  features = {
    "image": tfds.features.Image(shape=(5, 7, 3)),
    "image/filename": tfds.features.Text(),
    "captions": tfds.features.Sequence({"text": tfds.features.Text()}),
  }
  texts = [["a cat", "ein Hund"], ["an emu"]]
  rows = [
    {"image/filename": f"{i}.png", "captions": [{"text": t} for t in some]}
    for i, some in enumerate(texts)
  ]
  sets.prepare_tfds(where.data_dir, "coco_captions/2014", features, {"test": rows})
  opened = open_benchmark("mscoco_captions", options=where)
  found = {item.key: item for item in map(opened.source.__getitem__, range(2))}
  captions = {key: item.captions for key, item in found.items()}
  assert captions == {"0.png": ("a cat", "ein Hund"), "1.png": ("an emu",)}
  assert (found["0.png"].label, opened.classes, opened.templates) == (-1, (), ())
  shutil.rmtree(where.data_dir)
  rows[1]["captions"] = [{"text": "an emu"}, {"text": " "}]
  sets.prepare_tfds(where.data_dir, "coco_captions/2014", features, {"test": rows})
  with pytest.raises(ValueError, match="key '1.png': empty caption"):
    open_benchmark("mscoco_captions", options=where)


def test_splits_without_validation(where):
  prepare(where, "vtab/svhn", DIGITS, train=DIGITS + "00", test="3")
  opened = {s: open_benchmark("svhn", s, where) for s in ("train", "val", "trainval")}
  seen = {split: set(labels(one)) for split, one in opened.items()}
  assert seen["train"] | seen["val"] == seen["trainval"] == set(range(12))
  assert not seen["train"] & seen["val"]
  assert len(seen["val"]) == 2
  assert opened["train"].complete is None
  with pytest.raises(IndexError, match="items 0 to 1"):
    opened["val"].source[2]


def test_splits_with_validation(where):
  classes = prompts.classes_of(BENCHMARKS["vtab/dtd"]).labels
  prepare(
    where, "vtab/dtd", classes, train=classes[:3], validation=classes[3:5], test=["woven"]
  )
  opened = {s: open_benchmark("dtd", s, where) for s in ("train", "val", "trainval")}
  assert sorted(labels(opened["train"]).values()) == [0, 1, 2]
  assert sorted(labels(opened["val"]).values()) == [3, 4]
  both = opened["trainval"].source
  assert sorted(both[i].label for i in range(len(both))) == [0, 1, 2, 3, 4]
  with pytest.raises(IndexError, match="items 0 to 4"):
    both[5]


def test_tfds_first_then_tars_then_class_folders(where, tmp_path):
  name, folders = "vtab/svhn", tmp_path / "folders"
  sets.write_class_folders(folders / "vtab-svhn", dict.fromkeys(DIGITS, 1))
  opened = open_benchmark(name, options=where)
  assert opened.where == str(folders / "vtab-svhn")
  assert labels(opened) == {i: i for i in range(10)}
  names = [f"digit {d}" for d in DIGITS]
  tarred = sets.write_tars(
    folders / "wds_vtab-svhn", [sets.labelled(4)], names=names, templates=["the {c}"]
  )
  opened = open_benchmark(name, options=where)
  assert (opened.where, labels(opened)) == (str(tarred), {0: 4})
  assert (opened.classes, opened.templates) == (tuple(names), ("the {c}",))
  assert look(name, where).where == str(tarred)
  prepared = prepare(where, name, DIGITS, test="5")
  opened = open_benchmark(name, options=where)
  assert (opened.where, labels(opened)) == (str(prepared), {0: 5})
  # TFRecords are as good as none.
  tfds_sets.to_tfrecord(prepared)
  assert open_benchmark(name, options=where).where == str(tarred)


def test_tars_of_another_set(where, tmp_path):
  folder = tmp_path / "folders" / "wds_gtsrb"
  sets.write_tars(folder, [sets.labelled(0)], names=["cat", "dog"])
  message = "wds_gtsrb/classnames.txt: expected the 43 classes of gtsrb, got 2"
  with pytest.raises(ValueError, match=message):
    open_benchmark("gtsrb", options=where)


def test_tars_without_templates_take_the_known_ones(where, tmp_path):
  names = prompts.classes_of(BENCHMARKS["gtsrb"]).names
  sets.write_tars(tmp_path / "folders" / "wds_gtsrb", [sets.labelled(42)], names=names)
  opened = open_benchmark("gtsrb", options=where)
  assert opened.templates == prompts.templates_of(BENCHMARKS["gtsrb"])
  assert opened.source[0].label == 42


def test_a_users_own_names_and_templates(where, tmp_path):
  names, templates = tmp_path / "names.txt", tmp_path / "templates.txt"
  names.write_text("".join(f"digit {d}\n" for d in DIGITS))
  templates.write_text("a {}\n")
  own = Options(where.data_dir, where.folder_dir, str(names), str(templates))
  expected = (tuple(f"digit {d}" for d in DIGITS), ("a {}",))
  prepare(where, "vtab/svhn", DIGITS[::-1], test="5")
  opened = open_benchmark("svhn", options=own)
  assert (opened.classes, opened.templates, labels(opened)) == (*expected, {0: 5})
  folder = sets.write_tars(tmp_path / "mine", [sets.labelled(5)], names=DIGITS)
  opened = open_benchmark(str(folder), options=own)
  assert (opened.classes, opened.templates, labels(opened)) == (*expected, {0: 5})
  names.write_text("one\ntwo\n")
  for name in ("svhn", str(folder)):
    with pytest.raises(ValueError, match=r"names.txt: expected .*10 classes.* got 2"):
      open_benchmark(name, options=own)


def test_a_users_own_folders(tmp_path, where):
  folder = sets.write_class_folders(tmp_path / "mine", {"emu": 1, "red_fox": 2})
  opened = open_benchmark(str(folder), options=where)
  assert (opened.benchmark.name, opened.classes) == ("mine", ("emu", "red fox"))
  assert (labels(opened), opened.complete) == ({0: 0, 1: 1, 2: 1}, None)
  folder = sets.write_tars(tmp_path / "own", [sets.captioned("a cat")], kind="retrieval")
  opened = open_benchmark(str(folder), options=where)
  assert (opened.benchmark.task, opened.source[0].captions) == ("retrieval", ("a cat",))
  with pytest.raises(NotPrepared, match=f"own is not there: .*'train' in {folder}.$"):
    open_benchmark(str(folder), "train", where)
  with pytest.raises(ValueError, match="data set of the evaluation, or a folder"):
    open_benchmark(str(tmp_path / "none"), options=where)


def test_names_of_own_folders_follow_their_labels(tmp_path, where):
  folder = sets.write_class_folders(tmp_path / "mine", {"n01": 1, "n02": 2})
  names = tmp_path / "names.txt"
  own = Options(names_file=str(names))
  names.write_text("n02\tdog\nn01\tcat\n")
  opened = open_benchmark(str(folder), options=own)
  assert (opened.classes, labels(opened)) == (("cat", "dog"), {0: 0, 1: 1, 2: 1})
  names.write_text("n02\tdog\nn03\tcat\n")
  message = r"names.txt: .*unknown ones, \['n03'\]; missing are \['n01'\]"
  with pytest.raises(ValueError, match=message):
    open_benchmark(str(folder), options=own)


def test_own_folders_are_what_they_are_and_not_known_sets(tmp_path, where, monkeypatch):
  folder = sets.write_class_folders(tmp_path / "mine" / "stl10", {"cat": 1})
  with pytest.raises(ValueError, match=f"{folder} has the name of the data set stl10"):
    open_benchmark(str(folder), options=where)
  own = folder.rename(tmp_path / "pets")
  monkeypatch.chdir(own)
  for name in (".", "../pets/"):
    opened = open_benchmark(name, options=where)
    assert (opened.benchmark.name, opened.folder) == ("pets", own)
    assert open_benchmark(opened.name, options=where).where == str(own)
  place = tmp_path / "folders" / "vtab-svhn"
  sets.write_class_folders(place, dict.fromkeys(DIGITS, 1))
  opened = open_benchmark(str(place), options=where)
  assert (opened.benchmark.name, opened.classes[3]) == ("vtab/svhn", "three")


def test_paths_are_no_spellings_of_names(tmp_path, monkeypatch):
  with pytest.raises(ValueError, match="or a folder with one, got '/wds/stl10', which"):
    opening.named("/wds/stl10")
  folder = sets.write_class_folders(tmp_path / "vtab" / "pets", {"cat": 1})
  monkeypatch.chdir(tmp_path)
  assert opening.named("vtab/pets")[1] is None
  assert opening.named("./vtab/pets")[1] == folder


def identities(name, where):
  return [open_benchmark(name, s, where).identity for s in ("train", "val", "test")]


def test_a_split_has_another_identity_when_its_data_change(where, tmp_path):
  prepare(where, "vtab/svhn", DIGITS, train=DIGITS, test="3790")
  folder = sets.write_tars(tmp_path / "mine", [sets.labelled(0, 1)], names=("a", "b"))
  before = [*identities("svhn", where), open_benchmark(str(folder)).identity]
  assert len(set(before)) == 4
  assert before[:3] == identities("svhn", where)
  shutil.rmtree(where.data_dir)
  prepare(where, "vtab/svhn", DIGITS, train=DIGITS, test="3791")
  sets.write_tars(folder, [sets.labelled(1, 1)])
  after = [*identities("svhn", where), open_benchmark(str(folder)).identity]
  assert all(old != new for old, new in zip(before, after, strict=True))


@pytest.mark.parametrize(
  "name, state, todo",
  [
    ("cifar10", "downloads", "prepare cifar10 --data_dir=.* --run` downloads and prepar"),
    (
      "imagenet1k",
      "needs files",
      "Put the files into .*ILSVRC2012_img_val.tar.* Or: Put",
    ),
    ("gtsrb", "needs files", "Put the folder .* at .*/folders/wds_gtsrb: classnames.txt"),
    ("flickr30k", "needs files", "/folders/wds_flickr30k: dataset_type.txt, test/nshard"),
    ("mscoco_captions", "downloads", "prepare coco_captions .*TensorFlow"),
  ],
)
def test_what_is_not_there_says_what_to_do(name, state, todo, where):
  with pytest.raises(NotPrepared, match=f" is not there: .*{todo}") as caught:
    open_benchmark(name, options=where)
  found = look(caught.value.name, where)
  assert (found.state, found.todo) == (state, caught.value.todo)
  copy = pickle.loads(pickle.dumps(caught.value))
  assert (str(copy), copy.todo) == (str(caught.value), caught.value.todo)


def test_tfrecords_are_to_be_converted(where):
  tfds_sets.to_tfrecord(prepare(where, "vtab/svhn", DIGITS, test="5"))
  with pytest.raises(NotPrepared, match="--run` writes it again as ArrayRecord"):
    open_benchmark("svhn", options=where)
  assert look("vtab/svhn", where).state == "convert"


def test_a_missing_split_is_not_prepared(where):
  prepare(where, "vtab/svhn", DIGITS, train="5")
  with pytest.raises(NotPrepared, match="no split 'test' in .*svhn_cropped/1.0.0. Put"):
    open_benchmark("svhn", options=where)


@pytest.mark.parametrize("lost", ["data", "features", "info"])
def test_half_prepared_sets_are_errors(lost, where):
  folder = prepare(where, "vtab/svhn", DIGITS, test="5")
  names = {"features": "features.json", "info": "dataset_info.json"}
  for path in folder.glob(names.get(lost, "*array_record*")):
    if lost == "info":
      path.write_text("{")
    else:
      path.unlink()
  with pytest.raises(ValueError, match=f"{folder}.*prepare it again") as caught:
    open_benchmark("svhn", options=where)
  assert not isinstance(caught.value, NotPrepared)
  assert look("vtab/svhn", where).state == ("ready" if lost == "data" else "damaged")


def test_a_damaged_folder_is_an_error_though_class_folders_are_there(where, tmp_path):
  folders = tmp_path / "folders"
  sets.write_class_folders(folders / "vtab-svhn", dict.fromkeys(DIGITS, 1))
  folder = sets.write_tars(folders / "wds_vtab-svhn", [sets.labelled(5)], names=DIGITS)
  (folder / "test" / "0.tar").unlink()
  message = r"nshards.txt: .*missing are \['0.tar'\]"
  with pytest.raises(ValueError, match=message):
    open_benchmark("svhn", options=where)
  found = look("vtab/svhn", where)
  assert found.state == "damaged"
  assert re.search(message, found.todo)


def test_the_built_in_set(where):
  opened = open_benchmark("openmoji", options=Options(holdout=60))
  assert (len(opened.source), opened.classes, opened.complete) == (60, (), None)
  assert opened.source[0].captions
  assert look("openmoji", where).state == "ready"
  keys = [opened.source[i].key for i in range(60)]
  kinds = open_benchmark("openmoji/kind", options=Options(holdout=60))
  expected = {key: openmoji_labels.kind(key) for key in keys if openmoji_labels.kind(key)}
  items = [kinds.source[i] for i in range(len(kinds.source))]
  assert {item.key: kinds.classes[item.label] for item in items} == expected
  assert kinds.templates == ("{c}", "a {c}", "a picture of a {c}", "an emoji of a {c}")
  assert isinstance(items[0].image, np.ndarray)
  assert collections.Counter(item.captions for item in items) == {(): len(items)}
  with pytest.raises(IndexError):
    kinds.source[len(items)]
