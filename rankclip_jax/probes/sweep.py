"""Protocol `sweep`: logistic regression at the L2 strength that validates best.

As in CLIP (Radford et al. 2021, appendix A.3): the strength is chosen on a validation
split, which is cut from the training set where there is none, and the probe is then
fitted again to both. CLIP searches its grid of 8 strengths a decade from 1e-6 to 1e6 by
halving around the peak; here all 97 are fitted, each from the solution at the next
stronger one.
"""

import functools
import logging
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
from jax.sharding import Mesh

from rankclip_jax import sharding
from rankclip_jax.evals import classification
from rankclip_jax.probes import logistic
from rankclip_jax.probes.probe import Probe, checked

STRENGTHS = np.logspace(-6, 6, 97)
"""Range and resolution of CLIP's appendix A.3; see `logistic` for what they weigh."""

VALIDATION_FRACTION = 0.2
"""Of a training set without a validation split. CLIP cuts one too, without its size."""

Metric = Literal["acc1", "mean_per_class_recall"]

log = logging.getLogger(__name__)


def fit(
  features: npt.ArrayLike,
  labels: npt.ArrayLike,
  *,
  classes: int,
  validation: tuple[npt.ArrayLike, npt.ArrayLike] | None = None,
  seed: int = 0,
  strengths: npt.ArrayLike = STRENGTHS,
  metric: Metric = "acc1",
  mesh: Mesh | None = None,
  tolerance: float = logistic.TOLERANCE,
  max_iterations: int = logistic.MAX_ITERATIONS,
) -> Probe:
  """Chooses a strength on the validation split, then fits to training and validation.

  Of strengths that validate equally well the strongest is taken. A class without
  examples gets weights 0 and a bias of `logistic.NEVER`: it is never predicted.

  Args:
    features: [examples, dim] of the training split, as they are to be classified.
    labels: [examples] integers from 0 to classes - 1.
    classes: their number.
    validation: features [examples, dim] and labels [examples] of a validation split;
      None cuts one from the training split, see `split`.
    seed: of this cut.
    strengths: [strengths] to choose from.
    metric: by which to choose.
    mesh: over whose devices the examples are spread; None for all devices.
    tolerance: norm of the gradient at which a fit has arrived; see `logistic`.
    max_iterations: of L-BFGS, at each strength.

  Raises:
    ValueError: see `probe.checked` and `split`; or strengths that are not positive, or
      examples of fewer than two classes.
  """
  strengths = _checked_strengths(strengths)
  features, labels = checked(features, labels, classes)
  if validation is None:
    held_out = split(labels, seed=seed)
  else:
    more, more_labels = checked(*validation, classes, "validation features")
    if more.shape[1] != features.shape[1]:
      raise ValueError(
        f"expected validation features of dim {features.shape[1]}, as the training "
        f"features have, got {more.shape[1]}: take them from the same model"
      )
    held_out = np.arange(len(features) + len(more)) >= len(features)
    features = np.concatenate([features, more])
    labels = np.concatenate([labels, more_labels])
  rows = logistic.Rows.put(features, labels, classes, mesh or sharding.make_mesh())
  minimise = functools.partial(
    logistic.fit, rows, tolerance=tolerance, max_iterations=max_iterations
  )
  training = rows.select(labels, ~held_out)
  validated, losses = np.zeros(len(strengths)), np.zeros(len(strengths))
  norms = np.zeros(len(strengths) + 1)
  last = best = rows.zero()
  chosen = -1
  # From strong to weak, so that the strongest of equals is met first.
  for i in reversed(range(len(strengths))):
    found = minimise(training, np.float32(strengths[i]), last)
    last, losses[i], norms[i] = found.solution, found.loss, found.gradient_norm
    predictions = logistic.predict(rows, training, last)
    validated[i] = _score(metric, labels[held_out], predictions[held_out], classes)
    if validated[i] > validated[chosen] or chosen < 0:
      chosen, best = i, last
  everything = rows.select(labels, np.ones(len(labels), bool))
  final = minimise(everything, np.float32(strengths[chosen]), best)
  norms[-1] = final.gradient_norm
  _warn(strengths, chosen, norms, tolerance)
  weights, bias = logistic.in_features(rows, everything, final.solution)
  return Probe(
    weights=weights,
    bias=bias,
    losses=losses,
    final_loss=float(final.loss),
    converged=bool((norms <= tolerance).all()),
    strength=float(strengths[chosen]),
    strengths=strengths,
    validation=validated,
  )


def fit_one(
  features: npt.ArrayLike,
  labels: npt.ArrayLike,
  *,
  classes: int,
  strength: float,
  mesh: Mesh | None = None,
  tolerance: float = logistic.TOLERANCE,
  max_iterations: int = logistic.MAX_ITERATIONS,
) -> Probe:
  """Fits at one given strength; arguments and errors as in `fit`."""
  (strength,) = _checked_strengths([strength])
  features, labels = checked(features, labels, classes)
  rows = logistic.Rows.put(features, labels, classes, mesh or sharding.make_mesh())
  selection = rows.select(labels, np.ones(len(labels), bool))
  found = logistic.fit(
    rows,
    selection,
    np.float32(strength),
    rows.zero(),
    tolerance=tolerance,
    max_iterations=max_iterations,
  )
  weights, bias = logistic.in_features(rows, selection, found.solution)
  return Probe(
    weights=weights,
    bias=bias,
    losses=np.array([found.loss]),
    final_loss=float(found.loss),
    converged=bool(found.gradient_norm <= tolerance),
    strength=float(strength),
  )


def split(
  labels: np.ndarray, *, fraction: float = VALIDATION_FRACTION, seed: int = 0
) -> np.ndarray:
  """True [examples] for a validation split with this fraction of every class.

  The fraction of a class is rounded to whole examples, and one at least stays for
  training.

  Raises:
    ValueError: if no example is left for validation.
  """
  rng = np.random.default_rng(seed)
  held_out = np.zeros(len(labels), bool)
  for label in np.unique(labels):
    members = rng.permutation(np.flatnonzero(labels == label))
    held_out[members[: min(round(fraction * len(members)), len(members) - 1)]] = True
  if not held_out.any():
    raise ValueError(
      f"expected enough examples of a class to hold {fraction:.0%} of them out for "
      f"validation, got {len(labels)} examples of {len(np.unique(labels))} classes: "
      "pass a validation split, or fit at a given strength"
    )
  return held_out


def _score(
  metric: Metric, labels: np.ndarray, predictions: np.ndarray, classes: int
) -> float:
  if metric == "acc1":
    return float(np.mean(predictions == labels))
  if metric == "mean_per_class_recall":
    return classification.mean_per_class_recall(labels, predictions, classes)
  raise ValueError(
    f"expected metric to be one of {list(get_args(Metric))}, got {metric!r}"
  )


def _checked_strengths(strengths: npt.ArrayLike) -> np.ndarray:
  values = np.unique(np.asarray(strengths, np.float64))
  if not values.size or not np.isfinite(values).all() or values[0] <= 0:
    raise ValueError(
      f"expected finite L2 strengths above 0, got {np.asarray(strengths).tolist()}: "
      "without a penalty classes that can be told apart have no optimum"
    )
  return values


def _warn(
  strengths: np.ndarray, chosen: int, norms: np.ndarray, tolerance: float
) -> None:
  late = np.count_nonzero(~(norms <= tolerance))
  if late:
    log.warning(
      "%d of %d fits ended with a gradient of up to %.1e, above %.1e.",
      late,
      len(norms),
      norms.max(),
      tolerance,
    )
  if chosen in (0, len(strengths) - 1) and len(strengths) > 1:
    log.warning(
      "The strength that validates best, %.1e, is at the end of those tried.",
      strengths[chosen],
    )
