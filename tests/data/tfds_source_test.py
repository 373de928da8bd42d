import importlib.util
import os
import pathlib
import pickle
import subprocess
import sys
import threading

import fsspec
import numpy as np
import pytest
import tensorflow_datasets as tfds

from rankclip_jax.data import records
from rankclip_jax.data.source import BadExample, identity_of
from rankclip_jax.data.tfds_source import TfdsSource
from tests.data import tfds_sets

CAPTIONS, LABELS = "rankclip_captions", "rankclip_labels"
DEBIAN = pathlib.Path("/usr/share/datasets/fashion-mnist")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  path = tmp_path_factory.mktemp("tfds")
  tfds_sets.prepare(tfds_sets.RankclipCaptions, path)
  tfds_sets.prepare(tfds_sets.RankclipLabels, path, config="grey")
  tfds_sets.prepare(tfds_sets.RankclipLabels, path, config="rgb-8")
  return path


@pytest.fixture
def own(tmp_path):
  """One that a test may damage."""
  return tfds_sets.prepare(tfds_sets.RankclipCaptions, tmp_path)


def expected(data_dir, name, split, decoders=None):
  """What TFDS itself reads."""
  decoders = {"image": tfds.decode.SkipDecoding()} if decoders is None else decoders
  builder = tfds.builder(name, data_dir=data_dir)
  return list(builder.as_data_source(split=split, decoders=decoders))


@pytest.mark.parametrize(
  "spec, split, meant",
  [
    (CAPTIONS, "train", "train"),
    (f"{CAPTIONS}:1.2.0@test", "train", "test"),
    (f"{CAPTIONS}:1.*.*", "train[:50%]", "train[:50%]"),
    (f"{CAPTIONS}@train[7:]+test[:2]", "test", "train[7:]+test[:2]"),
    (f"{CAPTIONS}@all", "test", "all"),
  ],
)
def test_reads_what_tfds_reads(data_dir, spec, split, meant):
  source = TfdsSource(spec, split=split, data_dir=data_dir, strict=True)
  wanted = expected(data_dir, CAPTIONS, meant)
  assert len(source) == len(wanted) > 1
  for i, example in enumerate(wanted):
    assert source[i].image == example["image"]
    assert source[i].key == example["image/filename"].decode()
    captions = tuple(text.decode() for text in example["captions"]["text"])
    assert source[i].captions == captions
    assert source[i].shard == "rankclip_captions/1.2.0"


@pytest.mark.parametrize(
  "key, value",
  [
    ("title", lambda e: e["title"].decode()),
    ("label", lambda e: tfds_sets.CLASSES[e["label"]]),
    ("captions/text", lambda e: e["captions"]["text"][0].decode()),
  ],
)
def test_captions_of_a_named_feature(data_dir, key, value):
  source = TfdsSource(f"{CAPTIONS}@test", data_dir=data_dir, caption_key=key)
  wanted = expected(data_dir, CAPTIONS, "test")
  assert [source[i].captions[0] for i in range(7)] == [value(e) for e in wanted]


@pytest.mark.parametrize("config, channels", [("grey", 1), ("rgb-8", 3)])
def test_arrays_have_three_channels_and_labels_are_captions(data_dir, config, channels):
  source = TfdsSource(f"{LABELS}/{config}", data_dir=data_dir)
  wanted = expected(data_dir, f"{LABELS}/{config}", "train", {})
  read = 0
  for i, example in enumerate(wanted):
    if example["label"] == -1:
      with pytest.raises(BadExample, match=f"train#{i}: missing caption") as caught:
        source[i]
      assert caught.value.reason == "missing caption"
      continue
    read += 1
    assert source[i].image.dtype == np.uint8
    assert example["image"].shape == (4, 5, channels)
    repeated = np.repeat(example["image"], 3 // channels, axis=2)
    np.testing.assert_array_equal(source[i].image, repeated)
    assert source[i].captions == (tfds_sets.CLASSES[example["label"]],)
    assert source[i].key == f"train#{i}"
    assert source[i].shard == f"{LABELS}/{config}/2.0.0"
  assert (read, len(source)) == (3, 4)
  with pytest.raises(ValueError, match="missing caption"):
    TfdsSource(f"{LABELS}/{config}", data_dir=data_dir, strict=True)


def test_no_config_is_the_default_config(data_dir, tmp_path):
  assert TfdsSource(LABELS, data_dir=data_dir)[0].shard == f"{LABELS}/grey/2.0.0"
  tfds_sets.prepare(tfds_sets.RankclipLabels, tmp_path, config="rgb-8")
  with pytest.raises(ValueError, match="prepared in .*, rgb-8, got grey; `python -m"):
    TfdsSource(LABELS, data_dir=tmp_path)


def test_the_newest_version_is_read_unless_named(own):
  text = (own / "dataset_info.json").read_text()
  for version in ("1.10.0", "1.9.0"):
    copy = own.with_name(version)
    copy.mkdir()
    for file in own.iterdir():
      (copy / file.name).write_bytes(file.read_bytes())
    (copy / "dataset_info.json").write_text(text.replace("1.2.0", version))
  data_dir = own.parents[1]
  assert TfdsSource(CAPTIONS, data_dir=data_dir)[0].shard.endswith("/1.10.0")
  assert TfdsSource(f"{CAPTIONS}:1.9.*", data_dir=data_dir)[0].shard.endswith("/1.9.0")


@pytest.mark.parametrize(
  "spec, options, message",
  [
    ("rankclip_capitons", {}, "no data set 'rankclip_capitons'.*mean rankclip_captions"),
    ("cifar1O", {}, "no data set 'cifar1O', and none is in .*mean cifar10"),
    ("cifar10", {}, r"cifar10 is not prepared in .*prepare cifar10 --data_dir.*tensorfl"),
    (f"{LABELS}/blue", {}, "configs that are prepared in .*, grey, rgb-8, got blue"),
    (f"{CAPTIONS}:3.0.0", {}, "versions that are prepared in .*, 1.2.0, got 3.0.0"),
    (f"{CAPTIONS}@val", {}, r"no split 'val'; it has train \(20\), test \(7\)"),
    (f"{CAPTIONS}@train[:300%]", {}, r"no split 'train\[:300%\]'; it has train"),
    (f"{CAPTIONS}@train[3:3]", {}, r"train\[3:3\] is empty; there are train"),
    (CAPTIONS, {"caption_key": "x"}, "label in x, got none; .*image/filename"),
    (CAPTIONS, {"caption_key": "image/id"}, "label in image/id, got "),
    (CAPTIONS, {"image_key": "title"}, "8 bits in 'title', got Text"),
    ("what ever", {}, r"expected NAME\[/CONFIG\]"),
  ],
)
def test_what_is_not_there_is_refused_with_what_is(data_dir, spec, options, message):
  with pytest.raises(ValueError, match=message):
    TfdsSource(spec, data_dir=data_dir, **options)


def test_two_labels_and_no_captions_are_ambiguous(tmp_path, monkeypatch):
  label = tfds.features.ClassLabel(num_classes=2)
  features = {"image": tfds.features.Image(), "fine": label, "coarse": label}

  def info(self):
    return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

  def examples(self, count):
    yield 0, {"image": png, "fine": 1, "coarse": 0}

  png = tmp_path / "x.png"
  png.write_bytes(tfds_sets.picture(3))
  monkeypatch.setattr(tfds_sets.RankclipCaptions, "_info", info)
  monkeypatch.setattr(tfds_sets.RankclipCaptions, "_generate_examples", examples)
  tfds_sets.prepare(tfds_sets.RankclipCaptions, tmp_path)
  with pytest.raises(ValueError, match="got none; say .*caption_key.*fine"):
    TfdsSource(CAPTIONS, data_dir=tmp_path)
  assert TfdsSource(CAPTIONS, data_dir=tmp_path, caption_key="fine")[0].captions == ("1",)


def test_tfrecords_are_refused_with_the_ways_out(own):
  tfds_sets.to_tfrecord(own)
  with pytest.raises(ValueError, match="holds tfrecord, .*prepare .* --run.*another"):
    TfdsSource(CAPTIONS, data_dir=own.parents[1])


def test_a_damaged_description_is_refused(own):
  (own / "dataset_info.json").write_text("{")
  with pytest.raises(ValueError, match="cannot be read .*prepare it again"):
    TfdsSource(CAPTIONS, data_dir=own.parents[1])


def test_parts_of_a_file_are_told_apart(data_dir):
  parts = ("train[:10]", "train[10:]", "train[:7]", "test")
  found = [identity_of(TfdsSource(CAPTIONS, split=p, data_dir=data_dir)) for p in parts]
  assert [x["examples"] for x in found] == [10, 10, 7, 7]
  assert len({x["digest"] for x in found}) == 4


@pytest.mark.parametrize("how", ["cut", "missing", "short"])
def test_a_damaged_file_makes_bad_examples_in_their_places(own, how):
  path = own / f"{CAPTIONS}-train.array_record{tfds_sets.FILE}"
  if how == "cut":
    path.write_bytes(path.read_bytes()[:-1000])
  elif how == "missing":
    path.unlink()
  else:
    reader = records.open_reader(str(path))
    records.write_records(path, reader.read_all()[:12])
  source = TfdsSource(f"{CAPTIONS}@train+test", data_dir=own.parents[1])
  assert len(source) == 27
  first_bad = 12 if how == "short" else 0
  for i in range(27):
    if first_bad <= i < 20:
      with pytest.raises(BadExample, match=str(path)) as caught:
        source[i]
      assert caught.value.reason == "truncated shard"
    else:
      assert source[i].captions
  with pytest.raises(ValueError, match=f"{path}.*prepare rankclip_captions/1.2.0 again"):
    TfdsSource(f"{CAPTIONS}@train", data_dir=own.parents[1], strict=True)
  assert len(TfdsSource(f"{CAPTIONS}@test", data_dir=own.parents[1], strict=True)) == 7


def test_bad_records_of_a_whole_file(own):
  path = own / f"{CAPTIONS}-test.array_record{tfds_sets.FILE}"
  contents = records.open_reader(str(path)).read_all()
  contents[:2] = [b"\xff\xff", records.encode("k", b"", ["c"])]
  records.write_records(path, contents)
  source = TfdsSource(f"{CAPTIONS}@test", data_dir=own.parents[1])
  for index, reason in enumerate(["malformed row", "empty picture"]):
    with pytest.raises(BadExample, match=f"test#{index}") as caught:
      source[index]
    assert caught.value.reason == reason
  assert source[2].key


def test_pickles_are_small_and_threads_read_the_same(data_dir):
  source = TfdsSource(CAPTIONS, data_dir=data_dir)
  pickled = pickle.dumps(source)
  assert len(pickled) < 1500
  copy, wrong = pickle.loads(pickled), []
  wanted = [source[i] for i in range(20)]

  def read(seed):
    indices = np.random.default_rng(seed).integers(20, size=200)
    wrong.extend(i for i in indices if copy[i] != wanted[i])

  threads = [threading.Thread(target=read, args=(seed,)) for seed in range(8)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert wrong == []
  arrays = TfdsSource(LABELS, data_dir=data_dir)
  again = pickle.loads(pickle.dumps(arrays))[0]
  np.testing.assert_array_equal(again.image, arrays[0].image)


def test_data_elsewhere_is_copied(data_dir, tmp_path):
  system, root = fsspec.filesystem("memory"), "/bucket/tfds"
  for folder in (f"{CAPTIONS}/1.2.0", f"{LABELS}/grey/2.0.0"):
    for file in (data_dir / folder).iterdir():
      system.pipe_file(f"{root}/{folder}/{file.name}", file.read_bytes())
  remote, cache = "memory://bucket/tfds/", tmp_path / "cache"
  here = TfdsSource(f"{CAPTIONS}@test", data_dir=data_dir)
  there = TfdsSource(f"{CAPTIONS}@test", data_dir=remote, cache=cache, strict=True)
  assert [there[i] for i in range(7)] == [here[i] for i in range(7)]
  shards = list(cache.rglob("*array_record*"))
  assert len(shards) == 1  # Not those of the other split.
  grey = TfdsSource(f"{LABELS}/grey", data_dir=remote, cache=cache)
  np.testing.assert_array_equal(
    grey[0].image, TfdsSource(f"{LABELS}/grey", data_dir=data_dir)[0].image
  )
  with pytest.raises(ValueError, match="folder for copies"):
    TfdsSource(CAPTIONS, data_dir=remote)
  with pytest.raises(ValueError, match="cifar10 is not prepared in memory://"):
    TfdsSource("cifar10", data_dir=remote, cache=cache)
  system.rm("/bucket", recursive=True)


def test_reading_imports_no_tensorflow(data_dir, tmp_path):
  for name in ("tensorflow", "jax", "torch"):  # Installed, but not to be imported.
    (tmp_path / f"{name}.py").write_text(f"raise RuntimeError('{name} was imported')")
  code = (
    f"import sys; sys.path.insert(0, '{tmp_path}')\n"
    "from rankclip_jax.data.tfds_source import TfdsSource\n"
    f"source = TfdsSource('{CAPTIONS}@test', data_dir='{data_dir}', strict=True)\n"
    f"arrays = TfdsSource('{LABELS}', data_dir='{data_dir}')\n"
    "print(len(source), source[0].shard, arrays[0].image.shape)\n"
  )
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
  assert done.stdout == "7 rankclip_captions/1.2.0 (4, 5, 3)\n", done.stderr


@pytest.mark.skipif(
  importlib.util.find_spec("tensorflow") is None,
  reason="preparing Fashion-MNIST needs TensorFlow: pip install tensorflow-cpu",
)
@pytest.mark.skipif(
  not DEBIAN.is_dir(), reason="no Fashion-MNIST: apt-get install dataset-fashion-mnist"
)
def test_fashion_mnist_prepared_by_tfds(tmp_path, monkeypatch):
  builder = tfds.builder("fashion_mnist", data_dir=tmp_path)
  infos = {
    url: tfds.download.checksums.compute_url_info(DEBIAN / os.path.basename(url))
    for url in builder.url_infos
  }
  monkeypatch.setattr(type(builder), "url_infos", infos)  # Debian packed them anew.
  config = tfds.download.DownloadConfig(manual_dir=DEBIAN, max_examples_per_split=200)
  builder.download_and_prepare(download_config=config, file_format="array_record")
  source = TfdsSource("fashion_mnist@test", data_dir=tmp_path, strict=True)
  wanted = expected(tmp_path, "fashion_mnist", "test")
  assert len(source) == 200
  for i, example in enumerate(wanted):
    assert source[i].image == example["image"]
    name = builder.info.features["label"].names[example["label"]]
    assert source[i].captions == (name,)
    assert source[i].key == f"test#{i}"
