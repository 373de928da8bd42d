"""Every task on every data set: what is there, not done yet, and this job's."""

import contextlib
import hashlib
import json
import logging
import pathlib
from collections.abc import Callable, Mapping

import jax

from rankclip_jax import inference, start
from rankclip_jax.config import Config
from rankclip_jax.data.benchmarks import opening, prompts
from rankclip_jax.data.benchmarks.items import NotPrepared
from rankclip_jax.data.benchmarks.opening import Opened
from rankclip_jax.evals import results
from rankclip_jax.suite import jobs, tasks
from rankclip_jax.together import together

FEATURES = "features"

_TASKS: Mapping[tasks.Name, Callable[[tasks.Setting, Opened], tasks.Found]] = {
  "zeroshot_classification": tasks.zeroshot_classification,
  "zeroshot_retrieval": tasks.zeroshot_retrieval,
  "linear_probe": tasks.linear_probe,
}

log = logging.getLogger(__name__)


def run(cfg: Config, workdir: pathlib.Path) -> list[jobs.Skip]:
  """Measures the workdir's model, or `init.weights`, on `eval.datasets`.

  One JSON for every data set and task goes to `workdir/results`. What has one already, of
  the same weights, data and prompts, is not done again; what is not there is skipped and
  listed with the reason in `workdir/results/skipped`.

  Returns:
    What was skipped.

  Raises:
    ValueError: if there is no such model or data set, or a data set has a defect.
  """
  place = start.place_of(cfg, workdir)
  model = inference.load(
    place,
    step=cfg.eval.checkpoint,
    activation=cfg.model.activation,
    dtype=cfg.model.dtype,
    batch_size=cfg.eval.batch_size,
  )
  log.info("Evaluating %s on %s.", model.source, cfg.eval.datasets)
  setting = tasks.Setting(
    model,
    opening.Options(
      data_dir=cfg.data.tfds_dir,
      folder_dir=cfg.eval.folder_dir,
      names_file=cfg.eval.names,
      templates_file=cfg.eval.templates,
      holdout=cfg.data.holdout,
    ),
    workdir / FEATURES,
    cfg.eval.probe if cfg.eval.probe != "none" else "sweep",
    cfg.seed,
  )
  skipped = []
  for dataset, task in jobs.mine(cfg):
    try:
      _measure(setting, dataset, task, cfg, workdir)
    except NotPrepared as missing:
      skipped.append(jobs.Skip(dataset, task, missing.todo))
      log.warning("%s of %s is skipped: %s", task, dataset, missing.todo)
  if jax.process_index() == 0:
    jobs.note_skipped(workdir, cfg.eval.shard, cfg.eval.num_shards, skipped)
  return skipped


def _measure(
  setting: tasks.Setting, dataset: str, task: tasks.Name, cfg: Config, workdir
) -> None:
  """Does a task and writes its result, unless that is there.

  Raises:
    NotPrepared: if the data set is not there.
    ValueError: if it has a defect.
  """
  test = together(lambda: opening.open_benchmark(dataset, "test", setting.where))
  key = _key(setting, test, task)
  if _done(workdir / jobs.RESULTS, test.benchmark.name, task, key):
    log.info("%s of %s is done already.", task, dataset)
    return
  found = _TASKS[task](setting, test)
  extras = {
    "key": key,
    "weights": setting.model.source,
    "metric": test.benchmark.metric,
    "complete": test.complete,
    **found.extras,
  }
  if jax.process_index() == 0:
    results.write(
      workdir / jobs.RESULTS,
      dataset=test.benchmark.name,
      task=task,
      metrics=found.metrics,
      model=cfg.model.name,
      pretrained=workdir.resolve().name,
      extras=extras,
    )
  shown = " ".join(
    f"{name} {value:.4f}" for name, value in found.metrics.items() if value is not None
  )
  log.info("%s of %s: %s", task, test.benchmark.name, shown)


def _key(setting: tasks.Setting, test: Opened, task: tasks.Name) -> str:
  """By all that a result depends on: weights, preprocessing, data and prompts."""
  seen = prompts.fingerprint(test.classes, test.templates, setting.model.resizing)
  probe = [setting.protocol, setting.seed] if task == "linear_probe" else []
  facts = [setting.model.facts, seen, test.where, len(test.source), task, probe]
  return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _done(directory: pathlib.Path, dataset: str, task: str, key: str) -> bool:
  path = results.path_of(directory, dataset, task)
  if not path.is_file():
    return False
  with contextlib.suppress(ValueError):  # what cannot be read is done again
    return results.read(path).get(results.EXTRAS, {}).get("key") == key
  return False
