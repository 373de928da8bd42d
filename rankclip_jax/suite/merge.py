"""What several jobs measured as one table."""

import csv
import io
import pathlib

from rankclip_jax.config import Config
from rankclip_jax.data.benchmarks import opening
from rankclip_jax.evals import results
from rankclip_jax.suite import jobs

FILE = "results.csv"
_FIRST = ("dataset", "task", "metric", "value", "note")


def merge(cfg: Config, workdir: pathlib.Path) -> str:
  """Writes `workdir/results/results.csv`, a line for every metric of every task.

  A task that was skipped has one line, with the reason as its note.

  Returns:
    What to print.

  Raises:
    ValueError: if a job has not ended, or a result that should be there is not.
  """
  left_out = {(s.dataset, s.task): s for s in jobs.skipped(workdir, cfg.eval.num_shards)}
  whole, lines, missing = jobs.whole(cfg), [], []
  for dataset, task in whole:
    name = opening.named(dataset).name
    path = results.path_of(workdir / jobs.RESULTS, name, task)
    if skip := left_out.get((dataset, task)):
      lines.append((name, task, "", "", f"skipped: {skip.reason}"))
    elif not path.is_file():
      missing.append(f"{task} of {name}")
    else:
      metrics = results.read(path)["metrics"]
      lines += [(name, task, metric, value, "") for metric, value in metrics.items()]
  if missing:
    raise ValueError(
      f"{workdir} has no result for {', '.join(missing)}, and nothing says why; run the "
      "job again with the same --config.eval.datasets."
    )
  path = workdir / jobs.RESULTS / FILE
  text = io.StringIO(newline="")
  csv.writer(text).writerows([_FIRST, *lines])
  results.write_text(path, text.getvalue())
  done = len(whole) - len(left_out)
  return f"{done} tasks are done, {len(left_out)} were skipped: {path}"
