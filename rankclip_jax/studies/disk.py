"""What is on disk of a run: how far it came, by which config, and its numbers."""

import dataclasses
import fcntl
import json
import pathlib
import time
from typing import IO, Any, Literal

from rankclip_jax import config as configs
from rankclip_jax.evals import results
from rankclip_jax.stopping import EXIT_STOPPED
from rankclip_jax.studies.study import Metric, Run, Study

# What a runner writes behind the output of a run when it has ended.
EXIT_LINE = "studies: ended with code"

# What training leaves when it has ended (`checkpoint.COMPLETE`, which needs jax).
COMPLETE = "training_complete.json"

State = Literal["done", "running", "failed", "interrupted", "missing"]


@dataclasses.dataclass(frozen=True)
class Status:
  """How far a run came, and more in words: its last error, or its last step."""

  state: State
  detail: str = ""


def is_done(run: Run, study: Study) -> bool:
  """Whether it was trained to its end and every number of the study was measured."""
  if not (run.workdir / COMPLETE).is_file():
    return False
  return all(_result_path(run, metric).is_file() for metric in study.metrics)


def value(run: Run, metric: Metric) -> float | None:
  """A number of a finished run; None where it is undefined.

  Raises:
    ValueError: if the results have no such metric.
  """
  path = _result_path(run, metric)
  found = results.read(path)["metrics"]
  if metric.name not in found:
    raise ValueError(f"{path} has no {metric.name}; there are {', '.join(found)}.")
  return found[metric.name]


def status(run: Run, study: Study) -> Status:
  """How far it came.

  Raises:
    ValueError: if its folder belongs to a run of another config.
  """
  check_config(run)
  log = log_path(run)
  if log.is_file() and _is_locked(log):
    return Status("running", _last_step(run))
  if is_done(run, study):
    return Status("done")
  if error := _last_error(run, study):
    return Status("failed", error)
  if (run.workdir / "config.json").is_file():
    return Status("interrupted", _last_step(run))
  return Status("missing")


def check_config(run: Run) -> None:
  """Refuses a folder in which a run of another config lies.

  Raises:
    ValueError: naming every field that differs.
  """
  path = run.workdir / "config.json"
  if not path.is_file():
    return
  saved = _json(path)
  if wrong := configs.contradictions(saved, run.config):
    lines = "\n  ".join(line.replace("the checkpoint", "the run") for line in wrong)
    raise ValueError(
      f"{run.workdir} holds a run of another config than the study's:\n  {lines}\n"
      "Give --set as it was given then, or another --workdir."
    )


def facts(run: Run) -> dict[str, Any]:
  """Where and by which code a run was made (`environment.json`); {} if nobody wrote."""
  path = run.workdir / "environment.json"
  return _json(path) if path.is_file() else {}


def log_path(run: Run) -> pathlib.Path:
  """What a run printed, when `run` started it. Whoever runs it has a lock on it."""
  return run.workdir.parent / "logs" / f"{run.name}.log"


def lock(log: IO[bytes]) -> bool:
  """Takes an opened log for this process and its children; whether nobody else has it.

  The system gives a lock back when the last of them ends, however they end.
  """
  for _ in range(3):  # whoever asks for a status has it for a moment
    try:
      fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
      return True
    except BlockingIOError:
      time.sleep(0.1)
  return False


def _is_locked(path: pathlib.Path) -> bool:
  with path.open("rb") as log:
    try:
      fcntl.flock(log, fcntl.LOCK_SH | fcntl.LOCK_NB)
      return False
    except BlockingIOError:
      return True


def _result_path(run: Run, metric: Metric) -> pathlib.Path:
  dataset = metric.dataset or configs.held_out_name(run.config)
  return results.path_of(run.workdir / "results", dataset, metric.task)


def _last_error(run: Run, study: Study) -> str:
  """Why it ended without being done, if by an error; "" where it was only interrupted."""
  log = log_path(run)
  text = log.read_text(errors="replace") if log.is_file() else ""
  lines = [line for line in text.splitlines() if line.strip()]
  if lines and lines[-1].startswith(EXIT_LINE):
    code = int(lines[-1].removeprefix(EXIT_LINE))
    if code == 0:
      paths = [_result_path(run, metric) for metric in study.metrics]
      paths.append(run.workdir / COMPLETE)
      lacking = next(path.name for path in paths if not path.is_file())
      return f"it ended without {lacking}; {log} may say why"
    if code != EXIT_STOPPED:
      ends = [i for i, line in enumerate(lines[:-1]) if line.startswith(EXIT_LINE)]
      lines = lines[ends[-1] + 1 if ends else 0 : -1] or ["no output"]
      errors = [line for line in lines if line.startswith("Error: ")]
      return f"code {code}: {(errors or lines)[-1]}"
  # Of a run that was started without a runner there is this, newer than what went well.
  own, later = run.workdir / "error.log", run.workdir / "metrics.jsonl"
  if not own.is_file():
    return ""
  if later.is_file() and later.stat().st_mtime > own.stat().st_mtime:
    return ""
  return own.read_text(errors="replace").strip().splitlines()[-1]


def _last_step(run: Run) -> str:
  """The last step that was logged, and when."""
  path = run.workdir / "metrics.jsonl"
  lines = path.read_text().splitlines() if path.is_file() else []
  for line in reversed(lines):
    try:
      step = json.loads(line)["step"]
    except ValueError:  # it is being written
      continue
    minutes = (time.time() - path.stat().st_mtime) / 60
    return f"step {step}, {minutes:.0f} min ago"
  return "no step yet"


def _json(path: pathlib.Path) -> dict[str, Any]:
  try:
    return json.loads(path.read_text(encoding="utf-8"))
  except ValueError as error:
    raise ValueError(
      f"{path}: expected JSON, got {error}; remove {path.parent} and run it again."
    ) from error
