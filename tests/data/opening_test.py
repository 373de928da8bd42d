import json

import pyarrow as pa
import pytest

from rankclip_jax.data import opening
from rankclip_jax.data.opening import Options, open_source
from tests.data import tars
from tests.data.examples import outcomes, put
from tests.data.parquets import write


@pytest.fixture
def spec(tmp_path):
  """A CSV, parquet files of both kinds and a tar, with names of columns of their own."""
  for name in ("a", "b"):
    put(tmp_path / f"{name}.png", name)
  struct = pa.array([{"bytes": b"d", "path": None}])
  facts = json.dumps({"words": "five"}).encode()
  files = [
    put(tmp_path / "0.csv", "image,caption,photo,words\nx,y,a.png,one\n"),
    write(
      tmp_path / "1.parquet", {"image": [b"x"], "photo": ["b.png"], "words": ["two"]}
    ),
    write(tmp_path / "2.parquet", {"photo": [b"c"], "words": ["three"], "text": ["y"]}),
    write(tmp_path / "3.parquet", {"photo": struct, "words": [["four", "more"]]}),
    put(tmp_path / "4.tar", tars.tar({"0.jpg": b"e", "0.txt": b"y", "0.json": facts})),
  ]
  return "::".join(files)


@pytest.mark.parametrize("strict", [True, False])
def test_columns_are_named_in_every_format(spec, strict):
  options = Options(caption_key="words", image_key="photo", strict=strict)
  source = open_source("mixture", spec, options)
  assert outcomes(source, "image", "captions") == [
    (b"a", ("one",)),
    (b"b", ("two",)),
    (b"c", ("three",)),
    (b"d", ("four", "more")),
    (b"e", ("five",)),
  ]


@pytest.mark.parametrize("part", range(4))
def test_a_column_that_is_not_there_is_refused(spec, part):
  path = spec.split("::")[part]
  how = opening.recognised(path)
  with pytest.raises(
    ValueError, match=r"\.(csv|parquet): expected .*phota.* got .*photo"
  ):
    open_source(how, path, Options(caption_key="words", image_key="phota"))
  with pytest.raises(
    ValueError, match=r"\.(csv|parquet): expected .*word\b.* got .*words"
  ):
    open_source(how, path, Options(caption_key="word", image_key="photo"))


def test_strictness_and_a_cache_are_passed_on(spec, tmp_path):
  csv, *_, tar = spec.split("::")
  options = {"caption_key": "words", "image_key": "photo", "cache": tmp_path / "cache"}
  (tmp_path / "4.tar.index").mkdir()
  open_source("tar", tar, Options(**options))
  assert len(list((tmp_path / "cache").iterdir())) == 1
  (tmp_path / "a.png").unlink()
  put(tar, tars.tar({"0.jpg": b"e", "0.txt": b"y"}))
  for how, path in (("csv", csv), ("tar", tar)):
    assert len(open_source(how, path, Options(**options))) == 1
    with pytest.raises(
      ValueError, match="0.csv, line 2: there is no|has 1 faults: .*tar"
    ):
      open_source(how, path, Options(**options, strict=True))


@pytest.mark.parametrize(
  "spec, how",
  [
    ("a/{0..3}.tar::b/*.tar", "tar"),
    ("a.csv::B.TSV", "csv"),
    ("a.parquet::a.csv", "mixture"),
    ("tfds:coco@test", "tfds"),
    ("a.arrayrecord::a.array_record*", "array_record"),
    ("folder", None),
    ("", None),
  ],
)
def test_formats_are_told_by_endings(spec, how):
  assert opening.recognised_all(spec) == how
  if how is None:
    with pytest.raises(ValueError, match="the ending says no format|names no data"):
      open_source("mixture", spec, Options())
