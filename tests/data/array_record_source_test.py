import functools
import os
import pickle
import re
import subprocess
import sys
import threading

import fsspec
import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from tensorflow_datasets.proto import tf_example_pb2

from rankclip_jax.data import array_record_source, records
from rankclip_jax.data.array_record_source import ArrayRecordSource, Shards
from rankclip_jax.data.source import BadExample, Example, Loss
from tests.data.pictures import encoded

JPEG = encoded(np.zeros((4, 4, 3), np.uint8))


def examples(start, stop):
  return [
    Example(f"key {i}", JPEG + b"%d" % i, (f"übung {i}", f"second {i}"))
    for i in range(start, stop)
  ]


def record(**features):
  """A record of any features, made by another library than ours."""
  message = tf_example_pb2.Example()
  for name, values in features.items():
    feature = message.features.feature[name.replace("__", "/")]
    kind = feature.bytes_list if isinstance(values[0], bytes) else feature.int64_list
    kind.value.extend(values)
  return message.SerializeToString()


@pytest.fixture
def three(tmp_path):
  """Three files of 4, 1 and 5 records."""
  for shard, (start, stop) in enumerate([(0, 4), (4, 5), (5, 10)]):
    path = tmp_path / f"{shard:03}.array_record"
    assert records.write_array_record(path, examples(start, stop)) == stop - start
  return tmp_path


def seen(source):
  return [
    (e.key, e.image, e.captions) for e in map(source.__getitem__, range(len(source)))
  ]


ALL = [(e.key, e.image, e.captions) for e in examples(0, 10)]
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=9)


@hypothesis.given(TEXT, st.binary(max_size=30), st.lists(TEXT, max_size=4))
def test_records_are_tf_train_examples_and_come_back(key, image, captions):
  content = records.encode(key, image, captions)
  assert records.decode(content) == (key, image, tuple(captions))
  feature = tf_example_pb2.Example.FromString(content).features.feature
  assert {name: list(f.bytes_list.value) for name, f in feature.items()} == {
    "key": [key.encode()],
    "image": [image],
    "caption": [caption.encode() for caption in captions],
  }


@hypothesis.given(st.binary(max_size=40))
def test_decoding_anything_is_a_record_or_a_value_error(content):
  try:
    key, image, captions = records.decode(content)
  except ValueError:
    return
  assert isinstance(key, str)
  assert isinstance(image, bytes)
  assert all(isinstance(caption, str) for caption in captions)


@pytest.mark.parametrize(
  "spec", ["{000..002}.array_record", "*.array_record", "000.array_record::00[12].*"]
)
def test_reads_lists_braces_and_globs_in_order(three, spec):
  source = ArrayRecordSource("::".join(f"{three}/{part}" for part in spec.split("::")))
  assert seen(source) == ALL
  assert source[4].shard == f"{three}/001.array_record"
  assert source.losses == ()


def test_indices_beyond_the_ends_are_errors(three):
  source = ArrayRecordSource(three / "000.array_record")
  assert source[np.int64(3)].key == "key 3"
  for index in (-1, 4):
    with pytest.raises(IndexError, match=f"0 to 3, got {index}"):
      source[index]


def test_a_file_named_twice_counts_twice(three):
  path = three / "001.array_record"
  assert seen(ArrayRecordSource(f"{path}::{path}")) == [ALL[4]] * 2


def test_records_that_are_compressed_in_groups_read_the_same(tmp_path):
  path = tmp_path / "a.array_record"
  records.write_array_record(path, examples(0, 10), group_size=4)
  assert seen(ArrayRecordSource(path)) == ALL


@pytest.mark.parametrize(
  "features",
  [
    {"image": [b"I"], "captions": [b"c"]},
    {"jpg": [b"I"], "text": [b"c"]},
    {"image__encoded": [b"I"], "image__caption": [b"c"]},
    {"image": [b"I"], "title": [b"c"], "label": [3]},
  ],
)
def test_others_names_of_features(tmp_path, features):
  path = tmp_path / "a.array_record"
  records.write_records(path, [record(**features)])
  assert ArrayRecordSource(path, strict=True)[0] == Example(
    f"{path}#0", b"I", ("c",), str(path)
  )


def test_keys_of_features_can_be_named(tmp_path):
  path = tmp_path / "a.array_record"
  content = record(image=[b"I"], caption=[b"c"], other=[b"O"], mine=[b"m", b"n"], key=[7])
  records.write_records(path, [content])
  source = ArrayRecordSource(path, caption_key="mine", image_key="other")
  assert source[0] == Example("7", b"O", ("m", "n"), str(path))


@pytest.mark.parametrize("name", ["caption_key", "image_key"])
def test_a_feature_that_no_record_has_is_refused(three, name):
  with pytest.raises(ValueError, match=f"in nothing, got .*caption, image, key.*{name}"):
    ArrayRecordSource(three / "000.array_record", **{name: "nothing"})


GOOD = record(image=[b"I"], caption=[b"c"], key=[b"k"])
BAD = {
  "no record at all": (b"\xff\xff", "malformed row"),
  "nothing": (b"", "missing picture"),
  "no picture": (record(caption=[b"c"], key=[b"k"]), "missing picture"),
  "no bytes": (record(image=[b""], caption=[b"c"], key=[b"k"]), "empty picture"),
  "numbers": (record(image=[1], caption=[b"c"], key=[b"k"]), "malformed row"),
  "two": (record(image=[b"I", b"J"], caption=[b"c"], key=[b"k"]), "malformed row"),
  "no caption": (record(image=[b"I"], key=[b"k"]), "missing caption"),
  "blank": (record(image=[b"I"], caption=[b" \n"], key=[b"k"]), "empty caption"),
  "a number": (record(image=[b"I"], caption=[1], key=[b"k"]), "malformed row"),
  "Latin-1": (record(image=[b"I"], caption=[b"\xfc"], key=[b"k"]), "undecodable caption"),
}


@pytest.mark.parametrize("content, reason", BAD.values(), ids=BAD.keys())
def test_bad_records_keep_their_places(tmp_path, content, reason):
  path = tmp_path / "a.array_record"
  records.write_records(path, [GOOD, content, GOOD])
  source = ArrayRecordSource(path)
  assert len(source) == 3
  assert source[0].image == source[2].image == b"I"
  with pytest.raises(BadExample, match=re.escape(f"{path}, record 1")) as caught:
    source[1]
  assert (caught.value.reason, caught.value.shard) == (reason, str(path))
  assert caught.value.key == ("k" if b"key" in content else f"{path}#1")
  with pytest.raises(ValueError, match=re.escape(f"{path}, record 1")) as refused:
    ArrayRecordSource(path, strict=True)
  assert not isinstance(refused.value, BadExample)


def test_empty_captions_beside_others_are_left_out_but_not_if_strict(tmp_path):
  path = tmp_path / "a.array_record"
  records.write_records(path, [record(image=[b"I"], caption=[b"a", b" ", b"b"])])
  assert ArrayRecordSource(path)[0].captions == ("a", "b")
  with pytest.raises(ValueError, match="record 0: empty caption"):
    ArrayRecordSource(path, strict=True)


def test_a_flipped_bit_costs_one_record(tmp_path):
  path = tmp_path / "a.array_record"
  contents = [os.urandom(3000) for _ in range(50)]
  records.write_records(path, contents)
  damaged = bytearray(path.read_bytes())
  damaged[damaged.index(contents[20][:50]) + 1000] ^= 1
  path.write_bytes(damaged)
  shards = Shards([str(path)], [50])
  bad = []
  for i in range(50):
    try:
      assert shards.read(0, i) == contents[i]
    except BadExample as error:
      bad.append((i, error.reason, error.key))
  assert bad == [(20, "truncated shard", f"{path}#20")]


DAMAGE = {
  "nothing in it": lambda content: b"",
  "half": lambda content: content[: len(content) // 2],
  "one byte less": lambda content: content[:-1],
  "one byte more": lambda content: content + b"x",
  "without the last block": lambda content: content[: -(1 << 16)],
  "no ArrayRecord": lambda content: b"hello" * 40_000,
  "zeros": lambda content: bytes(len(content)),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_file_that_was_cut_off_is_a_loss_and_the_rest_is_read(three, damage):
  path = three / "001.array_record"
  path.write_bytes(damage(path.read_bytes()))
  source = ArrayRecordSource(f"{three}/*.array_record")
  assert seen(source) == ALL[:4] + ALL[5:]
  (loss,) = source.losses
  assert loss == Loss(str(path), "truncated shard", loss.detail)
  assert "cut off" in loss.detail
  with pytest.raises(ValueError, match=f"{path}: it is cut off"):
    ArrayRecordSource(f"{three}/*.array_record", strict=True)
  with pytest.raises(ValueError, match=f"no record in .*001.*; {path}: it is cut off"):
    ArrayRecordSource(path)


def test_an_empty_file_holds_nothing_and_loses_nothing(three):
  records.write_array_record(three / "003.array_record", [])
  assert len(ArrayRecordSource(f"{three}/*.array_record", strict=True)) == 10
  with pytest.raises(ValueError, match="no record in .*give it some"):
    ArrayRecordSource(three / "003.array_record")


def test_missing_files_are_refused(three):
  with pytest.raises(ValueError, match=f"no file {three}/003.array_record"):
    ArrayRecordSource(f"{three}/{{000..003}}.array_record")


@pytest.mark.parametrize("how", ["cut", "replaced"])
def test_a_file_that_changes_meanwhile_is_an_error(three, how):
  path = three / "000.array_record"
  source = ArrayRecordSource(path)
  copy = pickle.loads(pickle.dumps(source))
  assert source[0].key == "key 0"
  if how == "cut":
    os.truncate(path, 70_000)
  else:
    records.write_array_record(path, examples(20, 24))
  for either in (source, copy):
    with pytest.raises(ValueError, match="has changed") as caught:
      either[1]
    assert not isinstance(caught.value, BadExample)


def test_a_file_that_vanishes_meanwhile_makes_bad_examples(three):
  source = ArrayRecordSource(three / "000.array_record")
  (three / "000.array_record").unlink()
  with pytest.raises(BadExample, match="no such file") as caught:
    source[1]
  assert caught.value.reason == "truncated shard"


def test_more_files_than_may_be_open_are_said(three, monkeypatch, caplog):
  few = functools.lru_cache(maxsize=2)(array_record_source._reader.__wrapped__)
  monkeypatch.setattr(array_record_source, "_reader", few)
  Shards([str(three / "000.array_record")] * 2, [4, 4])
  assert not caplog.records
  Shards([str(three / "000.array_record")] * 3, [4, 4, 4])
  assert "Of 3 files only 2 stay open" in caplog.text
  assert "ulimit -n 6" in caplog.text


def test_many_threads_read_what_one_reads(three):
  source, wrong = ArrayRecordSource(f"{three}/*.array_record"), []

  def read(seed):
    for i in np.random.default_rng(seed).integers(10, size=300):
      example = source[i]
      if (example.key, example.image, example.captions) != ALL[i]:
        wrong.append(i)

  threads = [threading.Thread(target=read, args=(seed,)) for seed in range(8)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert wrong == []


def test_pickles_are_small_and_read_the_same(tmp_path):
  path = tmp_path / "a.array_record"
  records.write_array_record(path, examples(0, 2000))
  source = ArrayRecordSource(path)
  assert source[3].key == "key 3"
  pickled = pickle.dumps(source)
  assert len(pickled) < 1500
  assert pickle.loads(pickled)[1999] == source[1999]


def test_few_files_stay_open_however_many_shards(three, monkeypatch):
  few = functools.lru_cache(maxsize=2)(array_record_source._reader.__wrapped__)
  monkeypatch.setattr(array_record_source, "_reader", few)
  source = ArrayRecordSource("::".join([f"{three}/*.array_record"] * 2))
  held = []
  for _ in range(3):
    assert seen(source) == ALL * 2
    links = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
    files = [os.readlink(link) for link in links if os.path.lexists(link)]
    held.append(sum(str(three) in file for file in files))
  assert held == [2, 2, 2]


@pytest.fixture
def remote(three):
  """The same elsewhere."""
  system = fsspec.filesystem("memory")
  for path in three.iterdir():
    system.pipe_file(f"/bucket/{path.name}", path.read_bytes())
  yield "memory://bucket"
  system.rm("/bucket", recursive=True)


def test_files_elsewhere_are_copied_once(remote, tmp_path, monkeypatch):
  cache = tmp_path / "cache"
  source = ArrayRecordSource(f"{remote}/*.array_record", cache=cache)
  assert seen(source) == ALL
  assert source[0].shard.endswith("bucket/000.array_record")
  assert len(list(cache.iterdir())) == 3
  system = fsspec.filesystem("memory")
  system.pipe_file("/bucket/001.array_record", system.cat("/bucket/002.array_record"))
  fetched = []
  get = type(system).get_file
  monkeypatch.setattr(
    type(system), "get_file", lambda s, a, b: (fetched.append(a), get(s, a, b))[1]
  )
  again = ArrayRecordSource(f"{remote}/*.array_record", cache=cache)
  assert seen(again) == ALL[:4] + ALL[5:] * 2
  assert fetched == ["/bucket/001.array_record"]


def test_files_elsewhere_need_a_folder_and_must_be_there(remote, tmp_path):
  with pytest.raises(ValueError, match="reads local files only; .*cache"):
    ArrayRecordSource(f"{remote}/000.array_record")
  with pytest.raises(ValueError, match=f"no file {remote}/x"):
    ArrayRecordSource(f"{remote}/x.array_record", cache=tmp_path / "cache")


def test_files_are_written_whole_or_not_at_all(tmp_path):
  def broken():
    yield from examples(0, 3)
    raise RuntimeError("reading failed")

  path = tmp_path / "a.array_record"
  with pytest.raises(RuntimeError, match="reading failed"):
    records.write_array_record(path, broken())
  array = Example("x", np.zeros((1, 1, 3), np.uint8), ("c",))
  with pytest.raises(ValueError, match="'x': encode"):
    records.write_array_record(path, [array])
  with pytest.raises(OSError, match="No such file or directory"):
    records.write_array_record(tmp_path / "none" / "a.array_record", examples(0, 1))
  assert list(tmp_path.iterdir()) == []


def test_imports_no_tensorflow_and_nothing_slow(three):
  code = (
    "import sys\n"
    "from rankclip_jax.data.array_record_source import ArrayRecordSource\n"
    f"print(ArrayRecordSource('{three}/000.array_record', strict=True)[3].key)\n"
    "slow = 'tensorflow', 'tensorflow_datasets', 'jax', 'torch'\n"
    "print([name for name in slow if name in sys.modules])"
  )
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
  assert done.stdout == "key 3\n[]\n", done.stderr
