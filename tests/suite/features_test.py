"""What is kept of embeddings: read where it is whole, made again where it is not."""

import numpy as np
import pytest

from rankclip_jax import inference, suite
from rankclip_jax.suite import arrays
from tests.suite.runs import changed, written


@pytest.fixture
def encoded(monkeypatch):
  """Numbers of texts and of pictures that a model has been given."""
  calls = []
  for name, count in (("encode_text", len), ("encode_pictures", lambda n: n)):
    work = getattr(inference.Model, name)

    def counted(self, given, *args, work=work, count=count, **options):
      calls.append(count(given))
      return work(self, given, *args, **options)

    monkeypatch.setattr(inference.Model, name, counted)
  return calls


def whole(path):
  names = ("weights",) if "classifier" in path.name else ("image",)
  stored = arrays.read(path, names)
  assert stored is not None
  return stored


def test_classifiers_and_captions_are_kept(cfg, tmp_path, encoded):
  cfg = changed(cfg, datasets="stl10,flickr30k")
  suite.run(cfg, tmp_path)
  assert sorted(encoded) == [4, 5, 7, 10]  # pictures of both, captions, classes
  before = written(tmp_path)
  for path in (tmp_path / "results").glob("*.json"):
    path.unlink()
  encoded.clear()
  suite.run(cfg, tmp_path)
  assert not encoded
  assert {k: x["metrics"] for k, x in written(tmp_path).items()} == {
    k: x["metrics"] for k, x in before.items()
  }
  other = tmp_path / "prompts.txt"
  other.write_text("a {c}\nno {c}\n")
  suite.run(changed(cfg, datasets="stl10", templates=str(other)), tmp_path)
  assert encoded == [20]


@pytest.mark.parametrize("how", ["cut", "flipped", "other rows", "empty"])
def test_what_is_damaged_is_made_again(cfg, tmp_path, encoded, caplog, how):
  cfg = changed(cfg, datasets="stl10")
  suite.run(cfg, tmp_path)
  kept = sorted((tmp_path / "features").iterdir())
  assert [p.name.rpartition("_")[0] for p in kept] == ["stl10_classifier", "stl10_test"]
  before = [whole(path) for path in kept]
  for path in kept:
    data = path.read_bytes()
    if how == "other rows":
      arrays.write(path, {name: x[:-1] for name, x in whole(path).items()})
    else:
      middle = bytes([data[len(data) // 2] ^ 1])
      flipped = data[: len(data) // 2] + middle + data[len(data) // 2 + 1 :]
      path.write_bytes({"cut": data[:-50], "flipped": flipped, "empty": b""}[how])
  (tmp_path / "results" / "stl10_zeroshot_classification.json").unlink()
  encoded.clear()
  suite.run(cfg, tmp_path)
  assert sorted(encoded) == [5, 10]
  assert caplog.text.count("is damaged and is made again") == 2 * (how != "other rows")
  for path, old in zip(kept, before, strict=True):
    np.testing.assert_equal(whole(path), old)
  assert not list((tmp_path / "features").glob("*tmp*"))
