import numpy as np
import pytest

from rankclip_jax.data.source import BadExample, Example
from rankclip_jax.data.tokenizer import Tokenizer
from rankclip_jax.data.tools import survey
from tests.data.pictures import encoded, photograph
from tests.data.tools.stub import Stub, bad

JPEG = encoded(photograph(30, 40))


def example(key="k", image=JPEG, captions=("a cat",), shard="a.tar"):
  return Example(key, image, captions, shard)


def surveyed(source, indices=None):
  indices = range(len(source)) if indices is None else indices
  found = survey.Survey()
  for index, shard, facts in survey.looks(source, indices, 3):
    found.add(index, shard, facts)
  return found


def captions_of(found, source, context_length=77):
  return found.caption_numbers(
    context_length, lambda *which: survey.caption_with(source, *which)
  )


def test_samples_are_distinct_in_order_and_by_seed():
  source = Stub([example()] * 1000)
  drawn = survey.sample(source, 100, 0)
  assert len(set(drawn.tolist())) == 100
  assert (np.diff(drawn) > 0).all()
  assert drawn.tolist() == survey.sample(source, 100, 0).tolist()
  assert drawn.tolist() != survey.sample(source, 100, 1).tolist()
  assert survey.sample(source, 1000, 0).tolist() == list(range(1000))


def test_everything_is_looked_at_once_and_in_order():
  source = Stub([example(str(i)) for i in range(100)])
  indices = np.arange(0, 100, 3)
  assert [i for i, _, _ in survey.looks(source, indices, 4)] == indices.tolist()


def test_bad_examples_are_counted_by_reason_and_shard():
  source = Stub(
    [
      example(),
      bad("1", "missing picture"),
      example(image=JPEG[:-200]),
      example(image=b"GIF89a nothing", shard="b.tar"),
      example(captions=()),
      example(captions=("&nbsp;", " ")),
      example(shard="b.tar"),
      example(),
    ]
  )
  found = surveyed(source)
  assert found.read == 8
  assert found.bad_numbers() == {
    "count": 5,
    "fraction": 5 / 8,
    "by_reason": {
      "undecodable picture": 2,
      "missing picture": 1,
      "missing caption": 1,
      "empty caption": 1,
    },
    "by_shard": {"a.tar": {"bad": 4, "read": 6}, "b.tar": {"bad": 1, "read": 2}},
  }


def test_an_error_that_is_not_of_the_data_is_raised():
  with pytest.raises(OSError, match="disk"):
    surveyed(Stub([example(), OSError("the disk is gone")]))


def test_what_comes_with_a_bad_example_is_kept():
  _, shard, found = next(survey.looks(Stub([bad("x", "empty picture")]), [0], 1))
  assert shard == "a.tar"
  assert isinstance(found, BadExample)
  assert found.key == "x"


def test_pictures_are_measured():
  png = encoded(photograph(50, 20).convert("L"), "PNG")
  pixels = np.zeros((10, 11, 3), np.uint8)
  source = Stub([example(image=image) for image in (JPEG, png, JPEG, pixels)])
  numbers = surveyed(source).picture_numbers()
  assert numbers["formats"] == {"JPEG": 2, "PNG": 1, "pixels": 1}
  assert numbers["modes"] == {"RGB": 3, "L": 1}
  assert (numbers["width"]["min"], numbers["width"]["max"]) == (11, 40)
  assert (numbers["height"]["min"], numbers["height"]["max"]) == (10, 50)
  assert (numbers["short_side"]["min"], numbers["short_side"]["max"]) == (10, 30)
  assert numbers["bytes"]["mean"] == (2 * len(JPEG) + len(png) + 330) / 4
  assert numbers["duplicates"] == {"count": 1, "fraction": 0.25}
  assert numbers["decode_seconds"]["min"] > 0


def test_captions_are_counted_as_the_tokenizer_does():
  texts = ["a cat", "Ein Kätzchen &amp; 猫 😀", "dog " * 200, "b"]
  source = Stub([example(captions=(text,)) for text in texts])
  found = surveyed(source)
  rows = [Tokenizer(400)([text])[0] for text in texts]
  assert found.lengths().tolist() == [int(row.argmax()) + 1 for row in rows]
  numbers = captions_of(found, source)
  assert numbers["tokens"]["max"] == 202
  assert numbers["truncated"] == {"count": 1, "fraction": 0.25}
  assert captions_of(found, source, 202)["truncated"]["count"] == 0
  assert captions_of(found, source, 201)["truncated"]["count"] == 1
  assert numbers["tokens_counts"][3] == 1


def test_repeated_captions_are_those_of_other_examples():
  source = Stub(
    [
      example(captions=("a", "a")),
      example(captions=("b", "c", " ")),
      example(captions=("c",)),
      bad("x", "empty picture"),
      example(captions=("c",)),
    ]
  )
  numbers = captions_of(surveyed(source), source)
  assert numbers["count"] == 7
  assert numbers["empty"]["count"] == 1
  assert numbers["per_example"]["max"] == 3
  # a | b c " " | c | c, of which two are repeats
  assert numbers["duplicates"] == {"count": 2, "fraction": 2 / 6}
  assert numbers["most_frequent"] == [{"caption": "c", "count": 3}]


def test_nothing_good_is_no_error():
  source = Stub([bad("x", "empty picture")])
  found = surveyed(source)
  assert found.picture_numbers()["width"]["max"] is None
  assert captions_of(found, source)["count"] == 0
