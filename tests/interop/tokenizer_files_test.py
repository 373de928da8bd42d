"""The vocabulary that is asked out of the tokenizer, against open_clip's file of it."""

import gzip
import importlib.util
import pathlib

from rankclip_jax.interop import tokenizer_files


def published_merges() -> list[str]:
  spec = importlib.util.find_spec("open_clip")
  assert spec is not None
  assert spec.origin is not None
  path = pathlib.Path(spec.origin).parent / "bpe_simple_vocab_16e6.txt.gz"
  lines = gzip.decompress(path.read_bytes()).decode().split("\n")
  return lines[1 : 49152 - 256 - 2 + 1]  # as many as OpenAI uses of them


def test_merges_are_those_that_openai_published(tmp_path):
  tokenizer_files.write(tmp_path, context_length=77)
  lines = (tmp_path / "merges.txt").read_text(encoding="utf-8").splitlines()
  assert lines[0] == "#version: 0.2"
  assert lines[1:] == published_merges()


def test_ids_are_those_of_open_clip():
  import peers

  tokens, _ = tokenizer_files.vocabulary()
  theirs = peers.open_clip.get_tokenizer("ViT-B-32").encoder
  rename = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
  assert tokens == {rename.get(token, token): i for token, i in theirs.items()}
