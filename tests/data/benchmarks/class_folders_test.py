import itertools
import os

import pytest

from rankclip_jax.data.benchmarks.class_folders import ClassFolders
from rankclip_jax.data.benchmarks.prompts import Classes
from tests.data.benchmarks import sets

KNOWN = Classes(("n02", "n01", "n03"), ("house cat", "dog", "emu"))


def items(layout, split="test"):
  source = layout.open(split)
  return [(one.key, one.label, one.image) for one in map(source.__getitem__, range(3))]


@pytest.mark.parametrize(
  "names", [KNOWN.labels, KNOWN.names, ("0", "1", "2"), ("00", "01", "2")]
)
def test_folders_are_called_by_label_name_or_number(names, tmp_path):
  sets.write_class_folders(tmp_path, dict.fromkeys(names, 1))
  found = items(ClassFolders(tmp_path, KNOWN))
  assert found == [
    (f"{name}/{i:03}.png", i, sets.picture(i)) for i, name in enumerate(names)
  ]


def test_unknown_sets_take_their_classes_from_all_splits(tmp_path):
  sets.write_class_folders(tmp_path, {"red_fox": 1, "emu": 2})
  sets.write_class_folders(tmp_path, {"red_fox": 3, "emu": 3}, split="train")
  (tmp_path / "test" / ".DS_Store").write_bytes(b"")
  (tmp_path / "test" / "emu" / ".hidden").write_bytes(b"")
  layout = ClassFolders(tmp_path)
  assert layout.classes == Classes(("emu", "red_fox"), ("emu", "red fox"))
  assert [label for _, label, _ in items(layout)] == [0, 0, 1]
  assert (len(layout.open("train")), layout.has("val")) == (6, False)
  with pytest.raises(IndexError, match="items 0 to 2"):
    layout.open("test")[3]


def test_folders_that_are_numbers_are_sorted_as_such(tmp_path):
  names = [str(i) for i in range(12)]
  sets.write_class_folders(tmp_path, dict.fromkeys(names, 1))
  assert ClassFolders(tmp_path).classes.names == tuple(names)


def test_versions_follow_names_labels_sizes_and_dates(tmp_path):
  sets.write_class_folders(tmp_path, dict.fromkeys(KNOWN.labels, 1))
  seen = []

  def look(classes=KNOWN):
    seen.append(ClassFolders(tmp_path, classes).open("test").versions)

  look()
  look()
  assert seen.pop() == seen[0]
  look(Classes(("n01", "n02", "n03"), ("dog", "house cat", "emu")))
  picture = tmp_path / "test" / "n01" / "001.png"
  os.utime(picture, (1, 1))
  look()
  picture.rename(picture.with_name("000.png"))
  look()
  assert all(a != b for a, b in itertools.combinations(seen, 2))


@pytest.mark.parametrize(
  "counts, message",
  [
    ({"n01": 1, "n02": 1}, r"each of 3 classes.*got 2; .*without a folder \['n03'\]"),
    ({"n01": 1, "n02": 1, "n03": 1, "n04": 1}, r"got 4; unknown are \['n04'\]"),
    ({"0": 1, "1": 1, "3": 1}, "each of 3 classes"),
    ({"0": 1, "1": 1, "01": 1, "2": 1}, "each of 3 classes"),
    ({"n01": 1, "n02": 0, "n03": 1}, r"n02: expected pictures of this class, got none"),
  ],
)
def test_other_classes_than_those_of_the_set(counts, message, tmp_path):
  sets.write_class_folders(tmp_path, counts)
  with pytest.raises(ValueError, match=f"{tmp_path}/test.*{message}"):
    ClassFolders(tmp_path, KNOWN).open("test")


def test_what_is_no_picture_is_an_error(tmp_path):
  sets.write_class_folders(tmp_path, dict.fromkeys(KNOWN.labels, 1))
  layout = ClassFolders(tmp_path, KNOWN)
  note = tmp_path / "test" / "n01" / "note.txt"
  note.write_text("")
  with pytest.raises(ValueError, match=r"n01: expected pictures .*got \['note.txt'\]"):
    layout.open("test")
  note.rename(tmp_path / "test" / "note.txt")
  with pytest.raises(ValueError, match=r"class folders only, got \['note.txt'\]"):
    layout.open("test")


def test_files_that_go_are_an_error(tmp_path):
  sets.write_class_folders(tmp_path, dict.fromkeys(KNOWN.labels, 1))
  source = ClassFolders(tmp_path, KNOWN).open("test")
  (tmp_path / "test" / "n02" / "000.png").unlink()
  with pytest.raises(ValueError, match="n02/000.png cannot be read"):
    source[0]


def test_no_class_at_all_and_one_under_two_names(tmp_path):
  with pytest.raises(ValueError, match=f"{tmp_path}: expected .*got no class folder"):
    ClassFolders(tmp_path)
  sets.write_class_folders(tmp_path, {"red_fox": 1, "red fox": 1})
  with pytest.raises(ValueError, match=r"more than once: \['red fox'\]"):
    ClassFolders(tmp_path)
