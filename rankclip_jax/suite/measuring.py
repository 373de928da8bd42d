"""Every task on every data set: what is there, not done yet, and this job's."""

import contextlib
import dataclasses
import logging
import pathlib
from collections.abc import Callable, Iterator, Mapping

from rankclip_jax import lock, metrics
from rankclip_jax.config import Config
from rankclip_jax.data.benchmarks import opening, prompts
from rankclip_jax.data.benchmarks.items import NotPrepared
from rankclip_jax.data.benchmarks.opening import Opened
from rankclip_jax.inference import Model
from rankclip_jax.stopping import Stopped, StopSignal
from rankclip_jax.suite import (
  checkpoints,
  features,
  jobs,
  notes,
  parts,
  probing,
  tasks,
  written,
)
from rankclip_jax.suite.checkpoints import Chosen
from rankclip_jax.suite.tasks import Found, Setting
from rankclip_jax.together import by_first, of_first, stop_if_any, together

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
    diary: for those that join jobs; process 0's.
  """

  cfg: Config
  workdir: pathlib.Path
  setting: Setting
  chosen: Chosen
  board: metrics.Board
  diary: notes.Diary | None


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
  shard, flags = jobs.shard_of(cfg), together(lambda: jobs.flags_of(cfg))
  board = metrics.Board(workdir / metrics.BOARD / f"eval_{shard}")
  try:
    with StopSignal(_STOPPING) as stop, _locked(cfg, workdir), board:
      diary = by_first(lambda: notes.Diary(workdir, shard, flags))
      _all(cfg, workdir, stop, board, diary)
      by_first(lambda: diary and diary.ends())
  except Stopped:
    log.warning("Stopped by a signal; the same command goes on.")
    return False
  return True


@contextlib.contextmanager
def _locked(cfg: Config, workdir: pathlib.Path) -> Iterator[None]:
  """Keeps out the same job, and those that share the tasks among another number."""
  folder, count = workdir / jobs.RESULTS / "locks", cfg.eval.num_shards

  def check_others() -> None:
    for path in sorted(folder.glob("*_of_*.json")):
      i, _, n = path.stem.partition("_of_")
      if n != str(count) and lock.is_alive(path):
        raise lock.HeldError(
          f"Job {i} of {n} on {workdir} runs already {lock.owner(path)}; wait for it or "
          f"stop it, or give --config.eval.num_shards={n} here too."
        )

  own = lock.held(
    folder / f"{jobs.shard_of(cfg)}.json",
    f"Job {cfg.eval.shard} of {count} on {workdir}",
    "wait for it or stop it, or let both share the tasks by --config.eval.shard and "
    "--config.eval.num_shards.",
  )
  with of_first(own):
    by_first(check_others)  # after its own, so that of two that begin one sees the other
    yield


def _all(
  cfg: Config,
  workdir: pathlib.Path,
  stop: StopSignal,
  board: metrics.Board,
  diary: notes.Diary | None,
) -> None:
  """Does this job's tasks on every checkpoint.

  Raises:
    Stopped: between tasks and pictures, or while it waits.
  """
  todo = jobs.mine(cfg)
  for chosen in checkpoints.chosen(cfg, workdir, stop):
    weights = checkpoints.load(chosen, cfg, workdir)
    model = weights and Model(weights, batch_size=cfg.eval.batch_size)
    digest = features.of_model(model) if model else ""
    by_first(lambda x=chosen.step, y=digest: diary and diary.meets(x, y))
    if model is None:
      continue
    log.info("Evaluating %s on %s.", model.source, cfg.eval.datasets)
    job = _Job(cfg, workdir, _setting(model, cfg, workdir, stop), chosen, board, diary)
    for dataset, task in todo:
      stop_if_any(stop.received)
      told = _told(job, dataset, task)
      by_first(lambda x=chosen.step, y=told: diary and diary.tells(x, y))


def _told(job: _Job, dataset: str, task: tasks.Name) -> notes.Done | notes.Skip:
  """Does a task, or says why not; raises as `_measure`."""
  name = jobs.name_of(dataset, job.cfg)
  try:
    return notes.Done(name, task, _measure(job, dataset, task))
  except NotPrepared as missing:
    reason = missing.todo
  except tasks.Skipped as skipped:
    reason = str(skipped)
  log.warning("%s of %s is skipped: %s", task, dataset, reason)
  return notes.Skip(name, task, reason)


def _setting(
  model: Model, cfg: Config, workdir: pathlib.Path, stop: StopSignal
) -> Setting:
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
    check=stop.check,
  )


def _measure(job: _Job, dataset: str, task: tasks.Name) -> str:
  """Does a task and writes its result, unless that is there; returns the result's key.

  Raises:
    NotPrepared: if the data set is not there.
    Skipped: if the task cannot be done with it.
    ValueError: if it has a defect.
  """
  test = job.setting.open(dataset)
  name, key = test.benchmark.name, _key(job.setting, test, task)
  main = job.workdir / jobs.RESULTS
  own = jobs.of_step(job.workdir, job.chosen.step)
  predicted = job.cfg.eval.predictions and task in _PREDICTING
  done = lambda folder: written.is_done(folder, name, task, key, predicted=predicted)
  if parts.of_first(together(lambda: done(own))):
    log.info("%s of %s is done already.", task, dataset)
  else:
    found = _TASKS[task](job.setting, test)
    by_first(lambda: _write(job, test, task, key, found, own))
    values = [(metric, x) for metric, x in found.metrics.items() if x is not None]
    shown = " ".join(f"{metric} {x:.4f}" for metric, x in values)
    log.info("%s of %s: %s", task, name, shown)

  def publish() -> None:
    if job.chosen.newest and not done(main):
      written.publish(own, main, name, task)

  by_first(publish)
  return key


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
    model=_model_name(job),
    pretrained=job.workdir.resolve().name + ("" if step is None else f"@{step}"),
    extras={
      "key": key,
      "prompts": _prompts(job.setting.model, test),
      "weights": job.setting.model.source,
      "dtype": job.setting.model.size.dtype,
      "step": step,
      "metric": test.benchmark.metric,
      "complete": test.complete,
      **found.extras,
    },
    predictions=found.predictions,
  )


def _model_name(job: _Job) -> str:
  """As the config calls the model, or if it does not, what its architecture is called."""
  name = job.cfg.model.name
  return job.setting.model.size.name or name if name == "loaded" else name


def _prompts(model: Model, test: Opened) -> str:
  return prompts.fingerprint(test.classes, test.templates, model.resizing)


def _key(setting: Setting, test: Opened, task: tasks.Name) -> str:
  """By all that a result depends on: weights, preprocessing, data and prompts.

  Raises:
    NotPrepared: if a split that the task needs is not there.
  """
  model, fitted_on = setting.model, probing.splits_of(task, setting.protocol)
  data = [test.identity, *(setting.other(test, x).identity for x in fitted_on)]
  probe = {
    "linear_probe": [setting.protocol, setting.seed],
    "few_shot_probe": [
      sorted(setting.shots),
      setting.shot_seeds,
      setting.seed,
      probing.FEW_SHOT_STRENGTH,
    ],
  }.get(task, [])
  seen = _prompts(model, test)
  return features.digest([features.of_model(model), seen, data, task, probe])
