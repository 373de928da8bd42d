"""A mirror of a run's metrics at Weights & Biases; the only file that knows it."""

import json
import logging
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from rankclip_jax.evals import results

FILE = "wandb.json"

log = logging.getLogger(__name__)


class WandbMirror:
  """One run there for one workdir, however often it goes on.

  Numbers lie over our own `step`: what a run that goes on computes again comes a second
  time, because nothing sent can be taken back. Whatever goes wrong later than at the
  start is told once, and ends the mirror, not the training. Set WANDB_MODE=offline to
  keep it all in the workdir, for `wandb sync`.

  Args:
    workdir: where its id is kept.
    project: at Weights & Biases.
    config: of the run, to be shown.

  Raises:
    ValueError: if it is not installed, or does not let the run in.
  """

  def __init__(self, workdir: pathlib.Path, project: str, config: Mapping[str, Any]):
    try:
      import wandb  # pyright: ignore[reportMissingImports]
    except ImportError as error:
      raise ValueError(
        f"config.log.wandb={project!r} needs Weights & Biases: pip install wandb."
      ) from error
    path = workdir / FILE
    known = _known(path)
    project = known.get("project", project)  # a run stays where it began
    try:
      self._run: Any = wandb.init(
        project=project,
        id=known.get("id"),
        resume="allow",
        name=workdir.resolve().name,
        dir=str(workdir),
        config=dict(config),
      )
      self._run.define_metric("*", step_metric="step")
    except Exception as error:  # of a client of several servers
      raise ValueError(
        f"Weights & Biases did not begin the run: {' '.join(str(error).split())[:300]} "
        "(WANDB_MODE=offline needs no server, --config.log.wandb= no mirror.)"
      ) from error
    with results.replacing(path) as temporary:
      temporary.write_text(json.dumps({"project": project, "id": self._run.id}) + "\n")

  def write(self, step: int, values: Mapping[str, float | None]) -> None:
    numbers = {name: value for name, value in values.items() if value is not None}
    self._try(lambda run: run.log({"step": step, **numbers}))

  def close(self) -> None:
    self._try(lambda run: run.finish())

  def _try(self, work: Callable[[Any], None]) -> None:
    if self._run is None:
      return
    try:
      work(self._run)
    except Exception as error:
      self._run = None
      log.warning("Weights & Biases gets no more numbers: %s", error)


def _known(path: pathlib.Path) -> dict[str, Any]:
  """Project and id of the run there; {} before it began.

  Raises:
    ValueError: if the file is damaged.
  """
  if not path.is_file():
    return {}
  try:
    return dict(json.loads(path.read_text(encoding="utf-8")))
  except (ValueError, TypeError) as error:
    raise ValueError(
      f"{path}, which says which run of Weights & Biases this is, cannot be read "
      f"({error}); remove it to begin a new one there."
    ) from error
