"""Result files: their layout, what becomes null, what is refused, and atomicity."""

import json
import math
import os

import jax.numpy as jnp
import numpy as np
import pytest

from rankclip_jax.evals import results


def write(directory, **changes):
  arguments = {
    "dataset": "openmoji",
    "task": "zeroshot_retrieval",
    "metrics": {"acc1": 0.5},
    "model": "ViT-B-32",
    "pretrained": "run-1",
    "extras": {"step": 12},
  }
  return results.write(directory, **{**arguments, **changes})


def test_layout_of_a_file(tmp_path):
  path = write(tmp_path / "new" / "results", dataset="vtab/cifar10", task="linear_probe")
  assert path == tmp_path / "new" / "results" / "vtab-cifar10_linear_probe.json"
  record = json.loads(path.read_text(encoding="utf-8"))
  assert list(record.items()) == [
    ("dataset", "vtab/cifar10"),
    ("model", "ViT-B-32"),
    ("pretrained", "run-1"),
    ("task", "linear_probe"),
    ("metrics", {"acc1": 0.5}),
    ("language", "en"),
    ("rankclip_jax", {"step": 12}),
  ]


def test_metrics_keep_their_order(tmp_path):
  metrics = {"recall@1": 0.1, "recall@5": 0.2, "recall@10": 0.3, "a": 0.4}
  path = write(tmp_path, metrics=metrics)
  assert list(json.loads(path.read_text(encoding="utf-8"))["metrics"]) == list(metrics)
  assert path.read_bytes() == write(tmp_path, metrics=metrics).read_bytes()


def test_scalars_and_undefined_values(tmp_path):
  write(
    tmp_path,
    pretrained=None,
    metrics={
      "none": None,
      "nan": math.nan,
      "numpy nan": np.float32("nan"),
      "float32": np.float32(0.25),
      "float16": np.float16(0.5),
      "jax": jnp.float32(0.75),
      "array": np.array(0.125),
    },
    extras={
      "count": np.int64(3),
      "flag": np.bool_(True),
      "name": "☕",
      "nested": [{"nan": math.nan}, (1, 2)],
    },
  )
  (record,) = results.read_all(tmp_path)
  assert record["pretrained"] is None
  assert record["metrics"] == {
    "none": None,
    "nan": None,
    "numpy nan": None,
    "float32": 0.25,
    "float16": 0.5,
    "jax": 0.75,
    "array": 0.125,
  }
  extras = record["rankclip_jax"]
  assert extras == {
    "count": 3,
    "flag": True,
    "name": "☕",
    "nested": [{"nan": None}, [1, 2]],
  }
  assert extras["flag"] is True


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"metrics": {"acc1": math.inf}}, r"result\.metrics\.acc1: .*finite.*got inf"),
    ({"metrics": {"acc1": np.float32("-inf")}}, r"metrics\.acc1: .*got -inf"),
    ({"extras": {"a": [0, {"b": math.inf}]}}, r"result\.rankclip_jax\.a\[1\]\.b: "),
    ({"extras": {"a": np.zeros(3)}}, r"rankclip_jax\.a: .*got ndarray: convert"),
    ({"extras": {"a": {1: 2}}}, r"rankclip_jax\.a: .*keys that are strings, got 1"),
    ({"dataset": ""}, "dataset=''"),
    ({"task": ""}, "task=''"),
  ],
)
def test_refuses_and_leaves_nothing_behind(tmp_path, changes, message):
  with pytest.raises(ValueError, match=message):
    write(tmp_path, **changes)
  assert list(tmp_path.iterdir()) == []


def test_replaces_an_older_result(tmp_path):
  write(tmp_path, metrics={"acc1": 0.1})
  write(tmp_path, metrics={"acc1": 0.2})
  assert [record["metrics"] for record in results.read_all(tmp_path)] == [{"acc1": 0.2}]


def test_a_failed_write_keeps_the_older_result(tmp_path, monkeypatch):
  path = write(tmp_path)
  before = path.read_bytes()
  replaced = []

  def fail(source, target):
    # The new content is complete, elsewhere, before the old file is touched.
    replaced.append(json.loads(source.read_text(encoding="utf-8"))["metrics"])
    assert target == path
    assert path.read_bytes() == before
    assert len(results.read_all(tmp_path)) == 1
    raise OSError("disk full")

  monkeypatch.setattr(os, "replace", fail)
  with pytest.raises(OSError, match="disk full"):
    write(tmp_path, metrics={"acc1": 0.9})
  assert replaced == [{"acc1": 0.9}]
  assert list(tmp_path.iterdir()) == [path]
  assert path.read_bytes() == before


def test_read_all_is_sorted_and_skips_other_files(tmp_path):
  for dataset in ("stl10", "cars", "mscoco_captions"):
    write(tmp_path, dataset=dataset)
  (tmp_path / "notes.txt").write_text("not a result", encoding="utf-8")
  (tmp_path / "cars_x.json.17.tmp").write_text("{", encoding="utf-8")
  datasets = [record["dataset"] for record in results.read_all(tmp_path)]
  assert datasets == ["cars", "mscoco_captions", "stl10"]


def test_writers_of_one_file_on_all_hosts_do_not_meet(tmp_path, monkeypatch):
  # Containers have few process ids, and share folders.
  monkeypatch.setattr(os, "getpid", lambda: 1)
  path = tmp_path / "x.json"
  with results.replacing(path) as one, results.replacing(path) as two:
    assert one != two
    one.write_text("1")
    two.write_text("2")
  assert path.read_text() == "1"
  assert list(tmp_path.iterdir()) == [path]


def test_a_missing_directory_has_no_results(tmp_path):
  assert results.read_all(tmp_path / "absent") == []


@pytest.mark.parametrize(
  "content, message",
  [
    (b'{"dataset": ', "expected JSON"),
    (b"\xff\xfe", "expected JSON"),
    (b"[1, 2]", "expected a result .*got list"),
    (b'{"dataset": "a", "task": "b", "metrics": null}', "expected metrics by .*got None"),
    (b'{"dataset": "cars", "task": "x"}', r"expected .*got \['dataset', 'task'\]"),
  ],
)
def test_a_broken_file_is_named(tmp_path, content, message):
  write(tmp_path)
  (tmp_path / "broken.json").write_bytes(content)
  with pytest.raises(ValueError, match=rf"broken\.json: {message}"):
    results.read_all(tmp_path)
