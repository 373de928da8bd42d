"""What fitting gives; and what it is given, checked."""

import dataclasses

import numpy as np
import numpy.typing as npt

from rankclip_jax.evals import classification


@dataclasses.dataclass(frozen=True)
class Probe:
  """A linear classifier of features, with scores `features @ weights.T + bias`.

  Attributes:
    weights: [classes, dim] float32.
    bias: [classes] float32.
    losses: what was minimised, along the way: the mean of each epoch [epochs], or what
      was reached at each strength on the training split [strengths], or [1] where one
      strength was fitted.
    final_loss: what was minimised, at the end, on the rows that `weights` were fitted to.
    converged: whether every fit came to rest at its optimum; None where none was sought.
    strength: of the L2 penalty, chosen or given; see `logistic`.
    strengths: [strengths] tried, ascending; empty where none was chosen.
    validation: [strengths] the metric on the validation split, a fraction.
  """

  weights: np.ndarray
  bias: np.ndarray
  losses: np.ndarray
  final_loss: float
  converged: bool | None = None
  strength: float | None = None
  strengths: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0))
  validation: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0))


def checked(
  features: npt.ArrayLike, labels: npt.ArrayLike, classes: int, name: str = "features"
) -> tuple[np.ndarray, np.ndarray]:
  """Features [examples, dim] as float32, and their labels [examples] as int32.

  Raises:
    ValueError: a wrong shape, no example, a feature that is not finite, a label that is
      no class, or fewer than two classes.
  """
  features = np.asarray(features)
  if features.ndim != 2 or features.size == 0:
    raise ValueError(
      f"{name}: expected shape [examples, dim] with at least one of each, got "
      f"{features.shape}: stack one feature vector per row"
    )
  if classes < 2:
    raise ValueError(f"expected at least 2 classes to tell apart, got {classes}")
  features = features.astype(np.float32, copy=False)
  wrong = np.flatnonzero(~np.isfinite(features).all(axis=1))
  if wrong.size:
    raise ValueError(
      f"{name}: expected finite numbers, but {wrong.size} of {len(features)} rows have "
      f"others, the first is row {wrong[0]}: the model has diverged, or the picture of "
      "this row is damaged"
    )
  labels = classification.checked_labels(labels, len(features), classes)
  return features, labels.astype(np.int32)
