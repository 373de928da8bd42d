"""What several jobs measured as one table."""

import csv
import io
import pathlib
from collections.abc import Sequence

from rankclip_jax import checkpoint
from rankclip_jax.config import SEVERAL, Config
from rankclip_jax.evals import results
from rankclip_jax.suite import checkpoints, jobs, notes
from rankclip_jax.suite.notes import Done, Note, Skip, Visit

FILE = "results.csv"
_FIRST = ("dataset", "task", "metric", "value", "note")


def merge(cfg: Config, workdir: pathlib.Path) -> str:
  """Writes `workdir/results/results.csv`, a line for every metric of every task.

  A task that was skipped has one line, with the reason as its note. With several
  checkpoints the first column is the step.

  Returns:
    What to print.

  Raises:
    ValueError: if a job has not ended, ran with other flags or measured other weights
      than another one, or if a result is not the one that its job noted.
  """
  several = cfg.eval.checkpoint in SEVERAL
  found = notes.of_all(workdir, cfg.eval.num_shards, jobs.flags_of(cfg))
  steps = _steps(found)
  if not several and len(steps) != 1:
    raise ValueError(
      f"Jobs in {workdir} measured several checkpoints, {steps}; run them again when "
      "training has ended, or with a step as --config.eval.checkpoint."
    )
  kept = checkpoint.steps_of(checkpoints.place_of(cfg, workdir))
  lines = []
  for step in steps:
    gone = several and step not in kept
    visits = _visits(found, step, gone=gone)
    for dataset, task in jobs.whole(cfg):
      told = _told(visits, jobs.name_of(dataset, cfg), task, gone=gone)
      rows = _lines(jobs.of_step(workdir, step), told)
      lines += [(step, *row) if several else row for row in rows]
  path = workdir / jobs.RESULTS / FILE
  text = io.StringIO(newline="")
  header = ("step", *_FIRST) if several else _FIRST
  csv.writer(text).writerows([header, *lines])
  results.write_text(path, text.getvalue())
  skipped = sum(bool(line[-1]) for line in lines)
  done = len({line[:-3] for line in lines if not line[-1]})
  return f"{done} tasks are done, {skipped} were skipped: {path}"


def _steps(found: Sequence[Note]) -> list[int | None]:
  """Every checkpoint that a job met, ascending.

  Raises:
    ValueError: if there is none.
  """
  steps = {visit.step for note in found for visit in note.visits}
  if not steps:
    raise ValueError("No job met a checkpoint, so that there is nothing to merge.")
  return sorted(steps, key=lambda step: -1 if step is None else step)


def _visits(found: Sequence[Note], step: int | None, *, gone: bool) -> list[Visit]:
  """What all jobs did with a checkpoint.

  Args:
    found: notes of all jobs.
    step: of the checkpoint.
    gone: whether training has deleted it since, maybe before all jobs met it.

  Raises:
    ValueError: if a job never met it, or they met other weights.
  """
  visits = [note.of_step(step) for note in found]
  absent = [shard for shard, visit in enumerate(visits) if visit is None]
  if absent and not gone:
    raise ValueError(
      f"Jobs {absent} of {len(found)} have not measured the checkpoint of step {step}; "
      "run them again."
    )
  met = [visit or Visit(step, "") for visit in visits]
  weights = [visit.weights for visit in met]
  if len(set(weights) - {""}) > 1:
    first = next(each for each in weights if each)
    others = [i for i, each in enumerate(weights) if each and each != first]
    of = "" if step is None else f" of step {step}"
    raise ValueError(
      f"Jobs {others} of {len(found)} measured other weights{of}, or in another "
      f"arithmetic, than job {weights.index(first)}; run all jobs with the same."
    )
  return met


def _told(visits: Sequence[Visit], name: str, task: str, *, gone: bool) -> Done | Skip:
  """What the jobs say of a task."""
  for visit in visits:
    for each in (*visit.done, *visit.skipped):
      if (each.dataset, each.task) == (name, task):
        return each
  if gone or any(not visit.weights for visit in visits):
    return Skip(name, task, "the checkpoint was deleted")
  raise ValueError(f"No job tells of {task} of {name}; run all of them again.")


def _lines(directory: pathlib.Path, told: Done | Skip) -> list[tuple]:
  """The lines of a task.

  Raises:
    ValueError: if its result is not there, or is another one.
  """
  name, task = told.dataset, told.task
  if isinstance(told, Skip):
    return [(name, task, "", "", f"skipped: {told.reason}")]
  path = results.path_of(directory, name, task)
  again = "run the job again with the same flags"
  if not path.is_file():
    raise ValueError(f"There is no result for {task} of {name} at {path}; {again}.")
  result = results.read(path)
  if result.get(results.EXTRAS, {}).get("key") != told.key:
    raise ValueError(
      f"{path} is of other weights, data or prompts than its job measured; {again}."
    )
  return [(name, task, metric, value, "") for metric, value in result["metrics"].items()]
