"""What is measured of a model on a data set: one function a task; `probing` has more."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import numpy as np

from rankclip_jax.data.benchmarks import opening
from rankclip_jax.data.benchmarks.items import NotPrepared
from rankclip_jax.data.benchmarks.opening import Opened
from rankclip_jax.data.benchmarks.table import Split
from rankclip_jax.evals import classification, geometry, retrieval, zero_shot
from rankclip_jax.inference import Model
from rankclip_jax.suite import features, predictions
from rankclip_jax.suite.features import Features
from rankclip_jax.together import digests_of_all, of_all, together

Name = Literal[
  "zeroshot_classification",
  "zeroshot_retrieval",
  "geometry",
  "linear_probe",
  "few_shot_probe",
]
Protocol = Literal["released", "sweep"]


@dataclasses.dataclass(frozen=True)
class Found:
  """Metrics by CLIP_benchmark's names, and what it has no place for.

  Attributes:
    metrics: by name.
    extras: what JSON can hold.
    predictions: arrays, where they were asked for, of process 0.
  """

  metrics: Mapping[str, float | None]
  extras: Mapping[str, Any]
  predictions: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


class Skipped(ValueError):
  """A task cannot be done with these data; the message says why."""


@dataclasses.dataclass(frozen=True)
class Setting:
  """What the tasks of one checkpoint share.

  Attributes:
    model: that is measured.
    where: of the data sets.
    cache: a folder for embeddings.
    protocol: of linear probes.
    shots: examples a class, of few-shot probes.
    shot_seeds: draws of them.
    seed: of what probes draw.
    predictions: whether they are wanted.
    check: raises `Stopped` once this process is told to stop.
    opened: splits of the last data set, by its name and theirs: large ones take minutes
      to open, and tasks of one data set follow each other.
  """

  model: Model
  where: opening.Options
  cache: pathlib.Path
  protocol: Protocol = "sweep"
  shots: tuple[int, ...] = ()
  shot_seeds: int = 3
  seed: int = 0
  predictions: bool = False
  check: Callable[[], None] = lambda: None
  opened: dict[tuple[str, Split], Opened] = dataclasses.field(default_factory=dict)

  def open(self, name: str, split: Split = "test") -> Opened:
    """Opens a split on every process; its identity is that on process 0.

    Raises:
      NotPrepared: on all of them, if it is there on none.
      ValueError: on all, if it has a defect, or is there on some only.
    """
    if (name, split) in self.opened:
      return self.opened[name, split]
    for other in [key for key in self.opened if key[0] != name]:
      del self.opened[other]

    def attempt() -> Opened | NotPrepared:
      try:
        return opening.open_benchmark(name, split, self.where)
      except NotPrepared as missing:
        return missing

    found = together(attempt)
    absent = of_all(isinstance(found, NotPrepared))
    if not absent.all() and absent.any():
      raise ValueError(
        f"{name}: process {int(np.argmax(absent))} does not find it, and process "
        f"{int(np.argmin(absent))} does; put it where all of them see it."
      )
    if isinstance(found, NotPrepared):
      raise found
    identity = digests_of_all(found.identity)[0]
    self.opened[name, split] = dataclasses.replace(found, identity=identity)
    return self.opened[name, split]

  def other(self, test: Opened, split: Split) -> Opened:
    """Another split of the data set; raises as `open`."""
    return self.open(test.name, split)

  def embedded(self, opened: Opened) -> Features:
    return features.of_split(self.model, opened, self.cache, self.check)

  def predicted(
    self, make: Callable[[], Mapping[str, np.ndarray]]
  ) -> Mapping[str, np.ndarray]:
    """What `make` gives, where it is wanted; process 0 writes it, and makes it alone."""
    wanted = self.predictions and jax.process_index() == 0
    return together(lambda: make() if wanted else {})


def zeroshot_classification(setting: Setting, test: Opened) -> Found:
  """Accuracy of the class whose prompts are nearest (CLIP, section 3.1)."""
  if not test.templates:
    raise ValueError(
      f"{test.benchmark.name} has no prompts; give some with "
      '--config.eval.templates=FILE, one a line, such as "a photo of a {c}."'
    )
  found = setting.embedded(test)
  weights = features.of_classes(setting.model, test, setting.cache, setting.check)
  scale = setting.model.logit_scale
  outcomes = zero_shot.outcomes(found.unit, found.labels, weights, scale=scale)
  confusions = classification.confusions(outcomes)
  extras = {
    "calibration_error": classification.calibration_error(outcomes),
    "confusions": classification.named(confusions, test.classes),
    "classes": len(test.classes),
    "templates": len(test.templates),
  }
  predicted = setting.predicted(
    lambda: predictions.of_classes(
      keys_of(test), found.labels, found.unit, weights, scale=scale
    )
  )
  return Found(classification.evaluate(outcomes), extras | speed(found), predicted)


def zeroshot_retrieval(setting: Setting, test: Opened) -> Found:
  """Recall, median and mean rank in both directions."""
  found, text, owner = _captioned(setting, test)
  extras = {"captions": len(text)} | speed(found)
  predicted = setting.predicted(
    lambda: predictions.of_retrieval(keys_of(test), owner, found.unit, text)
  )
  return Found(retrieval.evaluate(found.unit, text, owner), extras, predicted)


def geometry_of_pairs(setting: Setting, test: Opened) -> Found:
  """How pictures and their first captions lie on the sphere, and order each other."""
  found, text, owner = _captioned(setting, test)
  first = np.unique(owner, return_index=True)[1]
  extras = {"pairs": len(first), "captions": "each picture's first"} | speed(found)
  return Found(geometry.evaluate(found.unit, text[first]), extras)


def keys_of(opened: Opened) -> list[str]:
  """Of all examples; reads the data once more, but looks at no picture."""
  return [opened.source[i].key for i in range(len(opened.source))]


def speed(found: Features) -> dict[str, Any]:
  """How many pictures were embedded; if it was now, how fast, and bound by input how far.

  `input_bound` is the share of the time in which devices waited for pictures.
  """
  count, seconds = len(found.labels), found.seconds
  return {
    "images": count,
    "images_per_second": count / seconds if seconds else None,
    "input_bound": found.waited / seconds if seconds else None,
  }


def _captioned(setting: Setting, test: Opened) -> tuple[Features, np.ndarray, np.ndarray]:
  """Pictures, captions [captions, dim] L2-normalised, and the picture of each."""
  found = setting.embedded(test)
  # Pictures are not looked at here; whatever has captions is read once more.
  captions = together(lambda: [test.source[i].captions for i in range(len(test.source))])
  owner = np.repeat(np.arange(len(captions)), [len(each) for each in captions])
  flat = [text for each in captions for text in each]
  name, check = test.benchmark.name, setting.check
  text = features.of_texts(setting.model, flat, setting.cache, check, name)
  return found, text, owner
