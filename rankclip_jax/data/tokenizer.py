"""OpenAI CLIP's byte-pair tokenizer, with the text cleaning that belongs to it."""

import html
from collections.abc import Sequence

import ftfy
import instant_clip_tokenizer
import numpy as np

VOCABULARY_SIZE = 49408
START_OF_TEXT = 49406
END_OF_TEXT = 49407  # The highest id, so that argmax finds it.


def clean(text: str) -> str:
  """Cleans a caption as OpenAI CLIP does, so that it gets the ids CLIP was trained on.

  Repairs mojibake, unescapes HTML twice (web captions are often escaped twice),
  collapses white space and lower-cases.
  """
  # Of printable ASCII without entities the rest changes nothing, and most captions are.
  if not (text.isascii() and text.isprintable() and "&" not in text):
    text = _repaired(text)
  return " ".join(text.split()).lower()


def _repaired(text: str) -> str:
  return html.unescape(html.unescape(ftfy.fix_text(text)))


class Tokenizer:
  """Maps texts to fixed-length rows of ids, as open_clip's `SimpleTokenizer` does.

  Of the characters in Unicode 14, all but one are treated alike: open_clip drops U+0345
  (a Greek combining mark). A text that spells "<end_of_text>" gets that very token, as
  in open_clip. May be called from several threads at once.
  """

  def __init__(self, context_length: int = 77):
    """Loads the vocabulary.

    Args:
      context_length: ids in a row, start and end of text included.

    Raises:
      ValueError: if `context_length` leaves no room for a token.
    """
    if context_length < 3:
      raise ValueError(
        f"context_length must be at least 3 (start, one token, end), got {context_length}"
      )
    self.context_length = context_length
    # The package is compiled and comes without type stubs.
    self._bpe = instant_clip_tokenizer.Tokenizer()  # pyright: ignore

  def __call__(self, texts: Sequence[str]) -> np.ndarray:
    """Returns int32 [batch, length]: start, tokens, end, then zeros.

    A text that is too long is cut so that it still ends in the end-of-text token.

    Raises:
      ValueError: if `texts` is one string, which is a sequence of strings by accident.
    """
    if isinstance(texts, str):
      raise ValueError(f"texts must be a sequence of strings, got the string {texts!r}")
    ids = self._bpe.tokenize_batch(
      [clean(text) for text in texts], context_length=self.context_length
    )
    return ids.astype(np.int32)

  def ids(self, text: str) -> list[int]:
    """The ids of a text, however many, without start and end."""
    return self._bpe.encode(clean(text))

  def __reduce__(self):
    return Tokenizer, (self.context_length,)

  def facts(self) -> dict[str, str | int]:
    """Returns what a checkpoint must record for its texts to be tokenised alike."""
    return {
      "name": "openai-clip-bpe",
      "vocabulary_size": VOCABULARY_SIZE,
      "context_length": self.context_length,
    }
