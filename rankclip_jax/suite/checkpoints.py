"""Which checkpoints are measured: one, all that there are, or those that are to come."""

import dataclasses
import logging
import pathlib
import time
from collections.abc import Iterator

from rankclip_jax import checkpoint, start
from rankclip_jax.config import SEVERAL, Config
from rankclip_jax.interop import Weights
from rankclip_jax.stopping import StopSignal
from rankclip_jax.suite import parts
from rankclip_jax.together import stop_if_any, together

_POLL_SECONDS = 3.0
# In place of a step.
_NONE, _OVER = -1, -2

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Chosen:
  """Weights to measure.

  Attributes:
    place: a workdir, or what `interop.read` takes.
    step: of the checkpoint; None for weights that are none.
    newest: whether their results are the workdir's.
  """

  place: pathlib.Path
  step: int | None
  newest: bool


def chosen(cfg: Config, workdir: pathlib.Path, stop: StopSignal) -> Iterator[Chosen]:
  """What `eval.checkpoint` means, oldest first; the same on every process.

  Raises:
    ValueError: if there is nothing to measure.
    Stopped: while it waits, if `stop` has come.
  """
  if cfg.eval.checkpoint == "follow":
    yield from _followed(workdir, stop)
  elif cfg.eval.checkpoint == "all":
    place = place_of(cfg, workdir)
    steps = together(lambda: _there(place))
    # What the first process saw counts.
    newest = parts.of_first(steps[-1])
    for i in range(parts.of_first(len(steps))):
      step = parts.of_first(steps[i] if i < len(steps) else _NONE)
      yield Chosen(place, step, step == newest)
  else:
    place = together(lambda: start.place_of(cfg, workdir))
    step = together(lambda: _step(place, cfg.eval.checkpoint))
    yield Chosen(place, step, True)


def place_of(cfg: Config, workdir: pathlib.Path) -> pathlib.Path:
  """The workdir whose checkpoints are measured: this one, or that of `init.weights`.

  A training that is followed starts from `init.weights`, and is always this one's.
  """
  if cfg.eval.checkpoint == "follow":
    return workdir
  given = start.path_of(cfg.init.weights) if cfg.init.weights else workdir
  own = (workdir / checkpoint.DIRECTORY).is_dir()
  return given if (given / checkpoint.DIRECTORY).is_dir() and not own else workdir


def load(chosen: Chosen, cfg: Config, workdir: pathlib.Path) -> Weights | None:
  """The weights; None if a training has deleted the checkpoint meanwhile.

  Raises:
    ValueError: if they are damaged, or of another model than the config's.
  """

  def read() -> Weights | None:
    which = cfg.eval.checkpoint if chosen.step is None else str(chosen.step)
    own = chosen.place == workdir
    try:
      weights = start.at(chosen.place, which, cfg, own=own)
    except Exception as error:  # Orbax raises many kinds, also for files that vanish
      several = cfg.eval.checkpoint in SEVERAL
      if several and chosen.step not in checkpoint.steps_of(chosen.place):
        return None
      if chosen.step is None or isinstance(error, MemoryError):
        raise
      raise ValueError(
        f"Checkpoint {chosen.step} of {chosen.place} cannot be used: {error}"
      ) from error
    start.check_name(cfg, weights)
    return weights

  weights = together(read)
  if parts.everywhere(weights is not None):
    return weights
  log.warning(
    "Checkpoint %s of %s was deleted before it was measured; it is passed over.",
    chosen.step, chosen.place
  )  # fmt: skip
  return None


def _there(place: pathlib.Path) -> list[int]:
  steps = checkpoint.steps_of(place)
  if not steps:
    raise ValueError(
      f'{place} has no checkpoints for eval.checkpoint="all"; train first, or wait for '
      'them with "follow".'
    )
  return steps


def _step(place: pathlib.Path, which: str) -> int | None:
  if not (place / checkpoint.DIRECTORY).is_dir():
    return None
  saved = checkpoint.of_run(place)
  step, _ = saved.facts(which)
  saved.close()
  return step


def _followed(place: pathlib.Path, stop: StopSignal) -> Iterator[Chosen]:
  """The checkpoints of a training as they appear, until it has ended."""
  done, waited_for = set(), None
  while True:
    stop_if_any(stop.received)
    # In this order, so that the last checkpoint of a training is not missed.
    ended = checkpoint.is_complete(place)
    steps = checkpoint.steps_of(place)
    left = [step for step in steps if step not in done]
    # Processes look at different moments; what the first sees counts.
    step = parts.of_first(left[0] if left else _OVER if ended else _NONE)
    newest = parts.of_first(max(steps, default=_NONE))
    if step == _OVER:
      return
    if step != _NONE:
      done.add(step)
      yield Chosen(place, step, step == newest)
      continue
    if waited_for != len(done):
      waited_for = len(done)
      log.info(
        "Waiting for %s checkpoint of %s, or for %s there, which training writes when it "
        "has ended.", "another" if done else "a first", place, checkpoint.COMPLETE
      )  # fmt: skip
    time.sleep(_POLL_SECONDS)
