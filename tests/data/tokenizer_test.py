import concurrent.futures
import importlib.util
import pathlib
import random
import string
import sys

import hypothesis
import instant_clip_tokenizer
import numpy as np
import pytest
from hypothesis import strategies as st

from rankclip_jax.data.tokenizer import (
  END_OF_TEXT,
  START_OF_TEXT,
  VOCABULARY_SIZE,
  Tokenizer,
  clean,
)

_LENGTH = 16

TRICKY = [
  "a photo of a cat",
  "",
  " \t\n ",
  "Tom &amp;amp; Jerry&#39;s &lt;b&gt;caf&eacute;&lt;/b&gt;",
  "&ampamp; &notanentity; &",
  "👍🏽 family 👨‍👩‍👧 flag 🇫🇷",
  "nul\x00 bell\x07 escape\x1b[0m next\x85line",
  "zero\u200bwidth joi\u200dner \ufeffbom non\xa0breaking",
  "line\u2028paragraph\u2029separators",
  "東京の桜 사진 漢字",
  "हिन्दी العربية עברית ไทย",
  "İstanbul STRASSE ß ΣΑΣ ǅ",
  "naïve e\u0301 ﬁ ½ Ⅷ ²",
  "schÃ¶n â€œquotedâ€",  # mojibake
  "It's WE'RE i'll don't o'clock 'tis",
  "snake_case kebab-case a.b,c!!!???",
  "3.14 1234567 v2",
  "<end_of_text> and <start_of_text> and <|endoftext|>",
  "long " * 100,
  "pneumonoultramicroscopicsilicovolcanoconiosis" * 3,
]


@pytest.fixture(scope="module")
def tokenizer():
  return Tokenizer(_LENGTH)


@pytest.fixture(scope="module")
def open_clip_tokenizer():
  """open_clip's tokenizer file alone: the package itself imports torchvision."""
  if sys.version_info >= (3, 12):  # where the peers are not pinned
    pytest.importorskip("torch")
  package = importlib.util.find_spec("open_clip")
  assert package is not None, "pip install --no-deps -r requirements-peers.txt"
  assert package.origin is not None
  path = pathlib.Path(package.origin).with_name("tokenizer.py")
  spec = importlib.util.spec_from_file_location("open_clip_tokenizer", path)
  assert spec is not None
  assert spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.SimpleTokenizer()


@pytest.mark.parametrize("text", TRICKY)
def test_equals_open_clip(tokenizer, open_clip_tokenizer, text):
  expected = open_clip_tokenizer([text], context_length=_LENGTH).numpy()
  np.testing.assert_array_equal(tokenizer([text]), expected)


# Not yet in Unicode 14, or the one character that is known to be treated otherwise.
_CHARACTERS = st.characters(exclude_categories=["Cn", "Cs"], exclude_characters="\u0345")


@hypothesis.given(st.text(_CHARACTERS, max_size=12))
@hypothesis.settings(max_examples=300, deadline=None)
def test_equals_open_clip_on_any_text(tokenizer, open_clip_tokenizer, text):
  expected = open_clip_tokenizer([text], context_length=_LENGTH).numpy()
  np.testing.assert_array_equal(tokenizer([text]), expected)


def _captions(count):
  """Web captions: words, mended and broken, in several scripts, of any length."""
  rng = random.Random(0)
  bpe = instant_clip_tokenizer.Tokenizer()
  words = [bpe.decode([i]).strip() for i in range(512, START_OF_TEXT)]
  words = [w for w in words if "\ufffd" not in w]
  emoji = [chr(c) for c in (*range(0x1F300, 0x1F650), *range(0x2600, 0x27BF))]
  scripts = [(0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0x0410, 0x044F), (0x0621, 0x064A)]
  makers = (
    lambda: rng.choice(words),
    lambda: rng.choice(words).upper(),
    lambda: rng.choice(words) + rng.choice([".", ",", "!?", "'s", "-", "…", "//"]),
    lambda: rng.choice(emoji) + rng.choice(["", "\ufe0f", "\u200d" + rng.choice(emoji)]),
    lambda: rng.choice(
      ["&amp;", "&lt;b&gt;", "&#39;", "&quot;", "&eacute;", "&amp;nbsp;"]
    ),
    lambda: chr(rng.randrange(32)) + rng.choice(words) + chr(0x7F + rng.randrange(33)),
    lambda: rng.choice(["naïve café", "Ünïcode", "日本語"]).encode().decode("latin-1"),
    lambda: "".join(chr(rng.randint(*rng.choice(scripts))) for _ in range(4)),
    lambda: rng.choice("aeinou") + chr(0x300 + rng.randrange(0x40)),
    lambda: f"https://{rng.choice(words)}.com/?q={rng.randrange(10**6)}&x=%20",
    lambda: str(rng.random() * 10 ** rng.randrange(9)),
    lambda: rng.choice(
      ["<end_of_text>", "<start_of_text>", "<|endoftext|>", "#tag", "@me"]
    ),
  )
  for _ in range(count):
    length = rng.choice([0, 1, 3, 5, 8, 13, 120])
    yield rng.choice([" ", "  ", "\t", "\n"]).join(
      rng.choice(makers)() for _ in range(length)
    )


def test_equals_open_clip_on_10_000_captions(open_clip_tokenizer):
  captions = list(_captions(10_000))
  ours = Tokenizer(77)(captions)
  differing = [
    (caption, row.tolist(), theirs.tolist())
    for caption, row, theirs in zip(
      captions,
      ours,
      open_clip_tokenizer(captions, context_length=77).numpy(),
      strict=True,
    )
    if (row != theirs).any()
  ]
  assert not differing[:3]
  assert (ours[:, -1] == END_OF_TEXT).sum() > 1000  # over-long ones are among them


def test_ids_are_those_of_openai_clip(tokenizer):
  """The ids that openai/CLIP's tokenize gives, which open_clip's equal."""
  ids = tokenizer(["A photo  of a cat &amp; a dog"])
  expected = [49406, 320, 1125, 539, 320, 2368, 261, 320, 1929, 49407]
  assert ids.tolist() == [expected + [0] * (_LENGTH - len(expected))]


@pytest.mark.parametrize(
  "text, expected",
  [
    ("  Two\t WORDS\n", "two words"),
    ("a &amp;amp; b &lt;i&gt;", "a & b <i>"),
    ("schÃ¶n", "schön"),
    ("&nbsp;\u3000", ""),
  ],
)
def test_clean(text, expected):
  assert clean(text) == expected


@hypothesis.given(
  st.lists(st.text(_CHARACTERS | st.sampled_from(string.printable)), max_size=4),
  st.sampled_from([Tokenizer(3), Tokenizer(8), Tokenizer(77)]),
)
@hypothesis.settings(deadline=None)
def test_rows_have_one_start_one_end_and_zeros(texts, tokenizer):
  ids = tokenizer(texts)
  assert ids.shape == (len(texts), tokenizer.context_length)
  assert ids.dtype == np.int32
  assert ((ids >= 0) & (ids < VOCABULARY_SIZE)).all()
  for row in ids:
    end = row.argmax()
    assert row[0] == START_OF_TEXT
    assert np.flatnonzero(row == END_OF_TEXT).tolist() == [end]
    assert np.flatnonzero(row == START_OF_TEXT).tolist() == [0]
    assert not row[end + 1 :].any()


def test_an_over_long_text_is_cut_and_ends_in_end_of_text():
  ids = Tokenizer(5)(["a a a", "a a a a"])
  assert ids.tolist() == [[START_OF_TEXT, 320, 320, 320, END_OF_TEXT]] * 2


def test_threads_agree(tokenizer):
  texts = [f"caption number {i} of {TRICKY[i % len(TRICKY)]}" for i in range(400)]
  expected = tokenizer(texts)
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    for ids in pool.map(tokenizer, [texts] * 8):
      np.testing.assert_array_equal(ids, expected)


@pytest.mark.parametrize("length", [-1, 0, 2])
def test_too_short_a_context_is_an_error(length):
  with pytest.raises(ValueError, match=f"at least 3 .* got {length}"):
    Tokenizer(length)


def test_a_bare_string_is_an_error(tokenizer):
  with pytest.raises(ValueError, match="'a cat'"):
    tokenizer("a cat")


def test_facts():
  assert Tokenizer(32).facts() == {
    "name": "openai-clip-bpe",
    "vocabulary_size": 49408,
    "context_length": 32,
  }
