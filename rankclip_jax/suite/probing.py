"""Tasks that fit linear classifiers to a model's embeddings of pictures."""

import functools
import logging
from typing import Any

import numpy as np

from rankclip_jax.data.benchmarks.items import HOLDOUT_EVERY
from rankclip_jax.data.benchmarks.opening import Opened
from rankclip_jax.data.benchmarks.table import Split
from rankclip_jax.evals import classification
from rankclip_jax.probes import few_shot, released, sweep
from rankclip_jax.probes.probe import Probe
from rankclip_jax.suite import predictions
from rankclip_jax.suite.tasks import Found, Protocol, Setting, Skipped, keys_of, speed

FEW_SHOT_STRENGTH = 1.0
"""L2 strength of few-shot probes: scikit-learn's default. One example a class leaves none
to choose it by, and choosing it by the test split would be cheating."""

_FEW_SHOT_METRICS = ("acc1", "mean_per_class_recall")

log = logging.getLogger(__name__)


def splits_of(task: str, protocol: Protocol) -> tuple[Split, ...]:
  """What a task fits its classifiers to."""
  if task == "linear_probe":
    return ("trainval",) if protocol == "released" else ("train", "val")
  return ("trainval",) if task == "few_shot_probe" else ()


def linear_probe(setting: Setting, test: Opened) -> Found:
  """Accuracy of a linear classifier of the image embeddings.

  Protocol `released` takes them as they are (CyCLIP's code), `sweep` L2-normalised
  (CLIP_benchmark's).
  """
  fit = {"released": _released, "sweep": _swept}[setting.protocol]
  probe, examples = fit(setting, test)
  found = setting.embedded(test)
  features = found.image if setting.protocol == "released" else found.unit
  outcomes = classification.of_linear(features, found.labels, probe.weights, probe.bias)
  metrics = classification.evaluate(outcomes)
  extras = {"train_examples": examples} | _facts(probe, setting.protocol) | speed(found)
  predicted = setting.predicted(
    lambda: predictions.of_classes(
      keys_of(test), found.labels, features, probe.weights, probe.bias
    )
  )
  named = {f"lp_{name}": value for name, value in metrics.items()}
  return Found(named, extras, predicted)


def few_shot_probe(setting: Setting, test: Opened) -> Found:
  """The same of k training examples a class: mean and spread over draws.

  Features are L2-normalised, and the penalty is `FEW_SHOT_STRENGTH` for every k. Those k
  are left out of which a class has fewer examples.

  Raises:
    Skipped: if none is left.
  """
  train = setting.embedded(setting.other(test, "trainval"))
  classes = len(test.classes)
  counts = np.bincount(train.labels, minlength=classes)
  shots = [k for k in sorted(setting.shots) if k <= counts.min()]
  left_out = {
    str(k): f"{test.benchmark.name} has {counts.min()} examples of "
    f"{test.classes[int(counts.argmin())]!r} to train on"
    for k in sorted(setting.shots)
    if k not in shots
  }
  for k, reason in left_out.items():
    log.warning("Few-shot probes of %s examples a class are left out: %s.", k, reason)
  if not shots:
    k, reason = next(iter(left_out.items()))
    raise Skipped(f"{reason}, and config.eval.few_shot asks for {k} at least.")
  found = setting.embedded(test)
  seeds = range(setting.seed, setting.seed + setting.shot_seeds)
  results = few_shot.evaluate(
    (train.unit, train.labels),
    (found.unit, found.labels),
    functools.partial(sweep.fit_one, classes=classes, strength=FEW_SHOT_STRENGTH),
    classes=classes,
    shots=shots,
    seeds=seeds,
  )
  metrics = {
    f"lp_{name}_k{each.shots}_{what}": values[name]
    for each in results
    for name in _FEW_SHOT_METRICS
    for what, values in (("mean", each.mean), ("std", each.spread))
  }
  extras = {
    "strength": FEW_SHOT_STRENGTH,
    "left_out": left_out,
    "seeds": list(seeds),
    "draws": [
      {"shots": each.shots, "by_seed": [dict(one) for one in each.by_seed]}
      for each in results
    ],
    "train_examples": len(train.labels),
  }
  return Found(metrics, extras | speed(found))


def _released(setting: Setting, test: Opened) -> tuple[Probe, int]:
  """A probe of the training examples, and their number."""
  train = setting.embedded(setting.other(test, "trainval"))
  classes = len(test.classes)
  probe = released.fit(train.image, train.labels, classes=classes, seed=setting.seed)
  return probe, len(train.labels)


def _swept(setting: Setting, test: Opened) -> tuple[Probe, int]:
  """The same, of which some chose the strength.

  Raises:
    ValueError: if there are too few of them.
  """
  opened = [setting.other(test, x) for x in splits_of("linear_probe", "sweep")]
  if not len(opened[1].source):
    raise ValueError(
      f"{test.benchmark.name}: expected at least {HOLDOUT_EVERY} training examples, as "
      f"every {HOLDOUT_EVERY}th is for validation, got {len(opened[0].source)}; add "
      "some, or a split val, or probe with --config.eval.probe=released."
    )
  train, val = map(setting.embedded, opened)
  by_class = test.benchmark.metric == "mean_per_class_recall"
  probe = sweep.fit(
    train.unit,
    train.labels,
    classes=len(test.classes),
    validation=(val.unit, val.labels),
    seed=setting.seed,
    metric="mean_per_class_recall" if by_class else "acc1",
  )
  return probe, len(train.labels) + len(val.labels)


def _facts(probe: Probe, protocol: Protocol) -> dict[str, Any]:
  facts = {"protocol": protocol, "train_loss": probe.final_loss}
  if protocol == "released":
    return facts
  return facts | {
    "strength": probe.strength,
    "converged": probe.converged,
    "strengths": probe.strengths.tolist(),
    "validation": probe.validation.tolist(),
  }
