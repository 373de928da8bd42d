"""How well examples are told apart: accuracy, recall, confusions, calibration.

Everything is computed from four numbers an example (`Outcomes`), so a matrix of scores
[examples, classes] is never kept whole. Names and meaning of the accuracies follow
CLIP_benchmark. Classes with equal scores stand in order of index.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from rankclip_jax.evals import geometry, retrieval

ACCURACY_AT = (1, 3, 5)

CALIBRATION_BINS = 15
"""M in Guo et al. (ICML 2017), Table 1."""

_BLOCK_BYTES = 16 * 2**20


@dataclasses.dataclass(frozen=True)
class Outcomes:
  """What a classifier made of every example.

  Attributes:
    labels: [examples] the class of each.
    ranks: [examples] the rank, from 1, of this class among all.
    predictions: [examples] the class of the highest score.
    confidences: [examples] the softmax probability of the prediction.
    classes: the number of classes.
  """

  labels: np.ndarray
  ranks: np.ndarray
  predictions: np.ndarray
  confidences: np.ndarray
  classes: int


@dataclasses.dataclass(frozen=True)
class Confusion:
  """A class, what it is taken for, how often, and as a fraction of the class."""

  label: int
  prediction: int
  count: int
  fraction: float


def outcomes(
  scores: npt.ArrayLike, labels: npt.ArrayLike, *, scale: float = 1.0
) -> Outcomes:
  """Outcomes from a whole matrix of scores.

  Args:
    scores: [examples, classes].
    labels: [examples] integers, the class of each example.
    scale: multiplies the scores before the softmax: exp(logit_scale) where they are
      cosines, 1 where they are logits.

  Raises:
    ValueError: see `checked_labels`; or scores of a wrong shape or not finite.
  """
  scores = np.asarray(scores)
  if scores.ndim != 2 or scores.size == 0:
    raise ValueError(
      f"scores: expected [examples, classes] with at least one of each, got shape "
      f"{scores.shape}"
    )
  labels = checked_labels(labels, len(scores), scores.shape[1])
  return _of_block(scores, labels, scale, 0)


def of_linear(
  features: np.ndarray,
  labels: npt.ArrayLike,
  weights: np.ndarray,
  bias: np.ndarray | None = None,
  *,
  scale: float = 1.0,
) -> Outcomes:
  """Outcomes of the scores `features @ weights.T + bias`, in bounded memory.

  Args:
    features: [examples, dim].
    labels: [examples] integers, the class of each example.
    weights: [classes, dim]: a linear probe, or class embeddings.
    bias: [classes], or None for zero.
    scale: as in `outcomes`.

  Raises:
    ValueError: see `outcomes`; or the shapes do not agree.
  """
  if features.ndim != 2 or weights.ndim != 2 or features.shape[1] != weights.shape[1]:
    raise ValueError(
      f"expected features [examples, dim] and weights [classes, dim] of one dim, got "
      f"{features.shape} and {weights.shape}: take both from the same model"
    )
  if not len(features) or not len(weights):
    raise ValueError(
      f"expected at least one example and one class, got {len(features)} and "
      f"{len(weights)}"
    )
  labels = checked_labels(labels, len(features), len(weights))
  size = max(1, _BLOCK_BYTES // (4 * len(weights)))
  blocks = []
  for start in range(0, len(features), size):
    rows = slice(start, start + size)
    scores = features[rows] @ weights.T
    if bias is not None:
      scores = scores + bias
    blocks.append(_of_block(scores, labels[rows], scale, start))
  join = lambda name: np.concatenate([getattr(block, name) for block in blocks])
  return Outcomes(
    labels, join("ranks"), join("predictions"), join("confidences"), len(weights)
  )


def evaluate(outcomes: Outcomes) -> dict[str, float | None]:
  """Accuracies and recall (RankCLIP, Table 1: IN1K @1/@3/@5).

  Returns:
    `acc1`, `acc3`, `acc5`: the fraction of examples whose class is among the first k;
    None where there are fewer than k classes. `mean_per_class_recall`: the fraction of
    each class's examples that are classified right, averaged over the classes that have
    examples.
  """
  return {
    **{
      f"acc{k}": float(np.mean(outcomes.ranks <= k)) if k <= outcomes.classes else None
      for k in ACCURACY_AT
    },
    "mean_per_class_recall": mean_per_class_recall(
      outcomes.labels, outcomes.predictions, outcomes.classes
    ),
  }


def mean_per_class_recall(
  labels: np.ndarray, predictions: np.ndarray, classes: int
) -> float:
  """Recall averaged over the classes that have examples; see `evaluate`.

  Args: labels and predictions [examples] integers from 0 to classes - 1.
  """
  examples = np.bincount(labels, minlength=classes)
  hits = np.bincount(labels[predictions == labels], minlength=classes)
  present = examples > 0
  return float(np.mean(hits[present] / examples[present]))


def confusions(outcomes: Outcomes, *, top: int | None = 10) -> list[Confusion]:
  """The pairs that are confused most often, by count, then by label and prediction.

  A pair is directed: a taken for b is another than b taken for a.

  Args:
    top: how many at most; None for all.
  """
  wrong = outcomes.predictions != outcomes.labels
  # One number a pair, in the order of (label, prediction).
  codes = outcomes.labels[wrong].astype(np.int64) * outcomes.classes
  pairs, counts = np.unique(codes + outcomes.predictions[wrong], return_counts=True)
  examples = np.bincount(outcomes.labels, minlength=outcomes.classes)
  found = []
  for i in np.argsort(-counts, kind="stable")[:top]:
    label, prediction = divmod(int(pairs[i]), outcomes.classes)
    count = int(counts[i])
    found.append(Confusion(label, prediction, count, count / int(examples[label])))
  return found


def calibration_error(outcomes: Outcomes, *, bins: int = CALIBRATION_BINS) -> float:
  """Expected calibration error (Guo et al., ICML 2017, Section 2).

  ECE = Σ_m |B_m| / n · |acc(B_m) - conf(B_m)|, where bin B_m holds the examples whose
  prediction has a probability in ((m - 1) / M, m / M], M bins of equal width; acc is
  their accuracy and conf their mean probability. From 0 (best) to 1.
  """
  edges = np.linspace(0, 1, bins + 1)[1:-1]
  member = np.digitize(outcomes.confidences, edges, right=True)
  # |B_m| cancels: what is left is the difference of two sums.
  surplus = (outcomes.predictions == outcomes.labels) - outcomes.confidences
  sums = np.bincount(member, weights=surplus, minlength=bins)
  return float(np.abs(sums).sum() / len(outcomes.labels))


def named(
  found: Sequence[Confusion], names: Sequence[str]
) -> list[dict[str, str | int | float]]:
  """Confusions for a result file, with names in place of numbers."""
  return [
    {
      "label": names[c.label],
      "prediction": names[c.prediction],
      "count": c.count,
      "fraction": c.fraction,
    }
    for c in found
  ]


def checked_labels(labels: npt.ArrayLike, examples: int, classes: int) -> np.ndarray:
  """Returns labels [examples] as an array.

  Raises:
    ValueError: they are not [examples] integers, or one is no class (such as -1 for "not
      in this set": leave these examples out).
  """
  labels = geometry.integers("labels", labels, examples, "example")
  outside = np.flatnonzero((labels < 0) | (labels >= classes))
  if outside.size:
    raise ValueError(
      f"labels: expected classes from 0 to {classes - 1}, but {outside.size} of "
      f"{examples} are not, the first is {labels[outside[0]]} in row {outside[0]}: leave "
      "out examples of other classes"
    )
  return labels


def _of_block(
  scores: np.ndarray, labels: np.ndarray, scale: float, first_row: int
) -> Outcomes:
  wrong = np.flatnonzero(~np.isfinite(scores).all(axis=1))
  if wrong.size:
    raise ValueError(
      f"scores: expected finite numbers, got {scores[wrong[0]].tolist()[:5]} ... in row "
      f"{first_row + wrong[0]}: the features or the weights of the classifier are not "
      "finite, or their product overflows"
    )
  classes = scores.shape[1]
  answers = np.take_along_axis(scores, labels[:, None], axis=1)[:, 0]
  ahead = retrieval.count_ahead(scores, np.arange(classes), answers, labels)
  predictions = scores.argmax(axis=1)
  highest = scores.max(axis=1, keepdims=True)
  confidences = 1 / np.exp(scale * (scores - highest).astype(np.float64)).sum(axis=1)
  return Outcomes(labels, ahead + 1, predictions, confidences, classes)
