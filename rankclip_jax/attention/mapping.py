"""`--config.mode=attention`: word-level maps of pictures (the paper's Fig. 7).

The paper does not say how its maps were made. `relevance` has the published method that
is used here for each kind of image tower.

The map of a word is that of the word alone, in the place of `{}` in `attention.prompt`,
and not of its share in the caption: the text tower has one output, at the end of the
text, in which all its layers have mixed the words, and no part of it is the word's. A
short text is what the model was trained to compare with pictures, and its cosine says
whether there is anything to see. What the word does within the caption is the number
beneath: its part in the relevance of all the caption's tokens (`relevance.of_text`).
"""

import dataclasses
import pathlib
from collections.abc import Sequence

import jax
import numpy as np
from PIL import Image

from rankclip_jax import inference, start
from rankclip_jax.attention import drawing, relevance, words
from rankclip_jax.config import Config
from rankclip_jax.data import transforms
from rankclip_jax.interop import Weights
from rankclip_jax.models.sizes import TwoTowerSize, ViTSize
from rankclip_jax.search import drawn, embedding, models, queries


def run(cfg: Config, workdir: pathlib.Path) -> str:
  """Draws a panel for every picture in `workdir/attention`; returns their numbers.

  Raises:
    ValueError: if there is no picture or no caption, one of them is empty or cannot be
      read, or a model is of an unknown kind.
  """
  settings = cfg.attention
  paths = pictures_of(settings.images)
  captions = captions_of(settings.captions)
  _check_readable(paths)
  folder = drawn.folder(workdir, "attention")
  rows = [[[] for _ in captions] for _ in paths]
  for name, _, weights in models.each(
    cfg, workdir, settings.compare, "config.attention.compare"
  ):
    explainer = Explainer(name, weights, captions, settings.prompt)
    for of_picture, path in zip(rows, paths, strict=True):
      for of_caption, row in zip(of_picture, explainer(path), strict=True):
        of_caption.append(row)
  names = queries.distinct([queries.file_name(path.stem) for path in paths])
  said = []
  for name, path, of_picture in zip(names, paths, rows, strict=True):
    made = folder / f"{name}.png"
    pairs = list(zip(captions, of_picture, strict=True))
    drawn.save(drawing.draw(path.name, pairs), made)
    said += [f"{embedding.printable(str(path))}", *_table(pairs), f"Maps: {made}"]
  return "\n".join(said)


class Explainer:
  """Makes rows of maps of one model, for all captions at once."""

  def __init__(self, name: str, weights: Weights, captions: Sequence[str], prompt: str):
    size = dataclasses.replace(weights.size, dtype="float32")
    self._name = name
    self._size = size
    self._params = jax.device_put(weights.params)
    self._model = inference.Model(dataclasses.replace(weights, size=size))
    tokenizer = self._model.tokenizer
    self._captions = [words.read(caption, tokenizer) for caption in captions]
    self._prompt = prompt
    texts = [*captions, *(self._alone(w) for c in self._captions for w in c.words)]
    self._place = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    self._texts = self._model.encode_text(list(self._place))
    self._tokens = tokenizer(captions)

  def __call__(self, path: pathlib.Path) -> list[drawing.Row]:
    """A row for every caption.

    Raises:
      ValueError: naming the picture, if it cannot be read.
    """
    seen = self._model.preprocess(path)
    found = relevance.of_image(self._size, self._params, seen, self._texts)
    _, tokens = relevance.of_text(self._size, self._params, self._tokens, found.embedding)
    cosines = self._texts @ np.asarray(found.embedding)
    maps = np.asarray(found.maps)
    how = {k: v for k, v in self._model.resizing.items() if k != "image_size"}
    with Image.open(path) as opened:
      picture = transforms.resize_center_crop(opened, drawing.TILE, **how)

    def map_of(label: str, text: str, share: float | None) -> drawing.Map:
      i = self._place[text]
      values = f"{cosines[i]:.3f}" + ("" if share is None else f"   {share:.0%}")
      return drawing.Map(label, values, maps[i])

    rows = []
    for caption, weight in zip(self._captions, np.asarray(tokens), strict=True):
      whole = map_of("the caption", caption.text, None)
      shares = shares_of(caption, weight)
      each = [
        map_of(word.text, self._alone(word), share)
        for word, share in zip(caption.words, shares, strict=True)
      ]
      method = method_of(self._size)
      rows.append(
        drawing.Row(
          self._name, method, picture, [whole, *each], caption.left_out, caption.cut
        )
      )
    return rows

  def _alone(self, word: words.Word) -> str:
    return self._prompt.replace("{}", word.text)


def shares_of(caption: words.Caption, tokens: np.ndarray) -> list[float]:
  """What part of the relevance of a caption's tokens is each word's.

  Args:
    caption: whose tokens between start and end of text are counted.
    tokens: their relevance, [length].
  """
  total = tokens[1 : caption.end].sum()
  return [
    float(tokens[word.tokens].sum() / total) if total > 0 else 0.0
    for word in caption.words
  ]


def method_of(size: TwoTowerSize) -> list[str]:
  """How a model's maps are made, and how fine they are."""
  grid = f"{size.vision.grid} x {size.vision.grid}"
  if isinstance(size.vision, ViTSize):
    return [f"{grid} patches", "relevance by gradients", "(Chefer et al. 2021)"]
  return [f"{grid} positions", "Grad-CAM", "(Selvaraju et al. 2017)"]


def pictures_of(given: str) -> list[pathlib.Path]:
  """The pictures that `attention.images` names, in its order, folders sorted.

  Raises:
    ValueError: if there are none, or one is not there.
  """
  out = []
  for part in filter(None, (part.strip() for part in given.split(","))):
    path = start.path_of(part)
    if path.is_dir():
      out += [path / name for name in embedding.pictures_below(path)]
    elif path.is_file():
      out.append(path)
    else:
      raise ValueError(f"config.attention.images names {path}, which does not exist.")
  if not out:
    raise ValueError(
      "There is no picture to look at; give --config.attention.images=PICTURE or FOLDER, "
      "or several, separated by commas."
    )
  return out


def _check_readable(paths: Sequence[pathlib.Path]) -> None:
  """Before any model runs, for minutes, on those that come before a broken one."""
  for path in paths:
    try:
      with Image.open(path) as picture:
        transforms.to_rgb(picture)
    except Exception as error:  # Pillow's decoders raise a dozen kinds
      raise ValueError(
        f"config.attention.images names {path}, which cannot be read: {error}; remove it."
      ) from error


def captions_of(given: str) -> list[str]:
  """The captions that `attention.captions` names.

  Raises:
    ValueError: if there are none, or one is empty.
  """
  if not given.strip():
    raise ValueError(
      'There is no caption; give --config.attention.captions="A RED HEART", or several '
      "between ::."
    )
  captions = [caption.strip() for caption in given.split("::")]
  if not all(captions):
    number = captions.index("") + 1
    raise ValueError(
      f"Caption {number} of {len(captions)} in config.attention.captions={given!r} is "
      "empty; give a text between every two ::."
    )
  return captions


def _table(pairs: Sequence[tuple[str, Sequence[drawing.Row]]]) -> list[str]:
  """Every text of every row with its numbers."""
  lines = []
  for caption, rows in pairs:
    for row in rows:
      lines.append(f"  {row.model}: {embedding.printable(caption)}")
      lines += [f"    {m.values:14}  {embedding.printable(m.label)}" for m in row.maps]
      if row.cut:
        lines.append(
          f"    1 word is read in part, and has no map: {embedding.printable(row.cut)}"
        )
      if row.left_out:
        count = len(row.left_out)
        words_are = "1 word is" if count == 1 else f"{count} words are"
        lines.append(
          f"    {words_are} more than the model reads, and left out: "
          + embedding.printable(" ".join(row.left_out))
        )
  return lines
