import pytest

from rankclip_jax.data import picture_files
from rankclip_jax.data.source import BadExample
from tests.data.examples import put


@pytest.mark.parametrize(
  "name, beside, path",
  [
    ("a/0.png", "/data/pairs.csv", "/data/a/0.png"),
    ("../0.png", "/data/pairs.csv", "/data/../0.png"),
    ("0.png", "pairs.csv", "0.png"),
    ("/a/0.png", "/data/pairs.csv", "/a/0.png"),
    ("/a/0.png", "gs://bucket/pairs.csv", "/a/0.png"),
    ("gs://b/0.png", "/data/pairs.csv", "gs://b/0.png"),
    ("s3://b/0.png", "gs://bucket/pairs.csv", "s3://b/0.png"),
    ("a/0.png", "gs://bucket/more/pairs.csv", "gs://bucket/more/a/0.png"),
    ("./0.png", "gs://bucket/pairs.csv", "gs://bucket/0.png"),
    ("../a/0.png", "gs://bucket/more/pairs.csv", "gs://bucket/a/0.png"),
  ],
)
def test_paths_are_relative_to_the_file_that_names_them(name, beside, path):
  assert picture_files.path_of(name, beside) == path


@pytest.mark.parametrize(
  "name, reason",
  [
    ("9.png", "missing picture"),
    ("images", "missing picture"),
    ("0.png/1.png", "missing picture"),
    ("a\0b.png", "missing picture"),
    ("a" * 300, "missing picture"),
    ("nosuchscheme://images/0.png", "missing picture"),
    ("memory://no/such/picture.png", "missing picture"),
    ("empty.png", "empty picture"),
  ],
)
def test_what_is_no_picture_is_named_with_its_row(tmp_path, name, reason):
  (tmp_path / "images").mkdir()
  put(tmp_path / "0.png", b"picture")
  put(tmp_path / "empty.png", b"")
  beside = str(tmp_path / "pairs.csv")
  assert picture_files.read("0.png", beside, "row 1") == b"picture"
  assert picture_files.fault("0.png", beside) == ""
  with pytest.raises(BadExample, match=r"^pairs.csv, row 2: .*out\.$") as error:
    picture_files.read(name, beside, "pairs.csv, row 2")
  assert repr(name) in str(error.value)
  bad = error.value
  assert (bad.key, bad.reason, bad.shard) == (name, reason, beside)
  # Elsewhere, looking takes as long as reading.
  fault = picture_files.fault(name, beside)
  assert (repr(name) in fault) == ("://" not in name)
