"""What each example was taken for, in a file beside the results."""

from collections.abc import Sequence

import numpy as np

TOP_CLASSES = 5
TOP_RETRIEVED = 10
_BLOCK_BYTES = 16 * 2**20


def of_classes(
  keys: Sequence[str],
  labels: np.ndarray,
  features: np.ndarray,
  weights: np.ndarray,
  bias: np.ndarray | None = None,
  *,
  scale: float = 1.0,
) -> dict[str, np.ndarray]:
  """The most probable classes of every example.

  Args:
    keys: of the examples.
    labels: [examples].
    features: [examples, dim].
    weights: [classes, dim].
    bias: [classes], or None for zero.
    scale: multiplies the scores before the softmax.

  Returns:
    `keys` and `labels` [examples]; `predictions` (classes) and `probabilities`
    [examples, 5], or as many as there are classes, most probable first.
  """
  classes, probabilities = nearest(
    features, weights, TOP_CLASSES, bias=bias, softmax_scale=scale
  )
  return {
    "keys": np.array(keys),
    "labels": labels,
    "predictions": classes,
    "probabilities": probabilities,
  }


def of_retrieval(
  keys: Sequence[str],
  owner: np.ndarray,
  image: np.ndarray,
  text: np.ndarray,
) -> dict[str, np.ndarray]:
  """The nearest of the other modality, for every picture and every caption.

  Args:
    keys: of the pictures.
    owner: [captions] the picture of each, in the order of the data.
    image: [images, dim] L2-normalised.
    text: [captions, dim] likewise.

  Returns:
    `keys` [images] and `image_of_text` [captions]; `texts_of_image` and
    `images_of_text`, indices of the 10 nearest, nearest first, and their cosines in
    `text_scores` and `image_scores`.
  """
  texts_of_image, text_scores = nearest(image, text, TOP_RETRIEVED)
  images_of_text, image_scores = nearest(text, image, TOP_RETRIEVED)
  return {
    "keys": np.array(keys),
    "image_of_text": owner.astype(np.int32),
    "texts_of_image": texts_of_image,
    "text_scores": text_scores,
    "images_of_text": images_of_text,
    "image_scores": image_scores,
  }


def nearest(
  queries: np.ndarray,
  candidates: np.ndarray,
  top: int,
  *,
  bias: np.ndarray | None = None,
  softmax_scale: float | None = None,
) -> tuple[np.ndarray, np.ndarray]:
  """Candidates of the highest scores, in bounded memory; of equals the first is nearer.

  Args:
    queries: [queries, dim].
    candidates: [candidates, dim].
    top: how many of them, at most.
    bias: [candidates], added to the scores.
    softmax_scale: asks for probabilities, of scores times this.

  Returns:
    Indices int32 [queries, top], and scores or probabilities float32.
  """
  top = min(top, len(candidates))
  found = np.empty((len(queries), top), np.int32)
  values = np.empty((len(queries), top), np.float32)
  size = max(1, _BLOCK_BYTES // (4 * len(candidates)))
  for start in range(0, len(queries), size):
    rows = slice(start, start + size)
    scores = queries[rows] @ candidates.T
    if bias is not None:
      scores = scores + bias
    log_total = None
    if softmax_scale is not None:
      scores = softmax_scale * scores
      log_total = np.logaddexp.reduce(scores, axis=1, keepdims=True)
    each = np.arange(len(scores))
    for place in range(top):  # the first of the highest, again and again
      best = scores.argmax(axis=1)
      found[rows, place], values[rows, place] = best, scores[each, best]
      scores[each, best] = -np.inf
    if log_total is not None:
      values[rows] = np.exp(values[rows] - log_total)
  return found, values
