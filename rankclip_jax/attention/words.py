"""The words of a caption, and the tokens that the text tower reads of each."""

import dataclasses
import unicodedata

from rankclip_jax.data import tokenizer as tokenizers
from rankclip_jax.data.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Word:
  """A word without the punctuation around it, and where its tokens stand in the row."""

  text: str
  tokens: slice


@dataclasses.dataclass(frozen=True)
class Caption:
  """A caption as the text tower reads it.

  Attributes:
    words: those that fit as a whole into the model's context.
    left_out: the others; none of their tokens is read.
    cut: the word between them, of which only the first tokens are read; "" if none.
    end: the place of the end-of-text token.
  """

  text: str
  words: tuple[Word, ...]
  left_out: tuple[str, ...]
  end: int
  cut: str = ""


def read(text: str, tokenizer: Tokenizer) -> Caption:
  """Splits a caption at white space, where tokens of CLIP's BPE always end.

  Every token of the caption, also of punctuation, belongs to exactly one of the pieces
  between white space, and a piece of mere punctuation is no word. Words come cleaned and
  in lower case, as the tokenizer reads them.

  Raises:
    ValueError: if there is no token to read.
  """
  pieces = tokenizers.clean(text).split()
  if not pieces:
    raise ValueError(f"The caption {text!r} has no words; give a text.")
  room = tokenizer.context_length - 2  # start and end of text
  words, left_out, cut, place = [], [], "", 1
  for piece in pieces:
    count = len(tokenizer.ids(piece))
    word = _bare(piece)
    if word and place + count <= room + 1:
      words.append(Word(word, slice(place, place + count)))
    elif word and place <= room:
      cut = word
    elif word:
      left_out.append(word)
    place += count
  return Caption(text, tuple(words), tuple(left_out), min(place, room + 1), cut)


def _bare(piece: str) -> str:
  """A piece of a caption without punctuation (Unicode's P*) at its ends."""
  inside = [i for i, c in enumerate(piece) if not unicodedata.category(c).startswith("P")]
  return piece[inside[0] : inside[-1] + 1] if inside else ""
