"""Reads what a run left in its workdir. Knows no plots and no HTML."""

import dataclasses
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rankclip_jax.report import embeddings, measured, pictures
from rankclip_jax.report.embeddings import Embeddings
from rankclip_jax.report.logged import Curve, read_metrics
from rankclip_jax.report.measured import Key, Result, Skip
from rankclip_jax.report.pictures import Picture

# What a workdir may hold: the file, and the `--config.mode` of main.py that writes it.
PARTS: Mapping[str, tuple[str, str]] = {
  "config": ("config.json", "train"),
  "environment": ("environment.json", "train"),
  "metrics": ("metrics.jsonl", "train"),
  "results": ("results/*.json", "eval"),
  "embeddings": ("results/*_embeddings.npz", "eval"),
}


@dataclasses.dataclass(frozen=True)
class Run:
  """Everything the report shows of one run; `absent` says why a part is not there."""

  name: str
  workdir: Path
  config: Mapping[str, Any]
  environment: Mapping[str, Any]
  curves: Mapping[str, Curve]
  logged: tuple[float, float] | None  # first and last time of a line, Unix seconds
  results: tuple[Result, ...]
  skipped: tuple[Skip, ...]
  by_step: Mapping[Key, Curve]  # the results of each checkpoint
  embeddings: Embeddings | None
  pictures: tuple[Picture, ...]
  absent: Mapping[str, str]

  @property
  def trained_here(self) -> bool:
    """False for a folder that holds only results, of weights from elsewhere."""
    return bool(not self.results or {"config", "metrics"} - self.absent.keys())

  def command(self, mode: str, *flags: str) -> str:
    """The command line that works on this run in `mode`."""
    workdir = shlex.quote(str(self.workdir))
    words = ["python main.py --config=...", f"--workdir={workdir}"]
    if mode == "eval" and not self.trained_here:
      words.append("--config.init.weights=...")
    return " ".join([*words, f"--config.mode={mode}", *flags])

  def setting(self, *paths: str) -> str | None:
    """The first of these dotted config paths that is set, as text; None if none is.

    A path that ends at a group of settings gives the group's `name`.
    """
    for path in paths:
      node: Any = self.config
      for part in path.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
      if isinstance(node, Mapping):
        node = node.get("name")
      if node is not None:
        return str(node)
    return None


def read_runs(workdirs: Sequence[Path]) -> tuple[Run, ...]:
  """Reads every workdir; the names are distinct even where the folders' are not.

  Raises:
    ValueError: no workdir, one that does not exist or holds no file of a run, or a
      file that breaks its format (with the file and, for metrics, the line).
  """
  paths = [Path(workdir) for workdir in workdirs]
  if not paths:
    raise ValueError("expected at least one workdir, got none")
  runs = [
    read_run(path, name) for path, name in zip(paths, distinct_names(paths), strict=True)
  ]
  drawn = pictures.read(paths)
  return tuple(
    dataclasses.replace(run, pictures=mine) for run, mine in zip(runs, drawn, strict=True)
  )


def distinct_names(paths: Sequence[Path]) -> list[str]:
  """Folder names, with as many parent folders as tell all of them apart.

  The same folder given again gets a number: "run", "run (2)".
  """
  resolved = [path.resolve() for path in paths]
  names = {path: path.name for path in resolved}
  for depth in range(2, max(len(path.parts) for path in resolved) + 1):
    taken = list(names.values())
    if len(set(taken)) == len(taken):
      break
    names = {
      path: str(Path(*path.parts[-depth:])) if taken.count(name) > 1 else name
      for path, name in names.items()
    }
  repeats = [resolved[:place].count(path) for place, path in enumerate(resolved)]
  return [
    f"{names[path]} ({repeat + 1})" if repeat else names[path]
    for path, repeat in zip(resolved, repeats, strict=True)
  ]


def read_run(workdir: Path, name: str) -> Run:
  """Reads one workdir without its pictures, which share the room of a page.

  Raises:
    ValueError: it does not exist, holds no file of a run, or holds a broken one.
  """
  if not workdir.is_dir():
    raise ValueError(f"expected the workdir of a run, got {workdir}: no such folder")
  absent = _absent(workdir)
  curves, logged = {}, None
  if "metrics" not in absent:
    curves, logged = read_metrics(workdir / "metrics.jsonl")
    if not curves:
      absent["metrics"] = "holds no complete line yet"
  config = {} if "config" in absent else _read_object(workdir / "config.json")
  environment = {}
  if "environment" not in absent:
    environment = _read_object(workdir / "environment.json")
  held_out = None
  if "embeddings" not in absent:
    held_out, why = _held_out(workdir / "results", config)
    absent |= {"embeddings": why} if why else {}
  done = measured.read_results(workdir / "results")
  return Run(
    name=name,
    workdir=workdir,
    config=config,
    environment=environment,
    curves=curves,
    logged=logged,
    results=done,
    skipped=measured.read_skipped(workdir / "results", done),
    by_step=measured.read_steps(workdir / "results"),
    embeddings=held_out,
    pictures=(),
    absent=absent,
  )


def _absent(workdir: Path) -> dict[str, str]:
  """The parts that a workdir does not have, and why; not all of them."""
  absent = {
    part: "is missing"
    for part, (pattern, _) in PARTS.items()
    if not any(workdir.glob(pattern))
  }
  if len(absent) == len(PARTS):
    files = ", ".join(pattern for pattern, _ in PARTS.values())
    raise ValueError(
      f"expected the workdir of a run, got {workdir}, which holds none of {files};"
      " give the folder that was passed to main.py as --workdir"
    )
  return absent


def _held_out(
  directory: Path, config: Mapping[str, Any]
) -> tuple[Embeddings | None, str]:
  """The embeddings to show, or why there are none to show."""
  path = embeddings.find(directory, config)
  if path is None:
    return None, "are several, and config.json names none of them as what is held out"
  held_out = embeddings.read(path)
  if not (np.isfinite(held_out.image).all() and np.isfinite(held_out.text).all()):
    # A run that diverged still deserves a page with its curves.
    return None, "holds values that are not finite"
  return held_out, ""


def _read_object(path: Path) -> dict[str, Any]:
  try:
    value = json.loads(path.read_bytes())
  except ValueError as error:
    raise ValueError(f"{path}: not JSON: {error}") from error
  if not isinstance(value, dict):
    raise ValueError(f"{path}: expected a JSON object, got {type(value).__name__}")
  return value
