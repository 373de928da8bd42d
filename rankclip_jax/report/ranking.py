"""Orders, ranks and projections of embeddings for the panels (numpy only)."""

import hashlib
from collections.abc import Iterable

import numpy as np

# Rows whose orders are worked out at a time: bounds memory to block x gallery.
_BLOCK = 1024


def choose(keys: Iterable[str], count: int, purpose: str) -> list[str]:
  """The `count` keys with the smallest sha256 of purpose and key.

  The choice depends on the keys alone: never on a run's scores or on the order given.
  """

  def digest(key: str) -> bytes:
    return hashlib.sha256(f"{purpose}:{key}".encode(errors="surrogatepass")).digest()

  return sorted(keys, key=digest)[:count]


def top(scores: np.ndarray, count: int) -> np.ndarray:
  """The `count` best of the last axis [..., gallery], best first [..., count].

  Of equal scores the lower index is ahead, as in `evals.retrieval`.
  """
  return np.argsort(-scores, axis=-1, kind="stable")[..., :count]


def rank(scores: np.ndarray, target: int) -> int:
  """The place, from 1, that `target` takes in the order of `scores` [gallery]."""
  ahead = scores > scores[target]
  ahead[:target] |= scores[:target] == scores[target]
  return int(ahead.sum()) + 1


def neighbours(embeddings: np.ndarray, rows: np.ndarray, count: int) -> np.ndarray:
  """The `count` nearest other rows by cosine [rows, count], nearest first.

  `embeddings` is L2-normalised [items, dim]; an item is no neighbour of itself.
  """
  found = []
  for start in range(0, len(rows), _BLOCK):
    block = rows[start : start + _BLOCK]
    scores = embeddings[block] @ embeddings.T
    scores[np.arange(len(block)), block] = -np.inf
    found.append(top(scores, min(count, len(embeddings) - 1)))
  return np.concatenate(found)


def overlap(first: np.ndarray, second: np.ndarray) -> np.ndarray:
  """How many items two lists share, whatever their order: [rows, count] to [rows]."""
  return (first[:, :, None] == second[:, None, :]).any(axis=2).sum(axis=1)


def principal_plane(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Coordinates on the first two principal axes, by SVD of the centred points.

  Returns:
    Coordinates [points, 2] and the fraction of the variance on either axis [2]. Each
    axis points to where its largest loading is positive: an SVD leaves the sign open.
  """
  centred = points.astype(np.float64) - points.mean(axis=0, dtype=np.float64)
  # At least two axes, also for embeddings of one dimension.
  centred = np.pad(centred, ((0, 0), (0, max(0, 2 - centred.shape[1]))))
  _, singular, axes = np.linalg.svd(centred, full_matrices=False)
  largest = np.abs(axes[:2]).argmax(axis=1)
  axes = axes[:2] * np.sign(axes[[0, 1], largest])[:, None]
  variance = singular**2
  total = variance.sum()
  return centred @ axes.T, variance[:2] / total if total > 0 else np.zeros(2)
