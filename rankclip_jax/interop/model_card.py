"""The README.md that goes with exported weights: what they are and how to use them."""

import dataclasses
import json
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Literal

from rankclip_jax.models.sizes import (
  SIZES,
  VOCAB_SIZE,
  ResNetSize,
  TwoTowerSize,
  ViTSize,
)

Library = Literal["transformers", "open_clip"]
MARK = "rankclip_jax"  # a tag, by which an export is known as one
FILE = "README.md"

_DATA, _OBJECTIVE = "Training data", "Objective"
# What the Hub calls our tasks, where it has a word.
_HUB_TASKS = {"zeroshot_classification": "zero-shot-image-classification"}

_USAGE = {
  "transformers": """\
import torch
from PIL import Image
from transformers import CLIPModel, CLIPProcessor

model = CLIPModel.from_pretrained({folder})
processor = CLIPProcessor.from_pretrained({folder})
texts = ["a photo of a cat", "a photo of a dog"]
inputs = processor(
    text=texts, images=Image.open("cat.jpg"), padding=True, truncation=True,
    return_tensors="pt",
)
with torch.no_grad():
    print(model(**inputs).logits_per_image.softmax(dim=-1))
""",
  "open_clip": """\
import open_clip
import torch
from PIL import Image

name = "local-dir:" + {folder}
model, _, preprocess = open_clip.create_model_and_transforms(name)
tokenizer = open_clip.get_tokenizer(name)
model.eval()
image = preprocess(Image.open("cat.jpg"))[None]
texts = tokenizer(["a photo of a cat", "a photo of a dog"])
with torch.no_grad():
    print(model.get_logits(image, texts)[0].softmax(dim=-1))
""",
}
_CITATION = """\
@article{zhang2024rankclip,
  title={RankCLIP: Ranking-Consistent Language-Image Pretraining},
  author={Zhang, Yiming and Zhao, Zhuokai and Chen, Zhaorun and Feng, Zhili and
          Ding, Zenghui and Sun, Yining},
  journal={arXiv preprint arXiv:2404.09387},
  year={2024}
}
"""


@dataclasses.dataclass(frozen=True)
class Card:
  """What a model card says of a run, beside what its size tells.

  Attributes:
    name: of the model, its title.
    licence: of the weights, by the identifiers of the Hugging Face Hub ("apache-2.0",
      "cc-by-sa-4.0", "other").
    data: what it was trained on, in a sentence or by name.
    objective: the loss, with its weights.
    metrics: results by DATASET/TASK/METRIC; None is what is not defined, and left out.
    training: other facts of the run by name, such as steps and batch size.
  """

  name: str
  licence: str
  data: str
  objective: str
  metrics: Mapping[str, float | None] = dataclasses.field(default_factory=dict)
  training: Mapping[str, object] = dataclasses.field(default_factory=dict)


def architecture_of(size: TwoTowerSize) -> str:
  """The published name of an architecture, or else what its image tower is."""
  shape = lambda s: (
    dataclasses.replace(s.vision, image_size=0),
    dataclasses.replace(s.text, context_length=0, vocab_size=0),
    s.embed_dim,
  )
  names = [name for name, published in SIZES.items() if shape(published) == shape(size)]
  # ViT-L-14 and ViT-L-14-336 differ in nothing else.
  names.sort(key=lambda name: SIZES[name].image_size != size.image_size)
  name = names[0] if names else _image_tower(size.vision)
  return f"{name}-gelu" if names and size.activation == "gelu" else name


def read(folder: pathlib.Path, size: TwoTowerSize) -> Card | None:
  """The card of a former export, of weights that are now of `size`; None for no export.

  Its results are left out if `size` is not what they were measured with.
  """
  path = folder / FILE
  if not path.is_file():
    return None
  text = path.read_text(encoding="utf-8", errors="replace")
  title = re.search(r"^# (.+)$", text, re.MULTILINE)
  licence = re.search(r'^license: "([^"\\]+)"$', text, re.MULTILINE)
  facts = dict(_rows(text, "## Model and training"))
  data, objective = facts.pop(_DATA, None), facts.pop(_OBJECTIVE, None)
  if f"\n- {MARK}\n" not in text or not (title and licence and data and objective):
    return None
  architecture = {k: str(v) for k, v in _architecture(size).items()}
  then = {key: facts.pop(key, None) for key in architecture}
  metrics = dict(_rows(text, "## Results")) if then == architecture else {}
  return Card(
    name=title[1],
    licence=licence[1],
    data=data,
    objective=objective,
    metrics={
      key: float(value) if "." in value else int(value)
      for key, value in metrics.items()
      if re.fullmatch(r"-?\d+(\.\d+)?", value)
    },
    training=facts,
  )


def render(card: Card, size: TwoTowerSize, library: Library, folder: str) -> str:
  """The card as Markdown with YAML before it, for a folder of this name."""
  facts = {**_architecture(size), _DATA: card.data, _OBJECTIVE: card.objective}
  metrics = {k: _number(v) for k, v in card.metrics.items() if v is not None}
  lines = [
    *_front_matter(card, library),
    f"# {_line(card.name)}",
    "",
    "Two towers whose embeddings of pictures and captions can be compared, exported by "
    "rankclip_jax, the JAX implementation of "
    "[RankCLIP](https://arxiv.org/abs/2404.09387).",
    "",
    "## Model and training",
    "",
    *_table(("", ""), {**facts, **card.training}),
    "",
    "## Results",
    "",
    *(
      _table(("metric", "value"), metrics)
      if metrics
      else ["None were given when this was exported."]
    ),
    "",
    "## Use",
    "",
    f"In the folder that holds `{_line(folder)}`, with a picture of yours:",
    "",
    "```python",
    _USAGE[library].format(folder=json.dumps(folder)).rstrip(),
    "```",
    "",
    _tokenizer(size, library),
    "",
    "## Licence",
    "",
    f"Of these weights: {_line(card.licence)}. The training data have licences of their "
    "own.",
    "",
    "## Citation",
    "",
    "```bibtex",
    _CITATION.rstrip(),
    "```",
    "",
  ]
  return "\n".join(lines)


def _front_matter(card: Card, library: Library) -> list[str]:
  return [
    "---",
    f"license: {_quoted(card.licence)}",
    f"library_name: {library}",
    "pipeline_tag: zero-shot-image-classification",
    "tags:",
    "- clip",
    "- rankclip",
    f"- {MARK}",
    *_model_index(card),
    "---",
    "",
  ]


def _model_index(card: Card) -> list[str]:
  """The results as the Hub reads them: one for each data set and task."""
  results: dict[tuple[str, str], list[str]] = {}
  for key, value in card.metrics.items():
    if value is not None and key.count("/") >= 2:
      data, task, metric = key.rsplit("/", 2)
      results.setdefault((data, task), []).extend(
        [f"    - type: {_quoted(metric)}", f"      value: {_number(value)}"]
      )
  lines = []
  for (data, task), metrics in results.items():
    lines += [
      "  - task:",
      f"      type: {_quoted(_HUB_TASKS.get(task, task))}",
      f"      name: {_quoted(task)}",
      "    dataset:",
      f"      type: {_quoted(data)}",
      f"      name: {_quoted(data)}",
      "    metrics:",
      *metrics,
    ]
  if not lines:
    return []
  return ["model-index:", f"- name: {_quoted(card.name)}", "  results:", *lines]


def _image_tower(vision: ViTSize | ResNetSize) -> str:
  if isinstance(vision, ViTSize):
    return f"ViT, {vision.depth} layers, width {vision.width}, patch {vision.patch_size}"
  return f"ResNet, blocks {'-'.join(map(str, vision.blocks))}, width {vision.width}"


def _architecture(size: TwoTowerSize) -> dict[str, object]:
  text = size.text
  words = f"{text.depth} layers, width {text.width}, {text.context_length} tokens"
  return {
    "Image tower": f"{_image_tower(size.vision)}, {size.image_size} pixels square",
    "Text tower": words,
    "Embedding": size.embed_dim,
    "Activation": "QuickGELU" if size.activation == "quick_gelu" else "GELU",
  }


def _tokenizer(size: TwoTowerSize, library: Library) -> str:
  if size.text.vocab_size != VOCAB_SIZE:
    return f"The vocabulary has {size.text.vocab_size} ids; its tokenizer is not here."
  where = "in this folder" if library == "transformers" else "built into open_clip"
  return f"The tokenizer is OpenAI CLIP's, {where}."


def _table(head: tuple[str, str], rows: Mapping[str, object]) -> list[str]:
  cell = lambda value: _line(value).replace("|", "\\|")
  return [
    f"| {head[0]} | {head[1]} |",
    "|---|---|",
    *(f"| {cell(key)} | {cell(value)} |" for key, value in rows.items()),
  ]


def _rows(text: str, heading: str) -> Iterator[tuple[str, str]]:
  """Names and values of the table under a heading, as `_table` wrote it."""
  _, _, rest = text.partition(f"\n{heading}\n")
  lines = rest.partition("\n## ")[0].splitlines()
  for line in [x for x in lines if x.startswith("| ")]:
    cells = re.split(r"(?<!\\)\|", line)
    key, value = ([x.strip().replace("\\|", "|") for x in cells[1:3]] + ["", ""])[:2]
    if key and (key, value) != ("metric", "value"):
      yield key, value


def _line(text: object) -> str:
  """Anything as one line."""
  return " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())


def _quoted(text: str) -> str:
  """One line as a string of YAML, which one of JSON is too."""
  return json.dumps(_line(text), ensure_ascii=False)


def _number(value: float) -> str:
  """Counts as they are, ranks to a tenth, fractions to four digits."""
  if isinstance(value, int):
    return str(value)
  return f"{value:.1f}" if abs(value) >= 10 else f"{value:.4f}"
