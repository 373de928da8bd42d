"""Zero-shot classification with prompt ensembles (Radford et al. 2021, section 3.1.4).

The classifier's weights are text embeddings: each class name is put into every template,
and the prompts of a class are averaged on the unit sphere. The metrics are those of
`classification`.
"""

import collections
import re
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from rankclip_jax.evals import classification, geometry

_PLACEHOLDER = re.compile(r"\{c?\}")


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


def outcomes(
  image: npt.ArrayLike,
  labels: npt.ArrayLike,
  weights: npt.ArrayLike,
  *,
  scale: float = 1.0,
) -> classification.Outcomes:
  """Scores images against every class, for every metric of `classification`.

  Args:
    image: [images, dim] L2-normalised.
    labels: [images] integers, the class of each image.
    weights: [classes, dim] L2-normalised, from `classifier`.
    scale: exp(logit_scale) of the model, by which its cosines become logits. Only
      confidences, and so the calibration, depend on it.

  Raises:
    ValueError: see `geometry.unit_rows` and `classification.checked_labels`.
  """
  image, weights = geometry.unit_rows(image=image, weights=weights)
  return classification.of_linear(image, labels, weights, scale=scale)


def evaluate(
  image: npt.ArrayLike, labels: npt.ArrayLike, weights: npt.ArrayLike
) -> dict[str, float | None]:
  """`classification.evaluate` of the `outcomes` of these images."""
  return classification.evaluate(outcomes(image, labels, weights))


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
