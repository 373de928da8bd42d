import os
import re

import numpy as np
import pytest

from rankclip_jax.data import decoding
from rankclip_jax.data.benchmarks.items import Item
from rankclip_jax.data.benchmarks.tar_layout import TarLayout
from rankclip_jax.data.source import BadExample
from tests.data import tars
from tests.data.benchmarks import sets

NAMES = ("cat", "dog", "emu")


def written(folder, *shards, **options):
  options = {"names": NAMES, "templates": ("a {c}.",)} | options
  return sets.write_tars(folder, shards, **options)


def retrieval(folder, members):
  return sets.write_tars(folder, [members], kind="retrieval")


def test_reads_every_sample_of_all_tars(tmp_path):
  shards = (sets.labelled(2, 0), sets.labelled(1, start=2))
  layout = TarLayout(written(tmp_path, *shards), "classification")
  assert layout.classes.names == NAMES
  assert layout.templates() == ("a {c}.",)
  assert (layout.has("test"), layout.has("train")) == (True, False)
  source = layout.open("test")
  found = [source[i] for i in range(len(source))]
  assert [(one.key, one.label) for one in found] == [
    ("s0000000", 2),
    ("s0000001", 0),
    ("s0000002", 1),
  ]
  assert [one.shard.rpartition("/")[2] for one in found] == ["0.tar", "0.tar", "1.tar"]
  for number, one in enumerate(found):
    assert one.captions == ()
    assert np.array_equal(np.unique(decoding.exact(one)), [number])
  for outside in (-1, 3):
    with pytest.raises(IndexError, match="items 0 to 2"):
      source[outside]


def test_captions_are_lines(tmp_path):
  members = sets.captioned("ein Hund\nübung", "a cat\n")
  source = TarLayout(retrieval(tmp_path, members), "retrieval").open("test")
  path = str(tmp_path / "test" / "0.tar")
  first = Item("s0000000", sets.picture(0), ("ein Hund", "übung"), path)
  assert [source[0], source[1].captions] == [first, ("a cat",)]
  assert source[0].label == -1


def test_a_missing_file_of_templates_is_no_error(tmp_path):
  folder = written(tmp_path, sets.labelled(0), templates=())
  assert TarLayout(folder, "classification").templates() == ()


@pytest.mark.parametrize(
  "text, message",
  [
    (None, r"0.tar, sample 's0000001': expected a label in .cls, got none"),
    (b"3", r"0.tar, sample 's0000001': expected a label from 0 to 2 in .cls, got b'3'"),
    (b"-1", r"sample 's0000001': expected a label from 0 to 2"),
    (b"cat", r"sample 's0000001': expected a label from 0 to 2 in .cls, got b'cat'"),
  ],
)
def test_bad_labels(text, message, tmp_path):
  members = sets.labelled(2, 0)
  del members["s0000001.cls"]
  if text is not None:
    members["s0000001.cls"] = text
  layout = TarLayout(written(tmp_path, members), "classification")
  with pytest.raises(BadExample, match=message) as caught:
    layout.open("test")
  assert caught.value.key == "s0000001"


@pytest.mark.parametrize(
  "text, message",
  [
    (None, "expected captions in .txt, got none"),
    (b"", r"expected a caption in each line of .txt, got \(\)"),
    (b"a cat\n \na dog", "expected a caption in each line"),
    (b"caf\xe9", "expected captions in UTF-8"),
  ],
)
def test_bad_captions(text, message, tmp_path):
  members = sets.captioned("a cat", "a dog")
  del members["s0000001.txt"]
  if text is not None:
    members["s0000001.txt"] = text
  layout = TarLayout(retrieval(tmp_path, members), "retrieval")
  with pytest.raises(BadExample, match=rf"0.tar, sample 's0000001': {message}"):
    layout.open("test")


def test_missing_empty_and_double_pictures(tmp_path):
  members = sets.labelled(2, 0)
  for content, message in ((None, "got none of a known kind"), (b"", "got no bytes")):
    left = {k: v for k, v in members.items() if k != "s0000001.webp"}
    if content is not None:
      left["s0000001.webp"] = content
    layout = TarLayout(written(tmp_path, left), "classification")
    with pytest.raises(BadExample, match=f"'s0000001': expected a picture, {message}"):
      layout.open("test")
  folder = written(tmp_path, members)
  double = [*members.items(), ("s0000000.webp", sets.picture(7))]
  (folder / "test" / "0.tar").write_bytes(tars.tar(double))
  with pytest.raises(BadExample, match="'s0000000': expected one sample of each key"):
    TarLayout(folder, "classification").open("test")


def test_an_unreadable_picture_is_an_error_when_it_is_decoded(tmp_path):
  members = sets.labelled(2, 0) | {"s0000001.webp": b"no picture"}
  source = TarLayout(written(tmp_path, members), "classification").open("test")
  decoding.exact(source[0])
  with pytest.raises(BadExample, match=r"'s0000001' of .*0.tar cannot be used"):
    decoding.exact(source[1])


@pytest.mark.parametrize("length", [300, 1200, 2600])
def test_damaged_tars(length, tmp_path):
  folder = written(tmp_path, sets.labelled(2, 0))
  os.truncate(folder / "test" / "0.tar", length)
  with pytest.raises(ValueError, match=r"test/0.tar.*fetch"):
    TarLayout(folder, "classification").open("test")


def test_tars_that_change_while_they_are_read(tmp_path):
  folder = written(tmp_path, sets.labelled(2, 0))
  source = TarLayout(folder, "classification").open("test")
  (folder / "test" / "0.tar").write_bytes(tars.tar(sets.labelled(2)))
  with pytest.raises(ValueError, match="0.tar has changed"):
    source[0]


@pytest.mark.parametrize(
  "text, message",
  [
    ("3", r"expected 3 tars .* got 2; missing are \['2.tar'\], beyond it \[\]"),
    ("1", r"expected 1 tars .* got 2; missing are \[\], beyond it \['1.tar'\]"),
    ("0", "expected 0 tars"),
    ("two", "expected the number of tars"),
    (None, "expected the number of tars"),
  ],
)
def test_nshards_must_agree_with_the_tars(text, message, tmp_path):
  folder = written(tmp_path, sets.labelled(2), sets.labelled(0, start=1))
  path = folder / "test" / "nshards.txt"
  path.unlink()
  if text is not None:
    path.write_text(text)
  with pytest.raises(ValueError, match=f"{re.escape(str(path))}: {message}"):
    TarLayout(folder, "classification").open("test")


def test_what_lies_beside_the_tars_must_be_whole(tmp_path):
  folder = written(tmp_path / "a", sets.labelled(0), names=("cat", "dog", "cat"))
  with pytest.raises(ValueError, match=r"classnames.txt.*more than once: \['cat'\]"):
    TarLayout(folder, "classification")
  assert len(TarLayout(folder, "classification", ("cat",)).classes) == 3
  folder = written(tmp_path / "b", sets.labelled(0), templates=("a photo",))
  with pytest.raises(ValueError, match=r"templates.txt, line 1.*'a photo'"):
    TarLayout(folder, "classification").templates()
  folder = written(tmp_path / "c", sets.labelled(0), names=())
  with pytest.raises(ValueError, match="no file .*c/classnames.txt"):
    TarLayout(folder, "classification")
  folder = written(tmp_path / "d", sets.labelled(0), kind="retrieval")
  with pytest.raises(ValueError, match="type.txt: .*for classification, got .*retrieval"):
    TarLayout(folder, "classification")
  folder = written(tmp_path / "e", sets.labelled(0), kind="multilabel")
  with pytest.raises(ValueError, match="type.txt: expected .* got 'multilabel'"):
    TarLayout(folder, "classification")
