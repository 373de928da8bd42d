"""Every task on every data set: what is there, not done yet, and this job's."""

import dataclasses
import hashlib
import json
import logging
import pathlib
from collections.abc import Callable, Mapping

import jax

from rankclip_jax import lock, metrics
from rankclip_jax.config import Config
from rankclip_jax.data.benchmarks import opening, prompts
from rankclip_jax.data.benchmarks.items import NotPrepared
from rankclip_jax.data.benchmarks.opening import Opened
from rankclip_jax.inference import Model
from rankclip_jax.stopping import Stopped, StopSignal
from rankclip_jax.suite import checkpoints, jobs, parts, probing, tasks, written
from rankclip_jax.suite.checkpoints import Chosen
from rankclip_jax.suite.tasks import Found, Setting
from rankclip_jax.together import of_first, together

FEATURES = "features"

_TASKS: Mapping[tasks.Name, Callable[[Setting, Opened], Found]] = {
  "zeroshot_classification": tasks.zeroshot_classification,
  "zeroshot_retrieval": tasks.zeroshot_retrieval,
  "geometry": tasks.geometry_of_pairs,
  "linear_probe": probing.linear_probe,
  "few_shot_probe": probing.few_shot_probe,
}
# The tasks whose examples are taken for something.
_PREDICTING = ("zeroshot_classification", "zeroshot_retrieval", "linear_probe")
_STOPPING = (
  "Stopping when this task is done; what is done is kept. Ctrl-C again stops at once."
)

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class _Job:
  """What the tasks of one checkpoint share.

  Attributes:
    cfg: of the run.
    workdir: of the run.
    setting: the model and where everything lies.
    chosen: which checkpoint it is.
    board: of TensorBoard.
  """

  cfg: Config
  workdir: pathlib.Path
  setting: Setting
  chosen: Chosen
  board: metrics.Board


def run(cfg: Config, workdir: pathlib.Path) -> bool:
  """Measures the workdir's model, or `init.weights`, on `eval.datasets`.

  One JSON for every data set and task goes to `workdir/results/step_<step>`. Those of the
  newest checkpoint also go to `workdir/results`, and those of weights that are none only
  there. What has one already, of the same weights, data and prompts, is not done again;
  what is not there is skipped, and listed with the reason in `workdir/results/skipped`.

  Returns:
    Whether all is done; False after SIGTERM, SIGUSR1 or Ctrl-C.

  Raises:
    ValueError: if there is no such model or data set, a data set has a defect, or another
      process does the same job.
  """
  shard = f"{cfg.eval.shard}_of_{cfg.eval.num_shards}"
  locked = lock.held(
    workdir / jobs.RESULTS / "locks" / f"{shard}.json",
    f"Job {cfg.eval.shard} of {cfg.eval.num_shards} on {workdir}",
    "wait for it or stop it, or let both share the tasks by --config.eval.shard and "
    "--config.eval.num_shards.",
  )
  board = metrics.Board(workdir / metrics.BOARD / f"eval_{shard}")
  try:
    with StopSignal(_STOPPING) as stop, of_first(locked), board:
      _alone(lambda: jobs.note_begun(workdir, shard))
      skipped = _all(cfg, workdir, stop, board)
      _alone(lambda: jobs.note_skipped(workdir, shard, skipped))
  except Stopped:
    log.warning("Stopped by a signal; the same command goes on.")
    return False
  return True


def _alone(work: Callable[[], None]) -> None:
  """Work of process 0; if it fails there, all fail."""
  together(lambda: work() if jax.process_index() == 0 else None)


def _all(
  cfg: Config, workdir: pathlib.Path, stop: StopSignal, board: metrics.Board
) -> list[jobs.Skip]:
  """Does this job's tasks on every checkpoint; returns what was skipped of the last.

  Raises:
    Stopped: between tasks, or while it waits.
  """
  todo = jobs.mine(cfg)
  skipped: dict[tuple[str, tasks.Name], jobs.Skip] = {}
  for chosen in checkpoints.chosen(cfg, workdir, stop):
    weights = checkpoints.load(chosen, cfg, workdir)
    if weights is None:
      continue
    skipped.clear()
    model = Model(weights, batch_size=cfg.eval.batch_size)
    log.info("Evaluating %s on %s.", model.source, cfg.eval.datasets)
    job = _Job(cfg, workdir, _setting(model, cfg, workdir), chosen, board)
    for dataset, task in todo:
      stop.check()
      try:
        _measure(job, dataset, task)
      except NotPrepared as missing:
        skipped[dataset, task] = jobs.Skip(dataset, task, missing.todo)
        log.warning("%s of %s is skipped: %s", task, dataset, missing.todo)
  return list(skipped.values())


def _setting(model: Model, cfg: Config, workdir: pathlib.Path) -> Setting:
  return Setting(
    model,
    opening.Options(
      data_dir=cfg.data.tfds_dir,
      folder_dir=cfg.eval.folder_dir,
      names_file=cfg.eval.names,
      templates_file=cfg.eval.templates,
      holdout=cfg.data.holdout,
    ),
    workdir / FEATURES,
    protocol=cfg.eval.probe if cfg.eval.probe != "none" else "sweep",
    shots=cfg.eval.few_shot,
    shot_seeds=cfg.eval.few_shot_seeds,
    seed=cfg.seed,
    predictions=cfg.eval.predictions,
  )


def _measure(job: _Job, dataset: str, task: tasks.Name) -> None:
  """Does a task and writes its result, unless that is there.

  Raises:
    NotPrepared: if the data set is not there.
    ValueError: if it has a defect.
  """
  test = job.setting.open(dataset)
  name, key = test.benchmark.name, _key(job.setting, test, task)
  main = job.workdir / jobs.RESULTS
  own = main if job.chosen.step is None else jobs.of_step(job.workdir, job.chosen.step)
  predicted = job.cfg.eval.predictions and task in _PREDICTING
  done = lambda folder: written.is_done(folder, name, task, key, predicted=predicted)
  if parts.of_first(together(lambda: done(own))):
    log.info("%s of %s is done already.", task, dataset)
  else:
    found = _TASKS[task](job.setting, test)
    _alone(lambda: _write(job, test, task, key, found, own))
    values = [(metric, x) for metric, x in found.metrics.items() if x is not None]
    shown = " ".join(f"{metric} {x:.4f}" for metric, x in values)
    log.info("%s of %s: %s", task, name, shown)

  def publish() -> None:
    if job.chosen.newest and not done(main):
      written.publish(own, main, name, task)

  _alone(publish)


def _write(
  job: _Job,
  test: Opened,
  task: tasks.Name,
  key: str,
  found: Found,
  directory: pathlib.Path,
) -> None:
  """Writes what process 0 found, which is what all did."""
  name, step = test.benchmark.name, job.chosen.step
  if step is not None:  # before the JSON, which says that the task is done
    scalars = {f"eval/{name}/{task}/{metric}": x for metric, x in found.metrics.items()}
    job.board.write(step, scalars)
  written.write(
    directory,
    dataset=name,
    task=task,
    metrics=found.metrics,
    model=job.cfg.model.name,
    pretrained=job.workdir.resolve().name,
    extras={
      "key": key,
      "weights": job.setting.model.source,
      "step": step,
      "metric": test.benchmark.metric,
      "complete": test.complete,
      **found.extras,
    },
    predictions=found.predictions,
  )


def _key(setting: Setting, test: Opened, task: tasks.Name) -> str:
  """By all that a result depends on: weights, preprocessing, data and prompts."""
  seen = prompts.fingerprint(test.classes, test.templates, setting.model.resizing)
  probe = {
    "linear_probe": [setting.protocol, setting.seed],
    "few_shot_probe": [
      sorted(setting.shots),
      setting.shot_seeds,
      setting.seed,
      probing.FEW_SHOT_STRENGTH,
    ],
  }.get(task, [])
  facts = [setting.model.facts, seen, test.where, len(test.source), task, probe]
  return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
