"""The map of both modalities (RankCLIP, Fig. 6): principal axes, and UMAP if there."""

import importlib
import importlib.util
import warnings
from collections.abc import Mapping, Sequence

import numpy as np

from rankclip_jax.evals import geometry
from rankclip_jax.report import markup, plots, ranking
from rankclip_jax.report.embeddings import Embeddings
from rankclip_jax.report.run import Run

PAIRS_JOINED = 60
# UMAP of so many pictures and as many captions takes half a minute on two cores, beside
# the minute that umap-learn compiles for; of whole test sets it would take many.
UMAP_PAIRS = 1000
_UMAP_SEED = 0
# umap-learn's defaults; the paper does not say which it used.
_NEIGHBOURS, _MIN_DIST = 15, 0.1
_FEWEST_FOR_UMAP = 2 * _NEIGHBOURS


def section(runs: Sequence[Run], embedded: Mapping[int, Embeddings]) -> str:
  """A map of each run on principal axes, and one by UMAP where that is installed."""
  with_umap = importlib.util.find_spec("umap") is not None
  figures = []
  for place, items in embedded.items():
    name = runs[place].name
    drawn = [(principal(items), "principal axes")]
    if with_umap and len(items.keys) >= _FEWEST_FOR_UMAP:
      drawn.append((by_umap(items), "UMAP"))
    figures += [
      f"<figure><figcaption>{markup.run_label(runs, place)} <span>{kind}</span>"
      "</figcaption>"
      + markup.png(picture, f"Images and captions of {name}: {kind}")
      + "</figure>"
      for picture, kind in drawn
    ]
  lead = (
    "Held-out images and captions on the first two principal axes of both together (an"
    " SVD of the centred embeddings, for each run anew; so axes of different runs are"
    f" not the same). Thin lines join {PAIRS_JOINED} pairs at most. The heavy line joins"
    " the means of images and of captions; the modality gap is its length in all"
    f" dimensions (Liang et al. 2022). {_about_umap(with_umap)}"
  )
  return markup.section("map", "Map", lead, f'<div class="maps">{"".join(figures)}</div>')


def _about_umap(installed: bool) -> str:
  if not installed:
    return (
      "The paper's Figure 6 is by UMAP, which"
      " <code>pip install -r requirements-umap.txt</code> adds here."
    )
  return (
    f"UMAP (as the paper's Figure 6) sees {UMAP_PAIRS:,} pairs at most, each picture with"
    f" its main caption: cosine, {_NEIGHBOURS} neighbours, minimal distance {_MIN_DIST},"
    f" seed {_UMAP_SEED}. It shows which points are near each other; the distance between"
    " groups means little, so the gap is only given as a number."
  )


def principal(items: Embeddings) -> bytes:
  """All images and captions on their common two principal axes, as PNG."""
  points, explained = ranking.principal_plane(np.concatenate([items.image, items.text]))
  images, texts = np.split(points, [len(items.image)])
  centres = np.stack([images.mean(axis=0), texts[items.main_text].mean(axis=0)])
  keys = ranking.choose(items.keys, PAIRS_JOINED, "pairs of the map")
  rows = np.array([items.index_of_key[key] for key in keys])
  return plots.embedding_map(
    images,
    texts,
    np.stack([rows, items.main_text[rows]], axis=1),
    labels=(
      f"axis 1: {explained[0]:.1%} of the variance",
      f"axis 2: {explained[1]:.1%} of the variance",
    ),
    gap=_gap(items),
    centres=centres,
  )


def by_umap(items: Embeddings) -> bytes:
  """Pictures and their main captions as UMAP lays them out, seeded, as PNG."""
  keys = ranking.choose(items.keys, UMAP_PAIRS, "pairs of the map")
  rows = np.array([items.index_of_key[key] for key in keys])
  both = np.concatenate([items.image[rows], items.text[items.main_text[rows]]])
  images, texts = np.split(_umap(both), 2)
  joined = np.arange(min(PAIRS_JOINED, len(rows)))
  return plots.embedding_map(
    images, texts, np.stack([joined, joined], axis=1), gap=_gap(items)
  )


def _gap(items: Embeddings) -> str:
  gap = geometry.modality_gap(items.image, items.text[items.main_text])
  return f"modality gap {gap:.2f}"


def _umap(points: np.ndarray) -> np.ndarray:
  """Coordinates [points, 2]; one thread, because several make it differ every time."""
  with warnings.catch_warnings():
    # It warns that TensorFlow, for a variant of it, is not there.
    warnings.simplefilter("ignore")
    umap = importlib.import_module("umap")
    return umap.UMAP(
      n_neighbors=_NEIGHBOURS,
      min_dist=_MIN_DIST,
      metric="cosine",
      random_state=_UMAP_SEED,
      n_jobs=1,
    ).fit_transform(points)
