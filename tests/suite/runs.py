"""What the tests of the suite share beside fixtures."""

import dataclasses
import pathlib

import numpy as np

from rankclip_jax.config import Config
from rankclip_jax.data.benchmarks import prompts, table
from rankclip_jax.evals import results

CIFAR = prompts.classes_of(table.find("vtab/cifar10")).labels
CAPTIONS = ("a\nb", "c", "d\ne\nf", "g")
# Of the captions; none is so like another that rounding decides which is nearer.
PICTURES = np.random.default_rng(0).integers(0, 256, (4, 5, 7, 3), np.uint8)
STEPS = (5, 10, 20)


def changed(cfg: Config, **fields) -> Config:
  return dataclasses.replace(cfg, eval=dataclasses.replace(cfg.eval, **fields))


def of_training(cfg: Config, **fields) -> Config:
  """For the checkpoints of a workdir."""
  return changed(
    dataclasses.replace(cfg, init=dataclasses.replace(cfg.init, weights="")), **fields
  )


def written(workdir: pathlib.Path, folder: str = "") -> dict[tuple[str, str], dict]:
  """Results by data set and task."""
  found = results.read_all(workdir / "results" / folder)
  return {(x["dataset"], x["task"]): x for x in found}


def count_calls(monkeypatch, mapping, key) -> list[int]:
  """A list that grows with every call of `mapping[key]`."""
  calls, work = [], mapping[key]
  monkeypatch.setitem(mapping, key, lambda *args: calls.append(1) or work(*args))
  return calls
