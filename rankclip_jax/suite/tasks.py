"""What is measured of a model on a data set: one function a task of CLIP_benchmark."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from rankclip_jax.data.benchmarks import opening
from rankclip_jax.data.benchmarks.opening import Opened
from rankclip_jax.data.benchmarks.table import BENCHMARKS, Split
from rankclip_jax.evals import classification, retrieval, zero_shot
from rankclip_jax.inference import Model
from rankclip_jax.probes import released, sweep
from rankclip_jax.probes.probe import Probe
from rankclip_jax.suite import features
from rankclip_jax.suite.features import Features

Name = Literal["zeroshot_classification", "zeroshot_retrieval", "linear_probe"]
Protocol = Literal["released", "sweep"]


@dataclasses.dataclass(frozen=True)
class Found:
  """Metrics by CLIP_benchmark's names, and what it has no place for."""

  metrics: Mapping[str, float | None]
  extras: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Setting:
  """What tasks share.

  Attributes:
    model: that is measured.
    where: of the data sets.
    cache: a folder for embeddings.
    protocol: of linear probes.
    seed: of what they draw.
  """

  model: Model
  where: opening.Options
  cache: pathlib.Path
  protocol: Protocol = "sweep"
  seed: int = 0

  def embedded(self, opened: Opened) -> Features:
    return features.of_split(self.model, opened, self.cache)


def zeroshot_classification(setting: Setting, test: Opened) -> Found:
  """Accuracy of the class whose prompts are nearest (CLIP, section 3.1)."""
  if not test.templates:
    raise ValueError(
      f"{test.benchmark.name} has no prompts; give some with "
      '--config.eval.templates=FILE, one a line, such as "a photo of a {c}."'
    )
  found = setting.embedded(test)
  weights = zero_shot.classifier(
    setting.model.encode_text,
    test.classes,
    test.templates,
    allow_duplicates=bool(test.benchmark.duplicates),
  )
  outcomes = zero_shot.outcomes(
    found.unit, found.labels, weights, scale=setting.model.logit_scale
  )
  confusions = classification.confusions(outcomes)
  extras = {
    "calibration_error": classification.calibration_error(outcomes),
    "confusions": classification.named(confusions, test.classes),
    "classes": len(test.classes),
    "templates": len(test.templates),
  }
  return Found(classification.evaluate(outcomes), extras | _speed(found))


def zeroshot_retrieval(setting: Setting, test: Opened) -> Found:
  """Recall, median and mean rank in both directions."""
  found = setting.embedded(test)
  # Pictures are not looked at here; whatever has captions is read once more.
  captions = [test.source[i].captions for i in range(len(test.source))]
  owner = np.repeat(np.arange(len(captions)), [len(each) for each in captions])
  text = setting.model.encode_text([text for each in captions for text in each])
  extras = {"captions": len(text)} | _speed(found)
  return Found(retrieval.evaluate(found.unit, text, owner), extras)


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
  extras = {"train_examples": examples} | _facts(probe, setting.protocol) | _speed(found)
  return Found({f"lp_{name}": value for name, value in metrics.items()}, extras)


def _released(setting: Setting, test: Opened) -> tuple[Probe, int]:
  """A probe of the training examples, and their number."""
  train = setting.embedded(_opened(setting, test, "trainval"))
  classes = len(test.classes)
  probe = released.fit(train.image, train.labels, classes=classes, seed=setting.seed)
  return probe, len(train.labels)


def _swept(setting: Setting, test: Opened) -> tuple[Probe, int]:
  """The same, of which some chose the strength."""
  train, val = (
    setting.embedded(_opened(setting, test, split)) for split in ("train", "val")
  )
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


def _opened(setting: Setting, test: Opened, split: Split) -> Opened:
  """Another split of the data set."""
  name = test.where if test.benchmark.name not in BENCHMARKS else test.benchmark.name
  return opening.open_benchmark(name, split, setting.where)


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


def _speed(found: Features) -> dict[str, Any]:
  count = len(found.labels)
  return {
    "images": count,
    "images_per_second": count / found.seconds if found.seconds else None,
  }
