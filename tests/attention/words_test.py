"""Words and their tokens, against the tokenizer's own rows."""

import numpy as np
import pytest

from rankclip_jax.attention import words
from rankclip_jax.data.tokenizer import END_OF_TEXT, Tokenizer

TOKENIZER = Tokenizer()
TRICKY = [
  "A red  heart,\tbig!",
  "don't rock'n'roll, y'all's",
  "3.14 of $5 (C++)",
  "naïve café l\u2019été",
  "日本語 テスト ไทย",
  "❤️ heart 👩‍🚀 astronaut",
  "fish &amp; chips &lt;3",
  "skateboarder's pneumonoultramicroscopic",
  "a-b _x_ 'twas x…y",
]


@pytest.mark.parametrize("text", TRICKY)
def test_every_token_is_that_of_its_word(text):
  caption = words.read(text, TOKENIZER)
  (row,) = TOKENIZER([text])
  assert row[caption.end] == END_OF_TEXT
  assert not caption.left_out
  for word in caption.words:
    spelled = TOKENIZER._bpe.decode(row[word.tokens].tolist())
    assert word.text in spelled.replace(" ", "")
  covered = [i for word in caption.words for i in range(*word.tokens.indices(77))]
  assert covered == sorted(set(covered))
  assert set(covered) <= set(range(1, caption.end))


def test_words_come_without_punctuation_around_them():
  caption = words.read("“A” red-hot heart, -- 5$!", TOKENIZER)
  assert [w.text for w in caption.words] == ["a", "red-hot", "heart", "5$"]
  assert words.read("?!", TOKENIZER).words == ()


def test_a_word_of_several_tokens_has_them_all():
  (word,) = words.read("skateboarder", TOKENIZER).words
  assert len(range(*word.tokens.indices(77))) == len(TOKENIZER.ids("skateboarder")) == 2


def test_what_does_not_fit_is_left_out_and_named():
  short = Tokenizer(6)
  caption = words.read("one two three skateboarder five", short)
  assert [w.text for w in caption.words] == ["one", "two", "three"]
  assert caption.cut == "skateboarder"  # "skate" is read
  assert caption.left_out == ("five",)
  whole = words.read("one two three four skateboarder five", short)
  assert (whole.cut, whole.left_out) == ("", ("skateboarder", "five"))
  assert caption.end == 5 == np.argmax(short([caption.text])[0])


def test_a_caption_without_words_is_refused():
  with pytest.raises(ValueError, match="has no words"):
    words.read(" \n", TOKENIZER)
