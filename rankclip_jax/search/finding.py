"""`--config.mode=search`: the embedded pictures nearest to a text or a picture."""

import dataclasses
import json
import pathlib
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from rankclip_jax import inference, start
from rankclip_jax.config import Config
from rankclip_jax.interop import Weights
from rankclip_jax.search import drawn, embedding, models, panel, queries, side_by_side

_NEEDED = ("image", "image_paths", "image_folder", "model", "source")


@dataclasses.dataclass(frozen=True)
class Index:
  """Embedded pictures. Paths are relative to `folder`; `facts` are of the model."""

  image: np.ndarray
  paths: list[str]
  folder: pathlib.Path
  facts: Mapping[str, Any]
  source: str


@dataclasses.dataclass(frozen=True)
class Answers:
  """What a model has embedded: pictures, and the queries, [queries, dim] of length 1."""

  name: str
  index: Index
  queries: np.ndarray


def search(cfg: Config, workdir: pathlib.Path) -> str:
  """Draws a panel of every query's hits in `workdir/search`; returns tables of them.

  Raises:
    ValueError: if there is no query, its picture cannot be read, or the embeddings of a
      model are missing, damaged, of another model, or of other pictures.
  """
  asked = queries.asked(cfg.search)
  compared = models.each(cfg, workdir, cfg.search.compare, "config.search.compare")
  answers = [_answers(cfg, workdir, asked, *model) for model in compared]
  said, answers = of_shared_pictures(answers)
  own = answers[0].index
  folder = start.path_of(cfg.embed.images) if cfg.embed.images else own.folder
  panels = drawn.folder(workdir, "search")
  for place, query in enumerate(asked):
    lines = [
      panel.Line(each.name, hits(each.index, each.queries[place], cfg.search.top, folder))
      for each in answers
    ]
    shown, among = query.picture or query.text, len(own.paths)
    if len(lines) == 1:
      picture = panel.draw(shown, lines[0].hits, among=among)
    else:
      picture = side_by_side.draw(shown, lines, among=among)
    path = panels / f"{query.name}.png"
    drawn.save(picture, path)
    said += [f"Query: {embedding.printable(query.text)}"] if len(asked) > 1 else []
    said += [*_table(lines), f"Panel: {path}"]
  return "\n".join(said)


def hits(
  index: Index, query: np.ndarray, top: int, folder: pathlib.Path
) -> list[panel.Hit]:
  """The `top` pictures nearest to an embedded query; their files lie in `folder`."""
  places, cosines = nearest(index.image, query, top)
  return [
    panel.Hit(rank, float(cosine), index.paths[place], folder / index.paths[place])
    for rank, (place, cosine) in enumerate(zip(places, cosines, strict=True), 1)
  ]


def of_shared_pictures(answers: list[Answers]) -> tuple[list[str], list[Answers]]:
  """The same with the pictures that all models have embedded, by their relative paths.

  Returns:
    What is to be said of it, and the answers, all with the first one's order of paths.

  Raises:
    ValueError: if they have no picture in common.
  """
  first = answers[0].index
  shared = set(first.paths).intersection(*(a.index.paths for a in answers[1:]))
  if not shared:
    counts = ", ".join(f"{a.name} {len(a.index.paths):,}" for a in answers)
    raise ValueError(
      f"The models have embedded no picture in common ({counts}, as {first.paths[0]} and "
      f"{answers[-1].index.paths[0]}); embed the same folder with all of them."
    )
  said = []
  if any(len(a.index.paths) > len(shared) for a in answers):
    counts = ", ".join(f"{len(a.index.paths):,} of {a.name}" for a in answers)
    said.append(f"Searched: the {len(shared):,} pictures that all have ({counts}).")
  folders = sorted({str(a.index.folder) for a in answers})
  if len(folders) > 1:
    said.append(f"Of the same names, and so taken for the same: {', '.join(folders)}.")
  order = [path for path in first.paths if path in shared]
  return said, [dataclasses.replace(a, index=_only(a.index, order)) for a in answers]


def _only(index: Index, paths: list[str]) -> Index:
  place = {path: i for i, path in enumerate(index.paths)}
  image = index.image[[place[path] for path in paths]]
  return dataclasses.replace(index, image=image, paths=paths)


def _answers(
  cfg: Config,
  workdir: pathlib.Path,
  asked: Sequence[queries.Query],
  name: str,
  place: pathlib.Path,
  weights: Weights,
) -> Answers:
  """The embeddings in a model's place, and the queries as it embeds them."""
  beside = place.with_suffix(".npz") if place.is_file() else place / embedding.DEFAULT
  if place == workdir:
    index = read(start.path_of(cfg.search.embeddings or beside))
  else:
    index = read(beside, str(place))
  model = inference.Model(weights, batch_size=cfg.eval.batch_size)
  check_same_model(index, model)
  out = np.zeros((len(asked), model.size.embed_dim), np.float32)
  texts = [i for i, query in enumerate(asked) if not query.picture]
  pictures = [i for i, query in enumerate(asked) if query.picture]
  if texts:
    out[texts] = model.encode_text([asked[i].text for i in texts])
  if pictures:
    out[pictures] = model.encode_image([asked[i].picture for i in pictures])
  return Answers(name, index, out)


def _table(lines: Sequence[panel.Line]) -> list[str]:
  """The hits of one query; with several models, marked where all have found them."""
  shared = side_by_side.shared(lines) if len(lines) > 1 else set()
  rows = []
  for line in lines:
    rows += [f"{line.name}:"] if len(lines) > 1 else []
    rows += ["rank   cosine  picture"]
    for hit in line.hits:
      mark = "  (found by all)" if hit.name in shared else ""
      rows.append(
        f"{hit.rank:4}  {hit.cosine:7.4f}  {embedding.printable(hit.name)}{mark}"
      )
  return rows


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


def read(path: pathlib.Path, model: str = "") -> Index:
  """What mode=embed wrote to `path`.

  Args:
    path: of the file.
    model: that has to be named to mode=embed; "" is the config's own.

  Raises:
    ValueError: if there is no such file, it is damaged or something else, or holds no
      pictures.
  """
  remedy = "write it with --config.mode=embed --config.embed.images=FOLDER"
  if model:
    remedy += (
      f" --config.embed.output={path}, and --workdir={model} for a run or "
      f"--config.init.weights={model} for other weights"
    )
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
