"""Reading a workdir: what is tolerated, what is refused, and in which words."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankclip_jax.report import run


def _write_metrics(folder: Path, content: bytes) -> Path:
  path = folder / "metrics.jsonl"
  path.write_bytes(content)
  return path


@pytest.mark.parametrize(
  "tail",
  [
    b"",
    b'{"step": 3, "lo',
    b'{"step": 3, "lo\n',
    '{"step": 3, "é'.encode()[:-1],
    b"\n\n",
  ],
)
def test_metrics_end_may_be_torn(tmp_path, tail):
  whole = b'{"step": 1, "time": 10, "loss": 5}\n{"step": 2, "time": 12.5, "loss": 4}\n'
  curves, logged = run.read_metrics(_write_metrics(tmp_path, whole + tail))
  assert list(curves) == ["loss"]
  assert curves["loss"].steps.tolist() == [1, 2]
  assert curves["loss"].values.tolist() == [5.0, 4.0]
  assert logged == (10, 12.5)


@pytest.mark.parametrize(
  "broken", [b'{"step": 2, "lo', b"", b"[1]", b'{"loss": 1}', b'{"step": 2, "a": "b"}']
)
def test_broken_line_in_the_middle_is_named(tmp_path, broken):
  content = b'{"step": 1, "loss": 5}\n' + broken + b'\n{"step": 3, "loss": 4}\n'
  path = _write_metrics(tmp_path, content)
  with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2: "):
    run.read_metrics(path)


def test_step_logged_twice_keeps_its_last_value_and_null_is_a_gap(tmp_path):
  content = (
    b'{"step": 1, "a": 1}\n{"step": 4, "a": 2}\n'
    b'{"step": 2, "a": null, "b": 7}\n{"step": 4, "a": 3}\n'
  )
  curves, logged = run.read_metrics(_write_metrics(tmp_path, content))
  assert curves["a"].steps.tolist() == [1, 2, 4]
  np.testing.assert_array_equal(curves["a"].values, [1, math.nan, 3])
  assert curves["b"].steps.tolist() == [2]
  assert logged is None


def test_names_take_as_many_folders_as_they_need():
  paths = [Path("/x/a/run"), Path("/x/b/run"), Path("/x/other"), Path("/x/a/run")]
  assert run.distinct_names(paths) == ["a/run", "b/run", "other", "a/run (2)"]
  assert run.distinct_names([Path("/x/a/run"), Path("/y/a/run")]) == [
    "x/a/run",
    "y/a/run",
  ]
  assert run.distinct_names([Path("/x/run"), Path("/y/only")]) == ["run", "only"]


@given(st.lists(st.lists(st.sampled_from("ab"), min_size=1, max_size=4), min_size=1))
def test_names_are_distinct(folders):
  paths = [Path("/", *folder) for folder in folders]
  names = run.distinct_names(paths)
  assert len(set(names)) == len(paths)
  for path, name in zip(paths, names, strict=True):
    assert str(path).endswith(name.partition(" ")[0])


def test_workdir_must_exist_and_hold_a_run(tmp_path):
  (tmp_path / "checkpoints").mkdir()
  with pytest.raises(ValueError, match=r"nowhere: no such folder"):
    run.read_runs([tmp_path / "nowhere"])
  with pytest.raises(ValueError, match=rf"{tmp_path}, which holds none of config\.json"):
    run.read_runs([tmp_path])
  with pytest.raises(ValueError, match="at least one workdir"):
    run.read_runs([])


def test_absent_parts_are_told_from_empty_ones(make_workdir):
  (got,) = run.read_runs([make_workdir(lines=(), environment=None)])
  assert got.absent == {
    "environment": "is missing",
    "metrics": "holds no complete line yet",
    "results": "is missing",
    "embeddings": "is missing",
  }
  assert got.config["seed"] == 3
  assert (got.curves, got.results, got.embeddings) == ({}, (), None)


def test_setting_takes_the_first_path_that_is_set(make_workdir):
  config = {"a": {"b": 0, "none": None}, "model": {"name": "tiny"}, "objective": "clip"}
  (got,) = run.read_runs([make_workdir(config=config)])
  assert got.setting("a.missing", "a.none", "a.b.c", "a.b") == "0"
  assert got.setting("model") == "tiny"
  assert got.setting("objective.name", "objective") == "clip"
  assert got.setting("a", "nothing") is None


def test_results_keep_undefined_values(make_workdir):
  metrics = {"acc1": 0.5, "acc5": None}
  (got,) = run.read_runs([make_workdir(results={("kind", "zero"): metrics})])
  assert got.results == (run.Result("kind", "zero", metrics),)


def test_result_of_text_is_refused(make_workdir):
  workdir = make_workdir(results={("kind", "zero"): {"acc1": "high"}})
  with pytest.raises(ValueError, match=r"results: expected numbers .* kind, zero"):
    run.read_runs([workdir])


def test_config_that_is_no_object_is_named(make_workdir):
  workdir = make_workdir()
  (workdir / "config.json").write_text("[]")
  with pytest.raises(ValueError, match=r"config\.json: expected a JSON object, got list"):
    run.read_runs([workdir])


def test_embeddings_find_the_first_caption_of_each_image(make_workdir, make_embeddings):
  arrays = make_embeddings(images=3, captions_each=2)
  arrays["image_of_text"] = np.array([2, 0, 2, 1, 1, 0])
  (got,) = run.read_runs([make_workdir(embeddings=arrays)])
  assert got.embeddings is not None
  assert got.embeddings.main_text.tolist() == [1, 3, 0]
  assert [got.embeddings.main_caption(image) for image in range(3)] == [
    "caption 1",
    "caption 3",
    "caption 0",
  ]
  assert got.embeddings.index_of_key == {"K000": 0, "K001": 1, "K002": 2}


@pytest.mark.parametrize(
  "name, change, message",
  [
    ("image", lambda a: a[:, :-1], r"image \[images, dim\].*\[3, 5\] and \[3, 6\]"),
    ("image", lambda a: a[:0], "at least one image"),
    ("captions", lambda a: a[1:], r"\[3\], one for each text, got \[3\] and \[2\]"),
    ("image_of_text", lambda a: a * 0, "each of the 3 images at least once, got 1"),
    ("image_of_text", lambda a: a + 1, "each of the 3 images at least once"),
    ("keys", lambda a: a[[0, 0, 1]], "3 different keys.* with 2 different"),
    ("thumbnails", lambda a: a / 255, r"uint8 \[3, height, width, 3\], got float64"),
    ("thumbnails", lambda a: a[1:], r"uint8 \[3, height, width, 3\], got uint8 \[2,"),
    ("captions", lambda a: a.astype(object), "Object arrays cannot be loaded"),
    ("keys", None, r"got none named \['keys'\]"),
  ],
)
def test_arrays_that_do_not_fit_are_named(
  make_workdir, make_embeddings, name, change, message
):
  arrays = make_embeddings(images=3, captions_each=1)
  value = arrays.pop(name)
  if change is not None:
    arrays[name] = change(value)
  workdir = make_workdir(embeddings=arrays)
  with pytest.raises(ValueError, match=rf"openmoji_embeddings\.npz: .*{message}"):
    run.read_runs([workdir])


def test_embeddings_that_are_no_npz_are_named(make_workdir):
  workdir = make_workdir()
  (workdir / run.EMBEDDINGS_FILE).write_bytes(b"PK\x03\x04 torn")
  with pytest.raises(ValueError, match=r"openmoji_embeddings\.npz: .*evaluate"):
    run.read_runs([workdir])


def test_embeddings_of_a_diverged_run_are_left_out(make_workdir, make_embeddings):
  arrays = make_embeddings()
  arrays["text"][2, 1] = np.nan
  (got,) = run.read_runs([make_workdir(embeddings=arrays)])
  assert got.embeddings is None
  assert got.absent["embeddings"] == "holds values that are not finite"
