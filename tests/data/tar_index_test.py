import bz2
import gzip
import io
import itertools
import json
import lzma
import os
import tarfile

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from rankclip_jax.data import files, tar_index
from rankclip_jax.data.tar_index import BLOCK, JSON, PICTURE, TEXT
from tests.data import tars

FORMS = {
  "ustar": tarfile.USTAR_FORMAT,
  "gnu": tarfile.GNU_FORMAT,
  "pax": tarfile.PAX_FORMAT,
}
KINDS = ["jpg", "json", "txt"]
COLUMNS = {"jpg": PICTURE, "json": JSON, "txt": TEXT}


def indexed(folder, data):
  path = folder / "00000.tar"
  path.write_bytes(data)
  return tar_index.build(str(path))


def samples(index, data):
  """Key and contents of every sample; None where there is no such member."""

  def content(row, column):
    block, size = (int(n) for n in index.members[row, column : column + 2])
    return data[block * BLOCK : block * BLOCK + size] if block else None

  return [
    (index.key(row), *(content(row, column) for column in (PICTURE, TEXT, JSON)))
    for row in range(len(index))
  ]


def three(keys=("a", "b", "c"), **attributes):
  """A tar as img2dataset writes it, without its end mark, and where members end."""
  parts = []
  for key, kind in itertools.product(keys, KINDS):
    data = b"caption" if kind == "txt" else f"{key} {kind}".encode() * 30
    parts.append(tars.member(f"{key}.{kind}", data, **attributes))
  return b"".join(parts), list(itertools.accumulate(map(len, parts)))


# Every character that a name may have, and often what parsers trip over: bytes that are
# no UTF-8 (as the surrogates that Python reads them as), long folders, dots.
PART = st.text(
  st.sampled_from("ab. _-é😀\udcff\n") | st.characters(codec="utf-8"), max_size=40
)
NAME = st.builds(
  lambda folders, repeat, name, ending: (
    "/".join([*(f * repeat for f in folders), name]) + ending
  ),
  st.lists(PART, max_size=3),
  st.integers(1, 8),
  PART,
  st.sampled_from(
    [".jpg", ".JPEG", ".txt", ".json", ".Png", ".cls", ".seg.png", "", "."]
  ),
).filter(lambda name: "\0" not in name and name.strip("/"))
MEMBER = st.tuples(
  NAME,
  st.sampled_from(list(FORMS.values())),
  st.integers(0, 1100),
  st.sampled_from([0, 1_700_000_000, 1_700_000_000.25, -1.5, 2**36]),
  st.sampled_from([0, 0o7777777, 2**40]),
  st.sampled_from([tarfile.REGTYPE] * 5 + [tarfile.DIRTYPE, tarfile.SYMTYPE]),
)


def written(number, member):
  name, form, size, mtime, uid, kind = member
  size = size if kind == tarfile.REGTYPE else 0
  # Every name is another one, so that every member is another sample.
  name = f"{number}{name}"
  for attributes in ({"mtime": mtime, "uid": uid}, {}):
    try:
      return tars.member(name, bytes([65 + number]) * size, form, type=kind, **attributes)
    except ValueError:  # ustar has no room for the numbers or the name
      continue
  return b""


@given(st.lists(MEMBER, max_size=12))
@example([("a" * 99 + ".jpg", tarfile.GNU_FORMAT, 513, 0, 0, tarfile.REGTYPE)])
@example([("b" * 99 + "/c.jpg", tarfile.USTAR_FORMAT, 512, 0, 0, tarfile.REGTYPE)])
@example([("é.jpg", tarfile.PAX_FORMAT, 0, 1.5, 2**40, tarfile.REGTYPE)])
@settings(
  max_examples=120,
  deadline=None,
  suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_members_are_what_tarfile_says(tmp_path, members):
  data = b"".join(itertools.starmap(written, enumerate(members))) + tars.END_MARK
  expected = []
  archive = tarfile.open(  # noqa: SIM115
    fileobj=io.BytesIO(data), encoding="utf-8", errors="surrogateescape"
  )
  for info in archive:
    folder, slash, name = info.name.rpartition("/")
    key, dot, ending = name.partition(".")
    column = {"jpeg": 0, "png": 0, "jpg": 0, "txt": 2, "json": 4}.get(ending.lower())
    if not (info.isreg() and key and dot) or info.name.startswith("__"):
      continue
    row = [0] * 6
    if column is not None:
      row[column : column + 2] = info.offset_data // BLOCK, info.size
    whole = (folder + slash + key).encode("utf-8", "surrogateescape")
    expected.append((whole.decode(errors="backslashreplace"), row))
  index = indexed(tmp_path, data)
  assert [
    (index.key(i), index.members[i].tolist()) for i in range(len(index))
  ] == expected
  assert index.loss is None
  assert index.incomplete == -1


@given(st.data())
@settings(
  max_examples=50,
  deadline=None,
  suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_samples_are_runs_of_one_key_in_any_order_of_kinds(tmp_path, data):
  keys = data.draw(
    st.lists(st.from_regex(r"[a-z]{0,3}/?[a-z]{1,3}", fullmatch=True), unique=True)
  )
  expected, members = [], []
  for key in keys:
    kinds = data.draw(st.lists(st.sampled_from([*KINDS, "cls"]), unique=True, min_size=1))
    content = {kind: f"{key} {kind}".encode() for kind in kinds}
    members += [(f"{key}.{kind}", content[kind]) for kind in kinds]
    expected.append((key, *(content.get(kind) for kind in ("jpg", "txt", "json"))))
  whole = tars.tar(members)
  assert samples(indexed(tmp_path, whole), whole) == expected


@pytest.mark.parametrize(
  "names, expected",
  [
    ("a.jpg a.png a.txt", ["a a.jpg a.txt -"]),
    ("a.seg.png a.jpg a.txt a.b.txt", ["a a.jpg a.txt -"]),
    ("a.jpg b.jpg a.txt b.txt", ["a a.jpg a.txt -", "b b.jpg b.txt -"]),
    ("a.jpg b.jpg a.jpg a.txt", ["a a.jpg - -", "b b.jpg - -", "a a.jpg a.txt -"]),
    ("a.jpg b.jpg a.cls a.txt", ["a a.jpg a.txt -", "b b.jpg - -"]),
    ("x.y/a.jpg x.y/a.txt x/a.txt", ["x.y/a x.y/a.jpg x.y/a.txt -", "x/a - x/a.txt -"]),
    ("./a.JPG ./a.Txt a.webp", ["./a ./a.JPG ./a.Txt -", "a a.webp - -"]),
    ("a.json b.npy", ["a - - a.json", "b - - -"]),
    ("__m__/a.jpg .a.jpg a/.b.jpg a b/__c__.jpg", ["b/__c__ b/__c__.jpg - -"]),
    ("a.tif b.tiff c.gif d.bmp e.ppm f.heic",
     ["a a.tif - -", "b b.tiff - -", "c c.gif - -", "d d.bmp - -", "e e.ppm - -",
      "f - - -"]),
  ],
)  # fmt: skip
def test_what_is_one_sample(tmp_path, names, expected):
  data = tars.tar([(name, name.encode()) for name in names.split()])
  found = samples(indexed(tmp_path, data), data)
  shown = [
    " ".join([key, *((content or b"-").decode() for content in contents)])
    for key, *contents in found
  ]
  assert shown == expected


def test_links_folders_and_sparse_files_are_no_pictures(tmp_path):
  sparse = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "b.jpg"}
  blocks = b"1\n0\n512\n".ljust(512, b"\0") + bytes(512)
  data = (
    tars.member("a.txt", b"a")
    + tars.member("a.jpg", type=tarfile.LNKTYPE, linkname="a.txt")
    + tars.member(
      "b.jpg",
      blocks,
      tarfile.PAX_FORMAT,
      pax_headers=sparse | {"GNU.sparse.realsize": "512"},
    )
    + tars.member("c.jpg", b"c")
    + tars.member("pictures.v1", type=tarfile.DIRTYPE)
    + tars.member("pictures.v2", type=tarfile.SYMTYPE, linkname="pictures.v1")
    + tars.END_MARK
  )
  found = samples(indexed(tmp_path, data), data)
  assert found == [
    ("a", None, b"a", None),
    ("b", None, None, None),
    ("c", b"c", None, None),
  ]


def test_global_headers_hold_for_all_that_follows(tmp_path):
  """Then tarfile reads every header."""
  heading = tarfile.TarInfo.create_pax_global_header({"comment": "by git archive"})
  data = heading + tars.tar({"a.jpg": b"picture", "a.txt": b"text"})
  assert samples(indexed(tmp_path, data), data) == [("a", b"picture", b"text", None)]
  heading = tarfile.TarInfo.create_pax_global_header({"path": "all.jpg"})
  data = heading + tars.tar({"a.jpg": b"picture", "b.jpg": b"text"})
  assert samples(indexed(tmp_path, data), data) == [("all", b"picture", None, None)]


def test_folders_of_old_tars_have_a_size_and_no_data(tmp_path):
  data = tars.member("a.b/", type=tarfile.AREGTYPE, size=900) + tars.tar({"a.jpg": b"a"})
  assert samples(indexed(tmp_path, data), data) == [("a", b"a", None, None)]


@pytest.mark.parametrize("stats", [False, True], ids=["no_stats", "stats"])
@pytest.mark.parametrize(
  "keys, attributes, step",
  [
    ("ab", {"form": tarfile.USTAR_FORMAT}, 1),
    ("ab", {"form": tarfile.PAX_FORMAT, "mtime": 1.5}, 5),
    (["a" * 120, "b" * 120], {"form": tarfile.GNU_FORMAT}, 31),
  ],
  ids=["plain", "times", "long_names"],
)
def test_cut_at_every_byte_nothing_is_wrong_and_no_loss_unseen(
  tmp_path, keys, attributes, step, stats
):
  members, ends = three(keys, **attributes)
  data = members + tars.END_MARK
  whole = samples(indexed(tmp_path, data), data)
  path = tmp_path / "00000.tar"
  if stats:
    (tmp_path / "00000_stats.json").write_text('{"successes": 2}')
  near = {end + d for end in ends for d in range(-2, 3)}
  # Every byte; where there are more headers every few, and all near the ends.
  cuts = [cut for cut in range(len(data)) if cut % step == 0 or cut in near]
  for cut in reversed(cuts):
    os.truncate(path, cut)
    index = tar_index.build(str(path))
    for row, (key, *contents) in enumerate(samples(index, data)):
      assert key == whole[row][0]
      if row != index.incomplete and contents != list(whole[row][1:]):
        # Cut between two members, and no other sample to compare with.
        assert row == 0
        assert index.loss if stats else cut in ends
        assert all(c in (None, w) for c, w in zip(contents, whole[0][1:], strict=True))
    if cut >= ends[-1] - BLOCK + len(b"caption"):  # in the last padding, or later
      assert (len(index), index.incomplete) == (2, -1)
      if stats or cut >= ends[-1]:
        assert index.loss is None
    elif index.loss is None:
      # Between two samples, or two members of the only one.
      assert not stats
      assert cut in ends
    if index.loss is not None:
      assert index.loss.shard == str(path)
      assert index.loss.reason == "truncated shard"
      assert index.loss.count == (2 - len(index) if stats else 0)
      assert "byte" in index.loss.detail


@pytest.mark.parametrize("form", FORMS)
@given(seed=st.integers(0, 2**32 - 1))
@settings(
  max_examples=30,
  deadline=None,
  suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_a_damaged_header_ends_the_tar_there(tmp_path, form, seed):
  rng = np.random.default_rng(seed)
  members, ends = three(form=FORMS[form])
  whole = samples(indexed(tmp_path, members + tars.END_MARK), members)
  number = int(rng.integers(len(ends)))
  at = [0, *ends][number]
  data = bytearray(members + tars.END_MARK)
  size = int(rng.integers(1, 300))
  data[at : at + size] = bytes(
    b ^ int(rng.integers(1, 256)) for b in data[at : at + size]
  )
  index = indexed(tmp_path, bytes(data))
  assert index.loss is not None
  assert f"at byte {at} " in index.loss.detail
  # The sample that the header belonged to, if it had begun, is marked.
  assert index.incomplete == (number // 3 if number % 3 else -1)
  found = samples(index, members)
  assert found[: number // 3] == whole[: number // 3]
  assert len(found) == -(-number // 3)


@given(
  junk=st.binary(max_size=2000),
  at=st.integers(0, 5000),
  cut=st.integers(0, 7000),
  form=st.sampled_from(list(FORMS.values())),
)
@settings(
  max_examples=200,
  deadline=None,
  suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_no_bytes_raise(tmp_path, junk, at, cut, form):
  members, _ = three("ab", form=form)
  data = (members[:at] + junk + members[at:])[:cut]
  index = indexed(tmp_path, data)
  end = max((int(row[::2].max()) for row in index.members), default=0) * BLOCK
  assert end <= len(data)


def test_junk_of_valid_checksums_ends_the_tar(tmp_path):
  """Sizes below zero, and headers that extend headers, a thousand deep."""
  begin = tars.member("a.jpg", b"a")
  negative = bytearray(tars.member("b.jpg", size=0, form=tarfile.GNU_FORMAT)[:BLOCK])
  negative[124:136] = b"\xff" * 11 + b"\x00"
  negative[148:156] = b" " * 8
  negative[148:156] = b"%06o\0 " % sum(negative)
  deep = tars.member("x", b"10 a=1234\n", type=tarfile.XHDTYPE) * 2000
  for junk in (bytes(negative), deep):
    index = indexed(tmp_path, begin + junk + begin + tars.END_MARK)
    assert [index.key(row) for row in range(len(index))] == ["a"]
    assert index.loss is not None
    assert f"byte {len(begin)}" in index.loss.detail


def test_what_follows_the_end_mark_is_a_loss(tmp_path):
  first, second = tars.tar({"a.jpg": b"a"}), tars.tar({"b.jpg": b"b"})
  index = indexed(tmp_path, first + bytes(9000) + second)
  assert [index.key(row) for row in range(len(index))] == ["a"]
  assert index.incomplete == -1
  assert index.loss is not None
  assert f"follows its end, at byte {len(first) + 9000};" in index.loss.detail
  # Also if the stats are those of the first one.
  (tmp_path / "00000_stats.json").write_text('{"successes": 1}')
  assert indexed(tmp_path, first + bytes(9000) + second).loss is not None
  assert indexed(tmp_path, first + bytes(9000)).loss is None


def test_a_file_laid_out_in_full_and_filled_in_part(tmp_path):
  members, ends = three()
  (tmp_path / "00000_stats.json").write_text('{"successes": 3}')
  index = indexed(tmp_path, members[: ends[5]] + bytes(2 << 20))
  assert len(index) == 2
  assert index.loss is not None
  assert index.loss.count == 1
  assert "2 of 3 samples" in index.loss.detail
  # An end mark outweighs the stats: someone took samples out.
  assert indexed(tmp_path, members[: ends[5]] + tars.END_MARK).loss is None


@pytest.mark.parametrize(
  "stats", ["", "[]", "null", '{"successes": "many"}', "{}", "\ud800", "[" * 9999]
)
def test_stats_that_say_nothing(tmp_path, stats):
  (tmp_path / "00000_stats.json").write_text(stats, errors="surrogatepass")
  index = indexed(tmp_path, three()[0][:1000])
  assert index.loss is not None
  assert index.loss.count == 0


def test_a_tar_of_no_bytes_lost_all(tmp_path):
  (tmp_path / "00000_stats.json").write_text('{"successes": 7}')
  index = indexed(tmp_path, b"")
  assert len(index) == 0
  assert index.loss is not None
  assert (index.loss.count, index.loss.reason) == (7, "truncated shard")
  assert indexed(tmp_path, tars.END_MARK).loss is None


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_compressed_tars_are_refused(tmp_path, compress):
  with pytest.raises(ValueError, match="00000.tar is compressed.*decompress it"):
    indexed(tmp_path, compress(three()[0]))


def test_a_name_that_looks_compressed_is_none(tmp_path):
  assert len(indexed(tmp_path, tars.tar({"BZh9.jpg": b"a"}))) == 1


def test_what_is_no_file_or_not_there(tmp_path):
  with pytest.raises(FileNotFoundError):
    tar_index.build(str(tmp_path / "none.tar"))
  with pytest.raises(ValueError, match=f"{tmp_path} cannot be read as a tar"):
    tar_index.build(str(tmp_path))


@pytest.mark.parametrize(
  "data",
  [
    b"",
    three()[0] + tars.END_MARK,
    three()[0][:5000],
    three(form=2, mtime=0.5)[0][:9999],
  ],
  ids=["empty", "whole", "cut", "cut_pax"],
)
def test_an_index_comes_back_from_bytes(tmp_path, data):
  index = indexed(tmp_path, data)
  path = str(tmp_path / "00000.tar")
  copy = tar_index.from_bytes(tar_index.to_bytes(index), path, files.version(path))
  for name in ("members", "key_ends", "keys"):
    np.testing.assert_array_equal(getattr(copy, name), getattr(index, name))
  assert [copy.key(i) for i in range(len(copy))] == [
    index.key(i) for i in range(len(index))
  ]
  assert (copy.version, copy.incomplete, copy.loss) == (
    index.version,
    index.incomplete,
    index.loss,
  )


def test_no_damaged_index_is_used(tmp_path):
  index = indexed(tmp_path, three()[0][:5000])
  path, version = str(tmp_path / "00000.tar"), index.version
  data = tar_index.to_bytes(index)
  damaged = [data[:cut] for cut in range(len(data))]
  for place, flip in itertools.product(range(len(data)), (1, 0x20, 0xFF)):
    damaged.append(data[:place] + bytes([data[place] ^ flip]) + data[place + 1 :])
  for case in damaged:
    with pytest.raises((ValueError, LookupError, TypeError)):
      tar_index.from_bytes(case, path, version)
  for stale in ((version[0] + 1, version[1]), (version[0], version[1] + "0")):
    with pytest.raises(ValueError, match="has changed"):
      tar_index.from_bytes(data, path, stale)


def test_img2dataset_and_what_lies_beside(tmp_path):
  path = tars.img2dataset(tmp_path, 3, [(b"one", "uno"), (b"two", "dos")])
  data = path.read_bytes()
  found = samples(tar_index.build(str(path)), data)
  assert [sample[:3] for sample in found] == [
    ("000030000", b"one", b"uno"),
    ("000030001", b"two", b"dos"),
  ]
  assert [json.loads(sample[3])["caption"] for sample in found] == ["uno", "dos"]
