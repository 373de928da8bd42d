"""Few-shot probes: k examples a class, drawn by seed, and the spread over seeds.

Draws are nested: for one seed the first k of k + 1 examples of a class are the draw of k
(as in big_vision's few-shot evaluator), so that a curve over k is not a curve over luck.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from rankclip_jax.evals import classification
from rankclip_jax.probes.probe import Probe, checked

SHOTS = (1, 2, 4, 8, 16)
"""As in CLIP's Fig. 6 (Radford et al. 2021)."""

SEEDS = (0, 1, 2)


@dataclasses.dataclass(frozen=True)
class FewShot:
  """Metrics of the probes of k examples a class.

  Attributes:
    shots: k.
    seeds: one probe each.
    mean: of every metric over the seeds; None where it is undefined.
    spread: sample standard deviation over the seeds (divisor seeds - 1); None for a
      single seed.
    by_seed: the metrics of each probe.
  """

  shots: int
  seeds: tuple[int, ...]
  mean: Mapping[str, float | None]
  spread: Mapping[str, float | None]
  by_seed: tuple[Mapping[str, float | None], ...]


def evaluate(
  train: tuple[npt.ArrayLike, npt.ArrayLike],
  test: tuple[npt.ArrayLike, npt.ArrayLike],
  fit: Callable[[np.ndarray, np.ndarray], Probe],
  *,
  classes: int,
  shots: Sequence[int] = SHOTS,
  seeds: Sequence[int] = SEEDS,
) -> list[FewShot]:
  """Fits a probe to every draw and scores it on the whole test split.

  Args:
    train: features [examples, dim] and labels [examples].
    test: likewise.
    fit: features [shots * classes, dim] and labels to a probe, such as
      `functools.partial(sweep.fit_one, classes=classes, strength=1.0)`.
    classes: their number.
    shots: examples a class.
    seeds: one draw each, for every number of shots.

  Raises:
    ValueError: see `probe.checked` and `draw`; or no shots or seeds.
  """
  if not shots or not seeds:
    raise ValueError(
      f"expected at least one number of shots and one seed, got {list(shots)} and "
      f"{list(seeds)}"
    )
  features, labels = checked(*train, classes)
  test_features, test_labels = checked(*test, classes, "test features")
  # Every draw is made before the first fit, so that what cannot be is refused at once.
  drawn = {k: [draw(labels, classes, k, seed) for seed in seeds] for k in shots}
  found = []
  for k, draws in drawn.items():
    metrics = []
    for rows in draws:
      probe = fit(features[rows], labels[rows])
      outcomes = classification.of_linear(
        test_features, test_labels, probe.weights, probe.bias
      )
      metrics.append(classification.evaluate(outcomes))
    found.append(_summary(k, seeds, metrics))
  return found


def draw(labels: np.ndarray, classes: int, shots: int, seed: int) -> np.ndarray:
  """Rows [classes * shots] of `shots` examples of every class, class by class.

  Raises:
    ValueError: if a class has fewer examples; the message names it.
  """
  counts = np.bincount(labels, minlength=classes)
  if not 0 < shots <= counts.min():
    short = int(counts.argmin())
    raise ValueError(
      f"expected from 1 to {counts.min()} shots, as many as class {short} has examples, "
      f"got {shots}: ask for fewer, or leave out classes with too few examples"
    )
  rng = np.random.default_rng(seed)
  order = rng.permutation(len(labels))
  by_class = order[np.argsort(labels[order], kind="stable")]
  first = np.cumsum(counts) - counts
  return by_class[first[:, None] + np.arange(shots)].reshape(-1)


def _summary(
  shots: int, seeds: Sequence[int], metrics: Sequence[Mapping[str, float | None]]
) -> FewShot:
  mean: dict[str, float | None] = {}
  spread: dict[str, float | None] = {}
  for name in metrics[0]:
    values = [m[name] for m in metrics]
    defined = [v for v in values if v is not None]
    mean[name] = float(np.mean(defined)) if defined else None
    spread[name] = float(np.std(defined, ddof=1)) if len(defined) > 1 else None
  return FewShot(shots, tuple(seeds), mean, spread, tuple(metrics))
