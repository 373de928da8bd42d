"""CLIP's vocabulary as the files that the transformers library reads.

No package that this project needs at run time ships OpenAI's list of merges, but
instant-clip-tokenizer is compiled with it, and answers: a merge is the token that follows
the one before it, and the pair it merges is what the merges before it leave of its bytes.
"""

import functools
import hashlib
import itertools
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import instant_clip_tokenizer

from rankclip_jax.interop import described, files

START, END = "<|startoftext|>", "<|endoftext|>"  # as transformers spells them
_CLASSES = ("CLIPTokenizer", "CLIPTokenizerFast")  # of transformers
# Of `vocabulary`, which takes seconds.
TOKENS_DIGEST = "3d0909ff482f695c846bd03f446dca43"
MERGES_DIGEST = "883ce8fc1d83a8d8db43dc2299f4c5a4"
_MERGES = 48894
_BYTES = 256  # the first ids: every byte, then every byte at the end of a word
_WORD_END = "</w>"
_NO_RANK = 1 << 30
# Bytes that have a printable character in Latin-1 stand for themselves, and come first.
_PRINTABLE = (*range(33, 127), *range(161, 173), *range(174, 256))
_ORDER = (*_PRINTABLE, *(b for b in range(_BYTES) if b not in _PRINTABLE))
_LETTERS = "".join(map(chr, (*_PRINTABLE, *range(_BYTES, 2 * _BYTES - len(_PRINTABLE)))))
# Bytes that make a fragment of UTF-8 whole: the lead of what it continues ...
_LEADS = (b"", b"\xc3", b"\xe1", b"\xf1")
# ... and the continuation of what it begins.
_TAILS = [
  bytes(tail)
  for count in range(4)
  for tail in itertools.product((0x80, 0xA0, 0x90), repeat=count)
]


@functools.cache
def vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
  """Every token with its id, and the merges in order, as OpenAI published them."""
  tokenizer = instant_clip_tokenizer.Tokenizer()  # pyright: ignore
  letter = dict(zip(_ORDER, _LETTERS, strict=True))
  tokens = [*_LETTERS, *(x + _WORD_END for x in _LETTERS)]
  for i in range(len(tokens), tokenizer.start_of_text()):
    data = _bytes_of(tokenizer, i)
    word_end = _WORD_END if data.endswith(b" ") else ""
    tokens.append("".join(letter[b] for b in data.removesuffix(b" ")) + word_end)
  ranks: dict[tuple[str, str], int] = {}
  for rank, token in enumerate(tokens[2 * _BYTES :]):
    ranks[_pair(token, ranks)] = rank
  return {token: i for i, token in enumerate([*tokens, START, END])}, list(ranks)


def write(folder: pathlib.Path, context_length: int) -> None:
  """Writes vocab.json, merges.txt and the tokenizer's configs for `CLIPTokenizer`."""
  tokens, merges = vocabulary()
  special = {"bos_token": START}
  special |= dict.fromkeys(("eos_token", "unk_token", "pad_token"), END)
  contents = {
    "vocab.json": tokens,
    "special_tokens_map.json": special,
    "tokenizer_config.json": special
    | {
      "tokenizer_class": "CLIPTokenizer",
      "model_max_length": context_length,
      "do_lower_case": True,
    },
  }
  for name, content in contents.items():
    text = json.dumps(content, ensure_ascii=False)
    (folder / name).write_text(text, encoding="utf-8")
  lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
  (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def check(folder: pathlib.Path) -> bool:
  """Whether a folder has CLIP's tokenizer; False if it has the files of none.

  Raises:
    ValueError: if it has those of another, naming the file and the key.
  """
  config = folder / "tokenizer_config.json"
  kind = files.read_json(config).get("tokenizer_class") if config.is_file() else None
  if kind not in (*_CLASSES, None):
    raise ValueError(
      f"{config}: tokenizer_class is {kind!r}, which is not supported; it must be CLIP's "
      f"own, {' or '.join(_CLASSES)}."
    )
  found = list(_vocabularies(folder))
  for file, key, content, wanted in found:
    if digest(content) != wanted:
      count = len(content) if isinstance(content, list | dict) else "no"
      raise ValueError(
        f"{file}: the {key} with its {count} entries are those of another tokenizer than "
        "CLIP's, or damaged; only CLIP's own is supported."
      )
  return bool(found)


def digest(content: Any) -> str:
  """Of what a JSON file holds."""
  text = json.dumps(content, sort_keys=True)
  return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _vocabularies(
  folder: pathlib.Path,
) -> Iterator[tuple[pathlib.Path, str, Any, str]]:
  """Every list of tokens or merges: its file, its key, itself, and CLIP's digest."""
  file = folder / "vocab.json"
  if file.is_file():
    yield file, "vocab", files.read_json(file), TOKENS_DIGEST
  file = folder / "merges.txt"
  if file.is_file():
    # A version, then the merges; OpenAI published more of them than CLIP's first.
    lines = files.read_text(file).split("\n")[1:]
    yield file, "merges", lines[:_MERGES], MERGES_DIGEST
  file = folder / "tokenizer.json"
  if file.is_file():
    model = described.section(files.read_json(file), "model", file)
    yield file, "model.vocab", model.get("vocab"), TOKENS_DIGEST
    merges = model.get("merges")
    if isinstance(merges, list):  # pairs, in older files one string
      merges = [" ".join(map(str, m)) if isinstance(m, list) else m for m in merges]
    yield file, "model.merges", merges, MERGES_DIGEST


def _bytes_of(tokenizer, token: int) -> bytes:
  """The bytes of a token, which need not be whole characters; a space ends a word.

  The tokenizer decodes to text only, where "\ufffd" stands for what is not whole.
  """
  ids = {b: i for i, b in enumerate(_ORDER)}
  for lead, tail in itertools.product(_LEADS, _TAILS):
    around = [ids[b] for b in lead], [ids[b] for b in tail]
    text = tokenizer.decode([*around[0], token, *around[1]])
    if "\ufffd" not in text:
      data = text.encode()
      return data[len(lead) : len(data) - len(tail)]
  return tokenizer.decode([token]).encode()  # the token is "\ufffd" itself


def _pair(token: str, ranks: dict[tuple[str, str], int]) -> tuple[str, str]:
  """What the merges so far make of a token's letters: the two that it merges."""
  parts = list(token.removesuffix(_WORD_END))
  parts[-1] += _WORD_END if token.endswith(_WORD_END) else ""
  while len(parts) > 2:
    first, second = min(
      itertools.pairwise(parts), key=lambda pair: ranks.get(pair, _NO_RANK)
    )
    assert (first, second) in ranks, token
    merged, i = [], 0
    while i < len(parts):
      found = parts[i : i + 2] == [first, second]
      merged.append(first + second if found else parts[i])
      i += 2 if found else 1
    parts = merged
  return parts[0], parts[1]
