"""Zero-shot classification with prompt ensembles (Radford et al. 2021, section 3.1.4).

The classifier's weights are text embeddings: each class name is put into every template,
and the prompts of a class are averaged on the unit sphere. Names and meaning of the
metrics follow CLIP_benchmark.
"""

import collections
import re
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from rankclip_jax.evals import geometry, retrieval

ACCURACY_AT = (1, 3, 5)

_PLACEHOLDER = re.compile(r"\{c?\}")
_BLOCK_BYTES = 16 * 2**20


def classifier(
  embed_texts: Callable[[list[str]], npt.ArrayLike],
  classes: Sequence[str],
  templates: Sequence[str],
  *,
  allow_duplicates: bool = False,
) -> np.ndarray:
  """Builds the classification weights: normalise, average over templates, normalise.

  Args:
    embed_texts: maps prompts to embeddings [prompts, dim] of any positive norm. Called
      once with all prompts, class by class; it does its own batching.
    classes: class names; label i means `classes[i]`.
    templates: prompts such as "a photo of a {c}."; "{}" may stand for "{c}".
    allow_duplicates: accept a class name that occurs twice, as "missile" and
      "sunglasses" do in OpenAI's list for ImageNet. Only the first can be predicted.

  Returns:
    [classes, dim] float32, L2-normalised.

  Raises:
    ValueError: no class, no template, a class named twice, a template without a place
      for the name, or embeddings of a wrong shape or without direction.
  """
  _check_prompts(classes, templates, allow_duplicates)
  prompts = [_fill(template, name) for name in classes for template in templates]
  embeddings = np.asarray(embed_texts(prompts), dtype=np.float32)
  if embeddings.ndim != 2 or len(embeddings) != len(prompts):
    raise ValueError(
      f"embed_texts: expected embeddings of shape ({len(prompts)}, dim) for "
      f"{len(prompts)} prompts, got {embeddings.shape}"
    )
  per_prompt = _normalised(embeddings, prompts)
  per_class = per_prompt.reshape(len(classes), len(templates), -1).mean(axis=1)
  return _normalised(per_class, classes)


def evaluate(
  image: npt.ArrayLike, labels: npt.ArrayLike, weights: npt.ArrayLike
) -> dict[str, float | None]:
  """Scores images against every class (RankCLIP, Table 1: IN1K @1/@3/@5).

  Classes with equal scores stand in order of index.

  Args:
    image: [images, dim] L2-normalised.
    labels: [images] integers, the class of each image.
    weights: [classes, dim] L2-normalised, from `classifier`.

  Returns:
    `acc1`, `acc3`, `acc5`: the fraction of images whose class is among the first k; None
    where there are no more than k classes. `mean_per_class_recall`: the fraction of each
    class's images that are classified right, averaged over the classes that have images.

  Raises:
    ValueError: see `geometry.unit_rows`; or `labels` is not [images] integers, or holds
      one that is no class (such as -1 for "not in this set": leave these images out).
  """
  image, weights = geometry.unit_rows(image=image, weights=weights)
  classes = len(weights)
  labels = _checked_labels(labels, len(image), classes)
  ranks = _ranks_of_labels(image, labels, weights)
  examples = np.bincount(labels, minlength=classes)
  hits = np.bincount(labels[ranks == 1], minlength=classes)
  present = examples > 0
  return {
    **{
      f"acc{k}": float(np.mean(ranks <= k)) if k < classes else None for k in ACCURACY_AT
    },
    "mean_per_class_recall": float(np.mean(hits[present] / examples[present])),
  }


def _ranks_of_labels(
  image: np.ndarray, labels: np.ndarray, weights: np.ndarray
) -> np.ndarray:
  """Returns [images], the rank of the labelled class from 1, in bounded memory."""
  ranks = np.empty(len(image), np.int64)
  classes = np.arange(len(weights))
  size = max(1, _BLOCK_BYTES // (4 * len(weights)))
  for start in range(0, len(image), size):
    rows = slice(start, start + size)
    scores = image[rows] @ weights.T
    answer_scores = np.take_along_axis(scores, labels[rows, None], axis=1)[:, 0]
    ranks[rows] = 1 + retrieval.count_ahead(scores, classes, answer_scores, labels[rows])
  return ranks


def _fill(template: str, name: str) -> str:
  # A function as replacement, because a name may hold a backslash.
  return _PLACEHOLDER.sub(lambda _: name, template)


def _check_prompts(
  classes: Sequence[str], templates: Sequence[str], allow_duplicates: bool
) -> None:
  if not classes or not templates:
    raise ValueError(
      f"expected at least one class and one template, got {len(classes)} classes and "
      f"{len(templates)} templates"
    )
  for template in templates:
    if not _PLACEHOLDER.search(template):
      raise ValueError(
        f'expected "{{c}}" (or "{{}}") in every template, got {template!r}: mark where '
        "the class name belongs"
      )
  counts = collections.Counter(classes)
  duplicates = [name for name, count in counts.items() if count > 1]
  if duplicates and not allow_duplicates:
    raise ValueError(
      f"expected distinct class names, got {len(duplicates)} of {len(counts)} more than "
      f"once: {duplicates[:5]}: tell them apart, or pass allow_duplicates=True if the "
      "data set is known for it (ImageNet with OpenAI's names)"
    )


def _normalised(rows: np.ndarray, names: Sequence[str]) -> np.ndarray:
  norms = np.linalg.norm(rows, axis=1, keepdims=True)
  wrong = np.flatnonzero(~(np.isfinite(norms) & (norms > 0)))
  if wrong.size:
    raise ValueError(
      f"expected text embeddings of finite, positive norm, got {norms[wrong[0], 0]} for "
      f"{names[wrong[0]]!r} and {wrong.size - 1} others: check the model's weights"
    )
  return rows / norms


def _checked_labels(labels: npt.ArrayLike, images: int, classes: int) -> np.ndarray:
  labels = np.asarray(labels)
  if labels.shape != (images,) or not np.issubdtype(labels.dtype, np.integer):
    raise ValueError(
      f"labels: expected integers of shape ({images},), one per image, got "
      f"{labels.dtype} of shape {labels.shape}"
    )
  outside = np.flatnonzero((labels < 0) | (labels >= classes))
  if outside.size:
    raise ValueError(
      f"labels: expected classes from 0 to {classes - 1}, but {outside.size} of {images} "
      f"are not, the first is {labels[outside[0]]} for image {outside[0]}: leave out "
      "images of other classes"
    )
  return labels
