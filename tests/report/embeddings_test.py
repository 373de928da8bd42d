"""Reading held-out embeddings: which file, what is in it, and what is refused."""

import numpy as np
import pytest

from rankclip_jax.evals import results
from rankclip_jax.report import run


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
  results.embeddings_path(workdir / "results", "openmoji").write_bytes(b"PK\x03\x04 torn")
  with pytest.raises(ValueError, match=r"openmoji_embeddings\.npz: .*evaluate"):
    run.read_runs([workdir])


def test_embeddings_of_a_diverged_run_are_left_out(make_workdir, make_embeddings):
  arrays = make_embeddings()
  arrays["text"][2, 1] = np.nan
  (got,) = run.read_runs([make_workdir(embeddings=arrays)])
  assert got.embeddings is None
  assert got.absent["embeddings"] == "holds values that are not finite"


def test_embeddings_of_any_data_are_shown(make_workdir, make_embeddings):
  workdir = make_workdir(embeddings=make_embeddings(images=3), held_out="my-val.2024")
  (got,) = run.read_runs([workdir])
  assert got.embeddings is not None
  assert got.embeddings.dataset == "my-val.2024"
  assert len(got.embeddings.keys) == 3


@pytest.mark.parametrize(
  "data, shown",
  [
    ({"source": "csv", "test": "/data/coco/val.csv"}, "val"),
    ({"source": "tar", "test": "/data/flickr/{000..009}.tar::/x.tar"}, "flickr"),
    ({"source": "openmoji", "test": ""}, None),
    (None, None),
  ],
)
def test_of_several_embeddings_those_of_the_config_are_shown(
  make_workdir, make_embeddings, data, shown
):
  config = {"seed": 0} if data is None else {"data": data}
  for name, images in (("val", 3), ("flickr", 4)):
    workdir = make_workdir(
      config=config, embeddings=make_embeddings(images=images), held_out=name
    )
  (got,) = run.read_runs([workdir])
  if shown is None:
    assert got.embeddings is None
    assert "are several" in got.absent["embeddings"]
  else:
    assert got.embeddings is not None
    assert got.embeddings.dataset == shown
    assert "embeddings" not in got.absent
