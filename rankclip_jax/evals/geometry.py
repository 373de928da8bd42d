"""How the two modalities lie on the unit sphere, and whether they order things alike.

Alignment and uniformity follow Wang & Isola (ICML 2020) and their cross-modal form in
CyCLIP (NeurIPS 2022); the modality gap follows Liang et al. (NeurIPS 2022). Rank
consistency measures what RankCLIP trains for (ICCV 2025): cross-modal, image i and text
i should rank the other modality alike; in-modal, image i should rank the images as text
i ranks the texts.

A metric that the input leaves undefined (too few examples, no order at all) is None.
"""

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

NORM_TOLERANCE = 1e-3
"""Largest deviation from norm 1 that counts as normalised; half precision stays below."""

MAX_ANCHORS = 1000
"""Rank consistency is averaged over at most this many anchors, evenly spaced."""

_TOP = 10
_BLOCK_BYTES = 16 * 2**20


def integers(name: str, values: npt.ArrayLike, count: int, what: str) -> np.ndarray:
  """Returns integers, one for each of `count` things, as an array [count].

  Raises:
    ValueError: they are not; it calls them `name`, and each of the things `what`.
  """
  array = np.asarray(values)
  if array.shape != (count,) or not np.issubdtype(array.dtype, np.integer):
    raise ValueError(
      f"{name}: expected integers of shape ({count},), one per {what}, got "
      f"{array.dtype} of shape {array.shape}"
    )
  return array


def unit_rows(**embeddings: npt.ArrayLike) -> list[np.ndarray]:
  """Returns the named embeddings, each [rows, dim], as float32 arrays of one `dim`.

  The rows are checked, not rescaled.

  Raises:
    ValueError: an array is not [rows, dim], is empty, disagrees about `dim`, or has a
      row that is not finite with L2 norm 1 (within `NORM_TOLERANCE`).
  """
  arrays = [np.asarray(values, dtype=np.float32) for values in embeddings.values()]
  for name, array in zip(embeddings, arrays, strict=True):
    if array.ndim != 2 or array.size == 0:
      raise ValueError(
        f"{name}: expected embeddings of shape [rows, dim] with at least one row, got "
        f"shape {array.shape}: stack one embedding per row"
      )
    norms = np.sqrt(np.einsum("nd,nd->n", array, array))
    # Written so that a norm of nan fails too.
    wrong = np.flatnonzero(~(np.abs(norms - 1) <= NORM_TOLERANCE))
    if wrong.size:
      raise ValueError(
        f"{name}: expected finite rows of L2 norm 1 (within {NORM_TOLERANCE}), but "
        f"{wrong.size} of {len(array)} are not, the first is row {wrong[0]} with norm "
        f"{norms[wrong[0]]:.6g}: divide each row by its norm (a norm of nan or inf comes "
        "from a model that has diverged)"
      )
  dims = {name: array.shape[1] for name, array in zip(embeddings, arrays, strict=True)}
  if len(set(dims.values())) > 1:
    raise ValueError(
      f"expected embeddings of one dim, got {dims}: take them from the same model"
    )
  return arrays


def evaluate(image: npt.ArrayLike, text: npt.ArrayLike) -> dict[str, float | int | None]:
  """Computes every metric of this module for matched pairs of embeddings.

  Args:
    image: [pairs, dim] L2-normalised.
    text: [pairs, dim] L2-normalised; row i belongs to image i.

  Returns:
    `modality_gap`, `alignment`, `uniformity_cross_modal` (CyCLIP's convention),
    `uniformity_image` and `uniformity_text` (Wang & Isola's convention, one modality at
    a time) and the entries of `rank_consistency`.

  Raises:
    ValueError: see `unit_rows`; or the numbers of images and texts differ.
  """
  image, text = unit_rows(image=image, text=text)
  if len(image) != len(text):
    raise ValueError(
      f"expected one text per image, got {len(image)} images and {len(text)} texts: "
      "pass one caption of each image"
    )
  return {
    "modality_gap": modality_gap(image, text),
    "alignment": alignment(image, text),
    "uniformity_cross_modal": uniformity(image, text),
    "uniformity_image": uniformity(image, image),
    "uniformity_text": uniformity(text, text),
    **rank_consistency(image, text),
  }


def modality_gap(image: np.ndarray, text: np.ndarray) -> float:
  """Returns ||mean_i v_i - mean_i t_i|| (Liang et al. 2022).

  Args: image [images, dim] and text [texts, dim], L2-normalised.
  """
  centroid_image, centroid_text = (
    np.mean(modality, axis=0, dtype=np.float64) for modality in (image, text)
  )
  return float(np.linalg.norm(centroid_image - centroid_text))


def alignment(image: np.ndarray, text: np.ndarray) -> float:
  """Returns mean_i ||v_i - t_i||^2, from 0 (best) to 4 (Wang & Isola 2020; CyCLIP).

  Args: image and text [pairs, dim], L2-normalised and matched by row.
  """
  difference = image - text
  return float(np.vdot(difference, difference) / len(difference))


def uniformity(a: np.ndarray, b: np.ndarray) -> float | None:
  """Returns log mean_{i != j} exp(-2 ||a_i - b_j||^2); lower is more uniform.

  With one modality as both arguments this is Wang & Isola's uniformity (2020, t = 2).
  With images and texts it is CyCLIP's, which compares unmatched pairs only. (CyCLIP's
  code averages over the half i > j; both halves make it independent of the order of the
  examples.)

  Args: a and b [pairs, dim], L2-normalised and matched by row. None for a single pair.
  """
  count = len(a)
  if count < 2:
    return None
  squared_norm_a, squared_norm_b = (np.einsum("nd,nd->n", x, x) for x in (a, b))
  total = 0.0
  for rows in _blocks(np.arange(count), count):
    distance = squared_norm_a[rows, None] + squared_norm_b - 2 * (a[rows] @ b.T)
    potential = np.exp(-2 * distance)
    potential[np.arange(len(rows)), rows] = 0
    total += potential.sum(dtype=np.float64)
  return math.log(total / (count * (count - 1)))


def rank_consistency(
  image: np.ndarray, text: np.ndarray, *, max_anchors: int = MAX_ANCHORS
) -> dict[str, float | int | None]:
  """Measures how alike the two modalities rank the examples, seen from each anchor i.

  Cross-modal: row i of V T^T against row i of T V^T, the matched pair included (RankCLIP
  Fig. 2). In-modal: row i of V V^T against row i of T T^T, the anchor itself left out.
  An anchor with a list shorter than two or without any order (all scores equal) is left
  out of the means.

  Args:
    image: [pairs, dim] L2-normalised.
    text: [pairs, dim] L2-normalised; row i belongs to image i.
    max_anchors: with more pairs than this, the anchors are this many, evenly spaced;
      each still ranks every example.

  Returns:
    `rank_consistency_{cross,in}_modal_kendall_tau`: Kendall's tau-b, from -1 to 1;
    `rank_consistency_{cross,in}_modal_top10_overlap`: the share of each other's first
    k = 10 (or one less than the list when that is shorter) that both lists have in
    common, equal scores in order of index;
    `rank_consistency_anchors`: the number of anchors.
  """
  count = len(image)
  # Rounding down keeps the anchors distinct: their spacing is at least one.
  anchors = np.linspace(0, count - 1, num=min(count, max_anchors)).astype(np.int64)
  cross_modal, in_modal = [], []
  for block in _blocks(anchors, count):
    v, t = image[block], text[block]
    cross_modal.append(_agreement(v @ text.T, t @ image.T))
    in_modal.append(_agreement(_without(v @ image.T, block), _without(t @ text.T, block)))
  metrics: dict[str, float | int | None] = {}
  for name, blocks in (("cross_modal", cross_modal), ("in_modal", in_modal)):
    tau, overlap = np.concatenate(blocks, axis=1)
    metrics[f"rank_consistency_{name}_kendall_tau"] = _mean_of_defined(tau)
    metrics[f"rank_consistency_{name}_top10_overlap"] = _mean_of_defined(overlap)
  return {**metrics, "rank_consistency_anchors": len(anchors)}


def _agreement(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """Returns [2, rows], tau-b and top-k overlap of the rows of a and b [rows, length]."""
  rows, length = a.shape
  if length < 2:
    return np.full((2, rows), np.nan)
  import scipy.stats  # which takes seconds, of every start of a training

  # tau-b is nan for a row without order; there the overlap of indices means nothing.
  # (A decorator gives kendalltau its `axis`, which the type checker cannot see.)
  # In double precision, because scipy (from 1.18) returns tau in the type it is given.
  a, b = a.astype(np.float64), b.astype(np.float64)
  tau = scipy.stats.kendalltau(a, b, axis=1).statistic  # pyright: ignore[reportCallIssue]
  top = min(_TOP, length - 1)
  top_a, top_b = (np.argsort(-x, axis=1, kind="stable")[:, :top] for x in (a, b))
  overlap = np.mean((top_a[:, :, None] == top_b[:, None, :]).any(axis=2), axis=1)
  return np.stack([tau, np.where(np.isnan(tau), np.nan, overlap)])


def _without(scores: np.ndarray, columns: np.ndarray) -> np.ndarray:
  """Drops entry `columns[i]` from row i of scores [rows, length]."""
  rows, length = scores.shape
  keep = np.arange(length) != columns[:, None]
  return scores[keep].reshape(rows, length - 1)


def _mean_of_defined(values: np.ndarray) -> float | None:
  defined = values[~np.isnan(values)]
  return float(defined.mean()) if defined.size else None


def _blocks(rows: np.ndarray, length: int) -> Iterator[np.ndarray]:
  """Cuts row numbers into runs whose float32 scores [run, length] fit the budget."""
  size = max(1, _BLOCK_BYTES // (4 * length))
  for start in range(0, len(rows), size):
    yield rows[start : start + size]
