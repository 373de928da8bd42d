"""`--config.mode=search`: the embedded pictures nearest to a text or a picture."""

import dataclasses
import json
import os
import pathlib
import re
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from rankclip_jax import inference, start
from rankclip_jax.config import Config
from rankclip_jax.search import embedding, panel

_NEEDED = ("image", "image_paths", "image_folder", "model", "source")
_NAME_LENGTH = 60  # characters of a panel's file name


@dataclasses.dataclass(frozen=True)
class Index:
  """Embedded pictures. Paths are relative to `folder`; `facts` are of the model."""

  image: np.ndarray
  paths: list[str]
  folder: pathlib.Path
  facts: Mapping[str, Any]
  source: str


def search(cfg: Config, workdir: pathlib.Path) -> str:
  """Draws a panel of the hits in `workdir/search`; returns a table of them.

  Raises:
    ValueError: if there is no query, its picture cannot be read, or the embeddings are
      missing, damaged, or of another model.
  """
  query = cfg.search.query.strip()
  if not query:
    raise ValueError(
      "There is no query; give --config.search.query=TEXT or the path of a picture."
    )
  picture = _picture_of(query)
  index = read(start.path_of(cfg.search.embeddings or workdir / embedding.DEFAULT))
  model = embedding.model_of(cfg, workdir)
  check_same_model(index, model)
  encoded = model.encode_image(picture) if picture else model.encode_text(query)
  places, cosines = nearest(index.image, encoded[0], cfg.search.top)
  folder = start.path_of(cfg.embed.images) if cfg.embed.images else index.folder
  hits = [
    panel.Hit(rank, float(cosine), index.paths[place], folder / index.paths[place])
    for rank, (place, cosine) in enumerate(zip(places, cosines, strict=True), 1)
  ]
  drawn = workdir / "search" / f"{_file_name(picture.stem if picture else query)}.png"
  drawn.parent.mkdir(exist_ok=True)
  panel.draw(picture or query, hits, among=len(index.paths)).save(drawn)
  rows = [
    f"{hit.rank:4}  {hit.cosine:7.4f}  {embedding.printable(hit.name)}" for hit in hits
  ]
  return "\n".join(["rank   cosine  picture", *rows, f"Panel: {drawn}"])


def nearest(
  embeddings: np.ndarray, query: np.ndarray, top: int
) -> tuple[np.ndarray, np.ndarray]:
  """Places and cosines of the `top` nearest, the nearest first; of equals, the first.

  Args:
    embeddings: of length 1, [n, dim].
    query: of length 1, [dim].
    top: how many, if there are as many.
  """
  cosines = embeddings @ query
  order = np.argsort(-cosines, stable=True)[:top]
  return order, cosines[order]


def read(path: pathlib.Path) -> Index:
  """What mode=embed wrote to `path`.

  Raises:
    ValueError: if there is no such file, it is damaged or something else, or holds no
      pictures.
  """
  remedy = "write it with --config.mode=embed --config.embed.images=FOLDER"
  if not path.is_file():
    raise ValueError(f"There are no embeddings {path}; {remedy}.")
  try:
    with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
      arrays = {name: file[name] for name in _NEEDED}
    index = Index(
      image=arrays["image"],
      paths=arrays["image_paths"].tolist(),
      folder=pathlib.Path(str(arrays["image_folder"])),
      facts=json.loads(str(arrays["model"])),
      source=str(arrays["source"]),
    )
    whole = index.image.ndim == 2 and len(index.image) == len(index.paths)
  except (
    KeyError,
    ValueError,
    OSError,
    EOFError,
    AttributeError,
    zipfile.BadZipFile,
  ) as e:
    raise ValueError(
      f"{path} is damaged or not of mode=embed ({type(e).__name__}: {e}); {remedy}."
    ) from e
  if not whole:
    raise ValueError(f"{path}: its embeddings and paths do not match; {remedy}.")
  if not index.paths:
    raise ValueError(f"{path} holds texts and no pictures to search; {remedy}.")
  return index


def check_same_model(index: Index, model: inference.Model) -> None:
  """Refuses to compare embeddings of two models.

  Raises:
    ValueError: naming what differs and what to do.
  """
  then = flatten_dict(index.facts, sep=".")
  now = flatten_dict(json.loads(json.dumps(model.facts)), sep=".")
  wrong = [
    f"{key}: {then.get(key)} embedded, {now.get(key)} now"
    for key in sorted(then.keys() | now.keys())
    if then.get(key) != now.get(key)
  ]
  if not wrong:
    return
  raise ValueError(
    f"The embeddings are of another model ({index.source}) than the query would be "
    f"({model.source}):\n  "
    + "\n  ".join(wrong)
    + "\nEmbed the pictures again with --config.mode=embed, or name the model they were "
    "made with by --config.eval.checkpoint=STEP, or by --config.init.weights=PATH and a "
    "--workdir without checkpoints (--config.search.embeddings names this file there)."
  )


def _picture_of(query: str) -> pathlib.Path | None:
  """The query as a path, if it is one; None for a text."""
  path = os.path.expanduser(query)
  if os.path.isfile(path):
    return pathlib.Path(path)
  if path.lower().endswith(embedding.SUFFIXES):
    raise ValueError(
      f"config.search.query={query} ends like a picture, and there is no such file; give "
      "the path of one, or a text."
    )
  return None


def _file_name(query: str) -> str:
  """The letters and digits of a query, as the name of a file."""
  words = re.findall(r"\w+", embedding.printable(query))
  return "-".join(words)[:_NAME_LENGTH] or "query"
