"""A study of two objectives, and runs of it that only look as if they had been made."""

import dataclasses
import json
import pathlib

import pytest

from rankclip_jax import config
from rankclip_jax.evals import results
from rankclip_jax.studies import Study, Variant, disk, study

SETTINGS = {"model.name": "nano", "optim.epochs": "1"}


@pytest.fixture
def tiny():
  """CLIP at 0 and RankCLIP at 1 and 2."""
  sweep = {"objective.ramp_ceiling": 1.0}
  return Study(
    name="tiny",
    x_label="weight",
    variants=[
      Variant("clip", "CLIP", 0.0, "configs/openmoji.py:small,clip"),
      Variant("low", "RankCLIP", 1.0, "configs/openmoji.py:small,rankclip", sweep),
      Variant("rankclip", "RankCLIP", 2.0, "configs/openmoji.py:small,rankclip"),
    ],
    seeds=2,
  )


@pytest.fixture
def runs(tiny, tmp_path):
  return study.expand(tiny, tmp_path, seeds=2, settings=SETTINGS)


def begin(run: study.Run, **changes) -> None:
  """What a run leaves at its beginning."""
  run.workdir.mkdir(parents=True, exist_ok=True)
  cfg = dataclasses.replace(run.config, **changes)
  (run.workdir / "config.json").write_text(config.to_json(cfg))
  facts = {"commit": "abc+", "device_kind": "cpu", "devices": 1, "jax": "0.10"}
  (run.workdir / "environment.json").write_text(json.dumps(facts))
  line = json.dumps({"step": 7, "train/loss": 1.0})
  (run.workdir / "metrics.jsonl").write_text(line + "\n")


def finish(run: study.Run, number: float, **others) -> None:
  """What a run leaves at its end: recalls of `number`, rank consistencies of twice it."""
  begin(run)
  (run.workdir / disk.COMPLETE).write_text('{"step": 7}')
  for metrics, factor in ((study.RETRIEVAL, 1), (study.RANKING, 2)):
    results.write(
      run.workdir / "results",
      dataset="openmoji",
      task=metrics[0].task,
      metrics={metric.name: factor * number for metric in metrics} | others,
      model="nano",
      pretrained=run.name,
      extras={"step": 7},
    )


def log(run: study.Run, text: str) -> pathlib.Path:
  """What a runner leaves of a run."""
  path = run.workdir.parent / "logs" / f"{run.name}.log"
  path.parent.mkdir(exist_ok=True)
  path.write_text(text)
  return path
