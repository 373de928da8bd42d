import importlib.util
import json
import pathlib
import re

import hypothesis
import pytest
import tensorflow_datasets as tfds
from hypothesis import strategies as st

from rankclip_jax.data.benchmarks import prompts
from rankclip_jax.data.benchmarks.table import BENCHMARKS

NAMED = [one for one in BENCHMARKS.values() if one.names]
# TFDS learns these from what it downloads.
FROM_DATA = {"vtab/cifar10": 10, "vtab/cifar100": 100, "stl10": 10}
DIGITS = (
  "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine",
)  # fmt: skip
# Where a name is not its label with spaces; labels as TFDS has them.
OTHERWISE = {
  "vtab/caltech101": {
    "airplanes": "airplane",
    "background_google": "background",
    "car_side": "side of a car",
    "cougar_body": "body of a cougar cat",
    "cougar_face": "face of a cougar cat",
    "crocodile_head": "head of a crocodile",
    "faces": "off-center face",
    "faces_easy": "centered face",
    "flamingo_head": "head of a flamingo",
    "leopards": "leopard",
    "motorbikes": "motorbike",
    "snoopy": "snoopy (cartoon beagle)",
    "yin_yang": "yin and yang symbol",
  },
  "vtab/flowers": {
    "pink-yellow dahlia?": "pink and yellow dahlia",
    "ball moss": "air plant",
  },
}


def spelled(text):
  return re.sub("[^a-z0-9]", "", text.lower())


@pytest.mark.parametrize("one", [o for o in NAMED if o.tfds], ids=lambda o: o.name)
def test_classes_stand_in_the_order_of_tfds(one, tmp_path):
  name, _, config = one.tfds.partition("/")
  builder = tfds.builder_cls(name)(data_dir=tmp_path, config=config or None)
  feature = builder.info.features[one.label]
  classes = prompts.classes_of(one)
  if one.name in FROM_DATA:
    assert feature.num_classes == len(classes) == FROM_DATA[one.name]
  elif one.subset:
    assert len(classes) == 200
    places = [feature.names.index(label) for label in classes.labels]
    assert places == sorted(places)
  else:
    assert list(classes.labels) == list(feature.names)


@pytest.mark.parametrize("one", NAMED, ids=lambda o: o.name)
def test_names_stand_beside_their_labels(one):
  classes = prompts.classes_of(one)
  if one.names == "imagenet1k":
    assert all(re.fullmatch(r"n\d{8}", label) for label in classes.labels)
    assert list(classes.labels) == sorted(classes.labels)  # as torchvision numbers them
    return
  pairs = dict(zip(classes.labels, classes.names, strict=True))
  if one.name == "vtab/svhn":
    assert pairs == dict(zip("0123456789", DIGITS, strict=True))
    return
  other = {a: b for a, b in pairs.items() if spelled(a) != spelled(b)}
  assert other == OTHERWISE.get(one.name, {})


def test_imagenet_names_are_those_of_open_clip():
  spec = importlib.util.find_spec("open_clip")
  path = pathlib.Path(spec.submodule_search_locations[0]) / "zero_shot_metadata.py"
  spec = importlib.util.spec_from_file_location("zero_shot_metadata", path)
  theirs = importlib.util.module_from_spec(spec)  # without open_clip's own imports
  spec.loader.exec_module(theirs)
  one = BENCHMARKS["imagenet1k"]
  assert list(prompts.classes_of(one).names) == list(theirs.IMAGENET_CLASSNAMES)
  made = [template("{c}") for template in theirs.OPENAI_IMAGENET_TEMPLATES]
  assert list(prompts.templates_of(one)) == made


def test_names_and_templates_are_those_of_clip_benchmark():
  spec = importlib.util.find_spec("clip_benchmark")
  if spec is None:
    pytest.skip("clip-benchmark is not installed")
  folder = pathlib.Path(spec.submodule_search_locations[0]) / "datasets"
  names = json.loads((folder / "en_classnames.json").read_text())
  templates = json.loads(
    (folder / "en_zeroshot_classification_templates.json").read_text()
  )
  names["caltech101"] = names["caltech101_vtab"]
  for one in NAMED:
    short = one.name.split("/")[-1]
    wanted = templates.get(short, templates["imagenet1k"])
    assert list(prompts.templates_of(one)) == wanted
    if short in names:
      wanted = [" ".join(name.split()) for name in names[short]]
      assert list(prompts.classes_of(one).names) == wanted
  compared = {one.name.split("/")[-1] for one in NAMED} & set(names)
  assert compared == {"imagenet1k", "caltech101", "flowers", "gtsrb", "pets", "svhn"}


def test_imagenet_a_and_r_have_their_200_classes():
  a, r = (prompts.classes_of(BENCHMARKS[name]) for name in ("imagenet-a", "imagenet-r"))
  whole = prompts.classes_of(BENCHMARKS["imagenet1k"])
  pairs = set(zip(whole.labels, whole.names, strict=True))
  for part in (a, r):
    assert len(set(part.names)) == 200
    assert set(zip(part.labels, part.names, strict=True)) <= pairs
  assert a != r


def write(path, *lines):
  path.write_text("\n".join(lines) + "\n")
  return path


def test_a_user_renames_classes(tmp_path):
  one = BENCHMARKS["vtab/svhn"]
  own = ["nought", *DIGITS[1:]]
  renamed = prompts.classes_of(one, write(tmp_path / "n.txt", *own))
  assert renamed == prompts.Classes(tuple("0123456789"), tuple(own))
  labelled = [f"{i}\t{name}" for i, name in enumerate(own)]
  assert prompts.classes_of(one, write(tmp_path / "n.txt", *labelled)) == renamed
  with pytest.raises(ValueError, match=r"n.txt: expected 10 classes.* got 9"):
    prompts.classes_of(one, write(tmp_path / "n.txt", *own[1:]))
  assert prompts.classes_of(one, write(tmp_path / "n.txt", *labelled[::-1])) == renamed
  message = r"n.txt: .*unknown ones, \['x'\]; missing are \['9'\]"
  with pytest.raises(ValueError, match=message):
    prompts.classes_of(one, write(tmp_path / "n.txt", *labelled[:-1], "x\tnine"))


@pytest.mark.parametrize(
  "lines, message",
  [
    (["cat", "dog", "cat"], r"distinct classes, got 1 more than once: \['cat'\]"),
    (["a\tcat", "a\tdog"], r"distinct classes, got 1 more than once: \['a'\]"),
    (["cat", "", "dog"], "line 2: expected an entry in each line, got none"),
    (["a\tb\tcat"], "line 1: expected NAME or LABEL<TAB>NAME"),
    (["\tcat"], "line 1: expected NAME or LABEL<TAB>NAME"),
    ([""], "line 1: expected an entry"),
  ],
)
def test_bad_names(lines, message, tmp_path):
  with pytest.raises(ValueError, match=f"names.txt.*{message}"):
    prompts.read_classes(write(tmp_path / "names.txt", *lines))


def test_known_duplicates_are_the_only_ones(tmp_path):
  path = write(tmp_path / "names.txt", "missile", "crane", "missile")
  assert len(prompts.read_classes(path, ("missile",))) == 3
  path = write(tmp_path / "names.txt", "missile", "crane", "crane")
  with pytest.raises(ValueError, match="crane"):
    prompts.read_classes(path, ("missile",))


def test_templates(tmp_path):
  path = write(tmp_path / "t.txt", "a {c}.", "{} on a sign")
  assert prompts.read_templates(path) == ("a {c}.", "{} on a sign")
  with pytest.raises(ValueError, match=r"t.txt, line 2: .*\{c\} or \{\}.*'a photo'"):
    prompts.read_templates(write(tmp_path / "t.txt", "a {c}.", "a photo"))
  with pytest.raises(ValueError, match="There is no file .*u.txt"):
    prompts.read_templates(tmp_path / "u.txt")
  (tmp_path / "t.txt").write_bytes(b"caf\xe9 {c}")
  with pytest.raises(ValueError, match="t.txt cannot be read as UTF-8"):
    prompts.read_templates(tmp_path / "t.txt")


texts = st.lists(st.text(max_size=3), max_size=3)


@hypothesis.given(a=st.tuples(texts, texts), b=st.tuples(texts, texts))
def test_fingerprints_are_equal_only_for_equal_things(a, b):
  first, second = (prompts.fingerprint(*pair, {"size": 32}) for pair in (a, b))
  assert (first == second) == (a == b)


def test_fingerprints_know_preprocessing_but_not_the_order_of_its_keys():
  made = [
    prompts.fingerprint(["cat"], ["a {}"], facts)
    for facts in ({"a": 1, "b": [2.5]}, {"b": [2.5], "a": 1}, {"a": 1, "b": [2.0]})
  ]
  assert made[0] == made[1] != made[2]
  assert re.fullmatch("[0-9a-f]{64}", made[0])
