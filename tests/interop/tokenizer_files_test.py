"""CLIP's vocabulary against open_clip's file of it; whether a folder's is CLIP's."""

import gzip
import importlib.util
import json
import pathlib
import shutil

import peers
import pytest
from folders import CONFIG, change

from rankclip_jax import interop
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
  tokens, merges = tokenizer_files.vocabulary()
  theirs = peers.open_clip.get_tokenizer("ViT-B-32").encoder
  rename = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
  assert tokens == {rename.get(token, token): i for token, i in theirs.items()}
  assert tokenizer_files.digest(tokens) == tokenizer_files.TOKENS_DIGEST
  lines = [" ".join(pair) for pair in merges]
  assert tokenizer_files.digest(lines) == tokenizer_files.MERGES_DIGEST


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
  """What transformers 4 had beside a model, and what transformers 5 writes."""
  folder = tmp_path_factory.mktemp("tokenizer")
  tokenizer_files.write(folder, context_length=12)
  peers.transformers.CLIPTokenizer.from_pretrained(folder).save_pretrained(folder / "5")
  (folder / "5" / "tokenizer.json").rename(folder / "tokenizer.json")
  shutil.rmtree(folder / "5")
  return folder


def test_the_tokenizer_beside_a_model_is_clips(
  transformers_folder, tokenizer_folder, copy, caplog
):
  folder = copy(transformers_folder)
  with caplog.at_level("INFO"):
    interop.read(folder)
  assert "comes without a tokenizer; OpenAI CLIP's is taken" in caplog.text
  caplog.clear()
  shutil.copytree(tokenizer_folder, folder, dirs_exist_ok=True)
  with caplog.at_level("INFO"):
    interop.read(folder)
  assert "tokenizer" not in caplog.text


def spoil(content: str, what: str) -> str:
  """Another tokenizer's file, from CLIP's."""
  if what == "swapped merges":
    first, second, third, *rest = content.split("\n")
    return "\n".join([first, third, second, *rest])
  value = json.loads(content)
  match what:
    case "bert":
      value["tokenizer_class"] = "BertTokenizer"
    case "empty":
      value = {}
    case "swapped":
      value["cat</w>"], value["dog</w>"] = value["dog</w>"], value["cat</w>"]
    case "no model":
      value["model"] = None
    case "no vocab":
      value["model"]["vocab"] = None
    case "fewer merges":
      value["model"]["merges"].pop()
  return json.dumps(value)


@pytest.mark.parametrize(
  "name, what, message",
  [
    ("tokenizer_config.json", "bert", "tokenizer_class is 'BertTokenizer'.*CLIP's own"),
    ("vocab.json", "empty", "the vocab with its 0 entries"),
    ("vocab.json", "swapped", "the vocab with its 49408 entries are those of another"),
    ("merges.txt", "swapped merges", "the merges with its 48894 entries"),
    ("tokenizer.json", "no model", "an object 'model', got None"),
    ("tokenizer.json", "no vocab", "the model.vocab with its no entries"),
    ("tokenizer.json", "fewer merges", "the model.merges with its 48893 entries"),
  ],
)
def test_another_tokenizer_is_refused(
  transformers_folder, tokenizer_folder, copy, name, what, message
):
  folder = copy(transformers_folder)
  shutil.copytree(tokenizer_folder, folder, dirs_exist_ok=True)
  file = folder / name
  file.write_text(spoil(file.read_text(encoding="utf-8"), what), encoding="utf-8")
  with pytest.raises(ValueError, match=message) as error:
    interop.read(folder)
  assert str(file) in str(error.value)


def test_a_name_of_a_tokenizer_counts_with_its_files(
  open_clip_folder, tokenizer_folder, copy
):
  folder = copy(open_clip_folder)
  name = "model_cfg.text_cfg.hf_tokenizer_name"
  change(folder / CONFIG, name, "openai/clip-vit-large-patch14")
  interop.read(folder)
  change(folder / CONFIG, name, "someone/clip")
  with pytest.raises(ValueError, match="hf_tokenizer_name is 'someone/clip'"):
    interop.read(folder)
  shutil.copytree(tokenizer_folder, folder, dirs_exist_ok=True)
  interop.read(folder)
  (folder / "vocab.json").write_text("{}")
  with pytest.raises(ValueError, match="vocab.json: the vocab with its 0 entries"):
    interop.read(folder)
