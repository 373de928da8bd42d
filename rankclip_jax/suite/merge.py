"""What several jobs measured as one table."""

import csv
import io
import pathlib

from rankclip_jax import checkpoint
from rankclip_jax.config import SEVERAL, Config
from rankclip_jax.data.benchmarks import opening
from rankclip_jax.evals import results
from rankclip_jax.suite import checkpoints, jobs

FILE = "results.csv"
_FIRST = ("dataset", "task", "metric", "value", "note")


def merge(cfg: Config, workdir: pathlib.Path) -> str:
  """Writes `workdir/results/results.csv`, a line for every metric of every task.

  A task that was skipped has one line, with the reason as its note. With several
  checkpoints the first column is the step.

  Returns:
    What to print.

  Raises:
    ValueError: if a job has not ended, or a result that should be there is not.
  """
  reasons = {
    (skip.dataset, skip.task): f"skipped: {skip.reason}"
    for skip in jobs.skipped(workdir, cfg.eval.num_shards)
  }
  if cfg.eval.checkpoint in SEVERAL:
    header, lines, missing = ("step", *_FIRST), [], []
    kept = set(checkpoint.steps_of(checkpoints.place_of(cfg, workdir)))
    for step in jobs.steps(workdir):
      # A training that goes on deletes checkpoints, maybe before all jobs have met them.
      gone = "" if step in kept else "skipped: the checkpoint was deleted"
      found, absent = _lines(cfg, jobs.of_step(workdir, step), reasons, gone)
      lines += [(step, *line) for line in found]
      missing += [f"{one} at step {step}" for one in absent]
  else:
    header = _FIRST
    lines, missing = _lines(cfg, workdir / jobs.RESULTS, reasons)
  if missing:
    raise ValueError(
      f"{workdir} has no result for {', '.join(missing)}, and nothing says why; run the "
      "job again with the same --config.eval.datasets."
    )
  path = workdir / jobs.RESULTS / FILE
  text = io.StringIO(newline="")
  csv.writer(text).writerows([header, *lines])
  results.write_text(path, text.getvalue())
  skipped = sum(bool(line[-1]) for line in lines)
  done = len({line[:-3] for line in lines if not line[-1]})
  return f"{done} tasks are done, {skipped} were skipped: {path}"


def _lines(
  cfg: Config,
  directory: pathlib.Path,
  reasons: dict[tuple[str, str], str],
  gone: str = "",
) -> tuple[list[tuple], list[str]]:
  """The lines of a folder of results, and what is missing there without a reason.

  Args:
    cfg: says which tasks there are.
    directory: of results.
    reasons: why tasks were skipped.
    gone: a reason for every task.
  """
  lines, missing = [], []
  for dataset, task in jobs.whole(cfg):
    name = opening.named(dataset).name
    path = results.path_of(directory, name, task)
    reason = reasons.get((dataset, task), gone)
    # What was skipped has no result of these weights, but maybe of others; only in a
    # folder of one step all are of the same.
    if path.is_file() and (not reason or directory.name != jobs.RESULTS):
      metrics = results.read(path)["metrics"]
      lines += [(name, task, metric, value, "") for metric, value in metrics.items()]
    elif reason:
      lines.append((name, task, "", "", reason))
    else:
      missing.append(f"{task} of {name}")
  return lines, missing
