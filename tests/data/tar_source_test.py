import json
import os
import pickle
import re
import shutil

import fsspec
import pytest

from rankclip_jax.data import tar_index
from rankclip_jax.data.source import BadExample, losses_of
from rankclip_jax.data.tar_source import TarSource
from tests.data import tars
from tests.data.examples import put
from tests.data.pictures import encoded, photograph

PICTURES = [encoded(photograph(20 + i, 30)) for i in range(5)]
CAPTIONS = ["a cat", "un gato", "猫", "größer\nals ein Hund", '"quoted", <b>']


@pytest.fixture
def folder(tmp_path):
  """Five shards as img2dataset writes them, of 5, 4, 3, 2 and 1 samples."""
  pairs = list(zip(PICTURES, CAPTIONS, strict=True))
  for shard in range(5):
    tars.img2dataset(tmp_path, shard, pairs[shard:])
  return tmp_path


def expected(folder):
  return [
    (f"{shard:05}{row:04}", PICTURES[shard + row], (CAPTIONS[shard + row],),
     f"{folder}/{shard:05}.tar")
    for shard in range(5)
    for row in range(5 - shard)
  ]  # fmt: skip


def read(source):
  return [
    (e.key, e.image, e.captions, e.shard)
    for e in map(source.__getitem__, range(len(source)))
  ]


@pytest.mark.parametrize(
  "spec", ["{00000..00004}.tar", "*.tar", "00000.tar::0000[1-3].tar::{00004,}.tar"]
)
def test_samples_of_img2dataset_in_order(folder, spec, monkeypatch):
  monkeypatch.chdir(folder)
  for strict in (False, True):
    if "," in spec:
      spec = spec.replace("{00004,}", "{00004,00000}")
    source = TarSource(
      "::".join(f"{folder}/{part}" for part in spec.split("::")), strict=strict
    )
    assert read(source)[:15] == expected(folder)
    assert len(source) == (20 if "," in spec else 15)
    assert losses_of(source) == ()


JSON = {
  "caption": "from json",
  "many": ["one", " ", "two"],
  "none": None,
  "blank": " ",
  "blanks": ["", " "],
  "empty": [],
  "number": 3,
  "zero": 0,
  "mixed": ["one", 2],
  "half": "\ud800",
}


@pytest.mark.parametrize(
  "key, members, captions",
  [
    ("", {"txt": b"text", "json": json.dumps(JSON).encode()}, ("text",)),
    ("", {"json": json.dumps(JSON).encode()}, ("from json",)),
    ("", {"txt": b"\xef\xbb\xbftext\n"}, ("text\n",)),
    ("caption", {"txt": b"text", "json": json.dumps(JSON).encode()}, ("from json",)),
    ("many", {"txt": b"text", "json": json.dumps(JSON).encode()}, ("one", "two")),
  ],
)
def test_where_captions_come_from(tmp_path, key, members, captions):
  named = {f"a.{kind}": data for kind, data in members.items()}
  path = put(tmp_path / "0.tar", tars.tar(named | {"a.jpg": PICTURES[0]}))
  assert TarSource(path, strict=True, caption_key=key)[0].captions == captions


BAD = [
  ("", {"txt": b"text"}, "missing picture"),
  ("", {"heic": b"picture", "txt": b"text"}, "missing picture"),
  ("", {"json": b'{"status": "failed_to_download"}'}, "missing picture"),
  ("", {"jpg": b"", "txt": b"text"}, "empty picture"),
  ("", {"jpg": b"picture"}, "missing caption"),
  ("", {"jpg": b"picture", "json": b"{}"}, "missing caption"),
  ("caption", {"jpg": b"picture", "txt": b"text"}, "missing caption"),
  ("other", {"jpg": b"picture", "json": json.dumps(JSON).encode()}, "missing caption"),
  ("none", {"jpg": b"picture", "json": json.dumps(JSON).encode()}, "missing caption"),
  ("", {"jpg": b"picture", "txt": b""}, "empty caption"),
  ("", {"jpg": b"picture", "txt": b" \n"}, "empty caption"),
  ("blank", {"jpg": b"picture", "json": json.dumps(JSON).encode()}, "empty caption"),
  ("blanks", {"jpg": b"picture", "json": json.dumps(JSON).encode()}, "empty caption"),
  ("empty", {"jpg": b"picture", "json": json.dumps(JSON).encode()}, "empty caption"),
  ("", {"jpg": b"picture", "txt": "é".encode("latin-1")}, "undecodable caption"),
  ("", {"jpg": b"picture", "json": b""}, "undecodable caption"),
  ("", {"jpg": b"picture", "json": b"{"}, "undecodable caption"),
  ("", {"jpg": b"picture", "json": b"null"}, "undecodable caption"),
  ("", {"jpg": b"picture", "json": b'"text"'}, "undecodable caption"),
  ("", {"jpg": b"picture", "json": b"[" * 99999}, "undecodable caption"),
  *(
    (key, {"jpg": b"picture", "json": json.dumps(JSON).encode()}, "undecodable caption")
    for key in ("number", "zero", "mixed", "half")
  ),
]


@pytest.mark.parametrize("key, members, reason", BAD)
def test_bad_samples_keep_their_place(tmp_path, key, members, reason):
  good = {
    "jpg": PICTURES[0],
    "txt": b"text",
    "json": json.dumps(dict.fromkeys([key or "caption"], "text")).encode(),
  }
  names = [
    *((f"before.{kind}", data) for kind, data in good.items()),
    *((f"bad/one.{kind}", data) for kind, data in members.items()),
    *((f"behind.{kind}", data) for kind, data in good.items()),
  ]
  path = put(tmp_path / "0.tar", tars.tar(names))
  source = TarSource(path, caption_key=key)
  assert losses_of(source) == ()
  assert [source[0].key, source[2].key] == ["before", "behind"]
  with pytest.raises(BadExample, match="bad/one") as caught:
    source[1]
  bad = caught.value
  assert (bad.reason, bad.key, bad.shard) == (reason, "bad/one", path)
  with pytest.raises(ValueError, match=f"has 1 faults: {re.escape(str(bad))}"):
    TarSource(path, caption_key=key, strict=True)


def test_a_cut_tar_is_a_bad_sample_and_a_loss(folder):
  path = folder / "00001.tar"
  index = tar_index.build(str(path))
  os.truncate(path, int(index.members[2, tar_index.PICTURE]) * 512 + 100)
  source = TarSource(f"{folder}/*.tar")
  good = [one for one in expected(folder) if one[0] not in ("000010002", "000010003")]
  with pytest.raises(BadExample) as caught:
    source[7]
  assert (caught.value.reason, caught.value.key) == ("truncated shard", "000010002")
  assert read([source[i] for i in range(len(source)) if i != 7]) == good
  (loss,) = losses_of(source)
  assert (loss.shard, loss.reason, loss.count) == (str(path), "truncated shard", 1)
  assert f"cut off at byte {path.stat().st_size}, within '000010002.jpg'" in loss.detail
  with pytest.raises(
    ValueError, match=r"has 2 faults: .*00001.tar: it is cut off .*0002"
  ):
    TarSource(f"{folder}/*.tar", strict=True)


def test_an_empty_tar_is_a_loss_unless_all_are(folder):
  (folder / "00002.tar").write_bytes(b"")
  (loss,) = losses_of(TarSource(f"{folder}/*.tar"))
  assert (loss.detail, loss.count) == ("it has no bytes; 0 of 3 samples were found", 3)
  with pytest.raises(ValueError, match="1 faults: .*00002.tar: it has no bytes"):
    TarSource(f"{folder}/*.tar", strict=True)
  with pytest.raises(ValueError, match="no sample in .*00002.tar: it has no bytes"):
    TarSource(f"{folder}/00002.tar")


@pytest.mark.parametrize("strict", [False, True])
def test_mistakes_are_errors(folder, strict):
  (folder / "web.tar").write_bytes(b"<html>404</html>")
  shutil.copy(folder / "web.tar", folder / "folder.tar.gz")
  (folder / "gz.tar").write_bytes(b"\x1f\x8b" + bytes(100))
  for spec, message in {
    "{00003..00006}.tar": r"2 of 4 tars cannot be opened: .*00005.tar.*00006.tar",
    "00000.tar/a.tar": "1 of 1 tars cannot be opened",
    "gz.tar": "gz.tar is compressed",
    "": "cannot be read as a tar",
  }.items():
    with pytest.raises(ValueError, match=message):
      TarSource(f"{folder}/{spec}", strict=strict)
  with pytest.raises(ValueError, match="no whole header at byte 0"):
    TarSource(f"{folder}/web.tar", strict=strict)


def test_a_tar_that_changes_is_indexed_again_and_no_old_source_reads_it(folder):
  path = folder / "00000.tar"
  source = TarSource(str(path))
  size, time = path.stat().st_size, path.stat().st_mtime_ns
  members = {"b.jpg": PICTURES[1], "b.txt": b"b"}
  path.write_bytes(tars.tar(members).ljust(size, b"\0"))
  os.utime(path, ns=(time, time + 1_000_000_000))
  with pytest.raises(
    ValueError, match=r"00000.tar has changed since it was opened"
  ) as caught:
    source[0]
  assert not isinstance(caught.value, BadExample)
  assert read(TarSource(str(path))) == [("b", PICTURES[1], ("b",), str(path))]
  path.unlink()
  with pytest.raises(ValueError, match="00000.tar is gone"):
    source[0]


def test_tars_elsewhere(folder, remote, tmp_path):
  for path in folder.glob("*"):
    data = path.read_bytes()
    put(f"{remote}/{path.name}", data[:9000] if path.name == "00001.tar" else data)
  cache, spec = tmp_path / "cache", f"{remote}/{{00000..00004}}.tar"
  source = TarSource(spec, cache=cache)
  assert [loss.shard for loss in losses_of(source)] == [f"{remote}/00001.tar"]
  whole = {key: (picture, captions) for key, picture, captions, _ in expected(folder)}
  for index in [*range(5), *range(len(source) - 6, len(source))]:
    example = source[index]
    assert (example.image, example.captions) == whole[example.key]
  assert len(list(cache.iterdir())) == 5
  assert len(TarSource(f"{remote}/*.tar")) == len(source)
  again = TarSource(spec, cache=cache)
  assert losses_of(again) == losses_of(source)
  assert len(TarSource(f"{remote}/00000.tar", cache=cache, strict=True)) == 5
  system = fsspec.filesystem("memory")
  assert not [name for name in system.ls(remote, detail=False) if "index" in name]
  system.rm(f"{remote}/00000.tar")
  with pytest.raises(ValueError, match="00000.tar is gone"):
    source[4]


def test_tars_elsewhere_with_bad_captions_are_refused(remote):
  members = {"a.jpg": b"a", "a.txt": b"a", "b.jpg": b"b", "b.txt": b"\xff"}
  path = put(f"{remote}/0.tar", tars.tar(members))
  with pytest.raises(ValueError, match=f"{path}, sample 'b': its .txt is not"):
    TarSource(path, strict=True)


def test_picture_and_caption_may_lie_apart(tmp_path):
  members = [("a.txt", b"a"), ("b.jpg", b"b" * 200_000), ("b.txt", b"b"), ("a.jpg", b"a")]
  source = TarSource(put(tmp_path / "0.tar", tars.tar(members)), strict=True)
  assert [e[:3] for e in read(source)] == [
    ("a", b"a", ("a",)),
    ("b", b"b" * 200_000, ("b",)),
  ]


def test_a_source_may_be_pickled(folder):
  os.truncate(folder / "00004.tar", 600)
  source = TarSource(f"{folder}/*.tar")
  copy = pickle.loads(pickle.dumps(source))
  assert read([copy[i] for i in range(14)]) == expected(folder)[:14]
  assert losses_of(copy) == losses_of(source) != ()
