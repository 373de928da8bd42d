import importlib.util
import json
import os
import re
import struct

import hypothesis
import pytest
import tensorflow_datasets as tfds
from hypothesis import strategies as st

from rankclip_jax.data import prepare, tfrecords
from rankclip_jax.data.tfds_source import TfdsSource
from tests.data import tfds_sets

CAPTIONS, LABELS, MANUAL = "rankclip_captions", "rankclip_labels", "rankclip_manual"


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
  """Nothing here may ask for anything from outside."""

  def refuse(*arguments, **keywords):
    raise AssertionError(f"a connection: {arguments}")

  monkeypatch.setattr("socket.socket.connect", refuse)


def look(*names, **options):
  return prepare.look(names, **options)


def test_every_set_of_the_evaluation_has_a_state(tmp_path):
  where = {"data_dir": str(tmp_path), "folder_dir": str(tmp_path / "folders")}
  found = prepare.look(**where)
  assert [status.name for status in found] == list(prepare.EVALUATION)
  assert len(found) == 23
  known = set(tfds.list_builders(with_community_datasets=False))
  lacking = set()
  for status in found:
    assert status.state in ("downloads", "manual files", "needs TensorFlow"), status
    assert status.todo
    if status.name.partition("/")[0] not in known:
      lacking.add(status.name)
      assert status.state == "manual files"
      assert status.folder == str(tmp_path / "folders" / f"wds_{status.name}")
      assert f"at {status.folder}: " in status.todo
  assert lacking == {"fgvc_aircraft", "gtsrb", "renderedsst2", "flickr30k"}
  by_name = {status.name: status for status in found}
  cifar = by_name["cifar10"]
  assert (cifar.state, cifar.version) == ("downloads", "3.0.2")
  assert cifar.download_bytes == 170052171
  assert cifar.folder == str(tmp_path / "cifar10" / "3.0.2")
  imagenet = by_name["imagenet2012"]
  assert imagenet.state == "manual files"
  assert f"Put the files into {tmp_path}/downloads/manual (there now" in imagenet.todo
  assert "ILSVRC2012_img_val.tar" in imagenet.todo


def test_names_of_the_evaluation(tmp_path):
  where = {"data_dir": str(tmp_path), "folder_dir": str(tmp_path / "folders")}
  cifar, sst, emoji = look("vtab/cifar10", "rendered_sst2", "openmoji/kind", **where)
  assert (cifar.name, cifar.state) == ("vtab/cifar10", "downloads")
  assert cifar.folder == str(tmp_path / "cifar10" / "3.0.2")
  assert (sst.name, sst.state, emoji.state) == ("rendered_sst2", "manual files", "ready")
  with pytest.raises(ValueError, match="rendered_sst2: TFDS lacks it. Put the folder"):
    prepare.run(sst)
  folder = tmp_path / "folders" / "renderedsst2"
  (folder / "test").mkdir(parents=True)
  (sst,) = look("rendered_sst2", **where)
  assert (sst.state, sst.folder, sst.todo) == ("ready", str(folder), "")
  assert prepare.run(sst) == sst
  # What TFDS would have to prepare is read from another layout too.
  (stl,) = look("stl10", **where)
  assert stl.state == "downloads"
  (tmp_path / "folders" / "stl10" / "test").mkdir(parents=True)
  (stl,) = look("stl10", **where)
  assert (stl.state, stl.folder) == ("ready", str(tmp_path / "folders" / "stl10"))
  folder.rename(tmp_path / "folders" / "wds_renderedsst2")
  (sst,) = look("rendered_sst2", **where)
  assert sst.state == "damaged"
  with pytest.raises(ValueError, match="rendered_sst2: There is no file .*classnames"):
    prepare.run(sst)


@pytest.mark.parametrize("lost", ["features.json", "dataset_info.json"])
def test_damaged_sets_are_to_be_prepared_again(lost, tmp_path):
  folder = tfds_sets.prepare(tfds_sets.RankclipCaptions, tmp_path)
  (folder / lost).unlink()
  (status,) = look(CAPTIONS, data_dir=str(tmp_path))
  assert status.state == "damaged"
  assert re.fullmatch(f"{folder} .*; remove it, and prepare it again", status.todo)
  with pytest.raises(ValueError, match=f"{CAPTIONS}: {folder}.*remove it"):
    prepare.run(status, data_dir=str(tmp_path))


def test_sets_whose_code_needs_tensorflow_say_so(monkeypatch):
  def builder_cls(name):
    raise ModuleNotFoundError("No module named 'tensorflow'", name="tensorflow")

  monkeypatch.setattr(tfds, "builder_cls", builder_cls)
  (status,) = look("coco_captions")
  assert status.state == "needs TensorFlow"
  assert "pip install tensorflow-cpu" in status.todo
  with pytest.raises(ValueError, match="coco_captions: .*pip install tensorflow-cpu"):
    prepare.run(status)


def test_tfds_own_sets_are_not_prepared_without_tensorflow(tmp_path, monkeypatch):
  find = importlib.util.find_spec
  monkeypatch.setattr(
    importlib.util, "find_spec", lambda name: None if name == "tensorflow" else find(name)
  )
  (status,) = look("cifar10", data_dir=str(tmp_path))
  with pytest.raises(ValueError, match="cifar10: .*not installed: pip install tensorfl"):
    prepare.run(status, data_dir=str(tmp_path))
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
  "name, todo",
  [
    ("cifar1O", "no 'cifar1O'; did you mean cifar10"),
    ("cifar10/grey", "cifar10 has no config 'grey', but none"),
    (f"{LABELS}/blue", "has no config 'blue', but grey, rgb-8"),
    ("cifar10:9.9.9", "cannot be loaded at version 9.9.9, only: 3.0.2"),
  ],
)
def test_what_tfds_does_not_have(name, todo, tmp_path):
  (status,) = look(name, data_dir=str(tmp_path))
  assert status.state == "not in TFDS"
  assert todo in status.todo
  with pytest.raises(ValueError, match=re.escape(todo)):
    prepare.run(status)
  assert prepare.main([name, f"--data_dir={tmp_path}"]) == 1


def test_prepares_and_says_what_is_ready(tmp_path, capsys):
  where = f"--data_dir={tmp_path}"
  assert prepare.main([CAPTIONS, f"{LABELS}/rgb-8", where, "--json"]) == 0
  states = [status["state"] for status in json.loads(capsys.readouterr().out)]
  assert states == ["downloads", "downloads"]
  assert prepare.main([CAPTIONS, f"{LABELS}/rgb-8", where, "--run"]) == 0
  assert len(TfdsSource(f"{LABELS}/rgb-8", data_dir=tmp_path)) == 4
  shown = capsys.readouterr().out
  folder = tmp_path / CAPTIONS / "1.2.0"
  assert re.search(rf"{CAPTIONS} +ready +1.2.0 +train 20, test 7", shown)
  assert f"is in {folder} (array_record)" in shown
  assert prepare.main([CAPTIONS, where, "--run", "--json"]) == 0
  assert json.loads(capsys.readouterr().out) == [
    {
      "name": CAPTIONS,
      "state": "ready",
      "version": "1.2.0",
      "folder": str(folder),
      "formats": ["array_record"],
      "splits": {"train": 20, "test": 7},
      "download_bytes": None,
      "todo": "",
    }
  ]
  # The default config is another than the one that is there.
  assert look(LABELS, data_dir=str(tmp_path))[0].state == "downloads"


def test_manual_files_have_a_folder(tmp_path):
  where = {"data_dir": str(tmp_path / "tfds"), "manual_dir": str(tmp_path / "mine")}
  (status,) = look(MANUAL, **where)
  assert status.state == "manual files"
  wanted = f"{tmp_path}/mine (there now: nothing).*Get numbers.txt from your library."
  assert re.search(re.escape(wanted).replace(r"\.\*", ".*"), status.todo)
  with pytest.raises(ValueError, match="numbers.txt"):
    prepare.run(status, **where)
  (tmp_path / "mine").mkdir()
  (tmp_path / "mine" / "numbers.txt").write_text("3 141 59")
  (status,) = look(MANUAL, **where)
  assert "there now: numbers.txt" in status.todo
  ready = prepare.run(status, **where)
  assert (ready.state, ready.splits) == ("ready", {"val": 3})
  source = TfdsSource(f"{MANUAL}@val", data_dir=where["data_dir"], strict=True)
  assert sorted(source[i].captions for i in range(3)) == [("141",), ("3",), ("59",)]


def test_what_goes_wrong_is_one_line(tmp_path):
  (tmp_path / "numbers.txt").write_text("three")
  where = {"data_dir": str(tmp_path / "tfds"), "manual_dir": str(tmp_path)}
  (status,) = look(MANUAL, **where)
  with pytest.raises(ValueError, match="rankclip_manual could not be prepared .*three"):
    prepare.run(status, **where)


def test_refuses_to_prepare_everything_and_elsewhere(tmp_path):
  with pytest.raises(ValueError, match="name the data sets"):
    prepare.main(["--run", f"--data_dir={tmp_path}"])
  with pytest.raises(ValueError, match="must be local, got gs://bucket"):
    prepare.main(["--data_dir=gs://bucket"])


@pytest.fixture
def tfrecord(tmp_path):
  """A data set as TFDS writes it by default."""
  folder = tfds_sets.prepare(tfds_sets.RankclipCaptions, tmp_path)
  source = TfdsSource(f"{CAPTIONS}@train", data_dir=tmp_path)
  examples = [source[i] for i in range(20)]
  return tfds_sets.to_tfrecord(folder), examples


def test_tfrecords_are_written_again_and_read_the_same(tfrecord, tmp_path, capsys):
  paths, examples = tfrecord
  where = f"--data_dir={tmp_path}"
  assert prepare.main([CAPTIONS, where]) == 0
  shown = capsys.readouterr().out
  assert "other format" in shown
  assert "(tfrecord). --run writes it again as ArrayRecord" in shown
  assert prepare.main([CAPTIONS, where, "--run"]) == 0
  assert "(array_record, tfrecord)" in capsys.readouterr().out
  source = TfdsSource(f"{CAPTIONS}@train", data_dir=tmp_path, strict=True)
  assert [source[i] for i in range(20)] == examples
  formats = tfds.builder_from_directory(paths[0].parent).info.available_file_formats()
  assert {found.value for found in formats} == {"tfrecord", "array_record"}
  assert all(path.is_file() for path in paths)


def test_converting_goes_on_where_it_stopped(tfrecord):
  paths, _ = tfrecord
  tfrecords.convert(paths[0].parent)
  first, second = sorted(paths[0].parent.glob("*.array_record-*"))
  kept = first.stat().st_mtime_ns
  os.truncate(second, 1000)
  tfrecords.convert(paths[0].parent)
  assert first.stat().st_mtime_ns == kept
  assert second.stat().st_size > 1000


@pytest.mark.parametrize("how", ["cut", "a record less", "a length that is none"])
def test_damaged_tfrecords_are_refused(tfrecord, how):
  paths, _ = tfrecord
  content = paths[0].read_bytes()
  (length,) = struct.unpack_from("<Q", content)
  if how == "cut":
    content = content[:-100]
  elif how == "a record less":
    content = content[length + 16 :]
  else:
    content = struct.pack("<Q", 1 << 60) + content[8:]
  paths[0].write_bytes(content)
  message = "expected 7 records, got 6" if how == "a record less" else "ends within"
  with pytest.raises(ValueError, match=f"{paths[0]}.*{message}.*prepare it again"):
    tfrecords.convert(paths[0].parent)
  assert not paths[0].with_name(paths[0].name.replace("tf", "array_")).exists()
  formats = tfds.builder_from_directory(paths[0].parent).info.available_file_formats()
  assert {found.value for found in formats} == {"tfrecord"}


@hypothesis.given(contents=st.lists(st.binary(max_size=20)), lost=st.integers(0, 40))
def test_tfrecords_cut_anywhere_give_their_whole_records(
  tmp_path_factory, contents, lost
):
  path = tmp_path_factory.mktemp("cut") / "a.tfrecord"
  packed = [struct.pack("<QI", len(c), 7) + c + b"crc!" for c in contents]
  whole = b"".join(packed)
  kept = len(whole) - min(lost, len(whole))
  path.write_bytes(whole[:kept])
  read, boundaries = [], {sum(map(len, packed[:i])) for i in range(len(packed) + 1)}
  try:
    for content in tfrecords.read_tfrecord(path):
      read.append(content)
    assert kept in boundaries
  except ValueError:
    assert kept not in boundaries
  assert read == contents[: len(read)]
  assert sum(map(len, packed[: len(read)])) <= kept
  assert len(read) == len(contents) or sum(map(len, packed[: len(read) + 1])) > kept
