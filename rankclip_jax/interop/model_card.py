"""The README.md that goes with exported weights: what they are and how to use them."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Literal

from rankclip_jax.models.sizes import VOCAB_SIZE, TwoTowerSize, ViTSize

Library = Literal["transformers", "open_clip"]
MARK = "rankclip_jax"  # a tag, by which an export is known as one

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
    metrics: results by name, fractions.
    training: other facts of the run by name, such as steps and batch size.
  """

  name: str
  licence: str
  data: str
  objective: str
  metrics: Mapping[str, float | None] = dataclasses.field(default_factory=dict)
  training: Mapping[str, object] = dataclasses.field(default_factory=dict)


def render(card: Card, size: TwoTowerSize, library: Library, folder: str) -> str:
  """The card as Markdown with YAML before it, for a folder of this name."""
  facts = {**_architecture(size), "Training data": card.data, "Objective": card.objective}
  lines = [
    *_front_matter(card, library),
    f"# {card.name}",
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
      _table(("metric", "value"), {k: _number(v) for k, v in card.metrics.items()})
      if card.metrics
      else ["None were given when this was exported."]
    ),
    "",
    "## Use",
    "",
    f"In the folder that holds `{folder}`, with a picture of yours:",
    "",
    "```python",
    _USAGE[library].format(folder=json.dumps(folder)).rstrip(),
    "```",
    "",
    _tokenizer(size, library),
    "",
    "## Licence",
    "",
    f"Of these weights: {card.licence}. The training data have licences of their own.",
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
    f"license: {json.dumps(card.licence)}",  # a JSON string is a YAML string
    f"library_name: {library}",
    "pipeline_tag: zero-shot-image-classification",
    "tags:",
    "- clip",
    "- rankclip",
    f"- {MARK}",
    "---",
    "",
  ]


def _architecture(size: TwoTowerSize) -> dict[str, object]:
  vision, text = size.vision, size.text
  if isinstance(vision, ViTSize):
    image = f"ViT, {vision.depth} layers, width {vision.width}, patch {vision.patch_size}"
  else:
    image = f"ResNet, blocks {'-'.join(map(str, vision.blocks))}, width {vision.width}"
  words = f"{text.depth} layers, width {text.width}, {text.context_length} tokens"
  return {
    "Image tower": f"{image}, {size.image_size} pixels square",
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
  cell = lambda value: str(value).replace("|", "\\|").replace("\n", " ")
  return [
    f"| {head[0]} | {head[1]} |",
    "|---|---|",
    *(f"| {cell(key)} | {cell(value)} |" for key, value in rows.items()),
  ]


def _number(value: float | None) -> str:
  return "not defined" if value is None else f"{value:.4f}"
