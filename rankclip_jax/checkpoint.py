"""Saving and restoring: the only file that knows Orbax.

A checkpoint is a directory `workdir/checkpoints/<step>` of four items: `params`,
`optimizer`, `progress` (step and RNG) and `facts` (JSON: the resolved config, tokenizer,
preprocessing, versions, and a fingerprint of the arrays). Orbax writes in the background
into a temporary directory and renames it when complete, so a killed save leaves the
previous checkpoint as it was.
"""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import logging
import pathlib
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import absl.logging
import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from rankclip_jax import config
from rankclip_jax.config import Config
from rankclip_jax.evals import results
from rankclip_jax.state import TrainState, fingerprint
from rankclip_jax.together import by_first, digests_of_all, of_all

DIRECTORY = "checkpoints"
ASIDE = "checkpoints_corrupt"
COMPLETE = "training_complete.json"
# What Orbax puts behind the name of a checkpoint that it is writing.
_UNFINISHED = ".orbax-checkpoint-tmp"
# Network file systems show new folders late.
_SECONDS_TO_APPEAR = 60.0

_T = TypeVar("_T")

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Restored:
  """A state and what was stored with it."""

  state: TrainState
  facts: Mapping[str, Any]


class Checkpoints:
  """The checkpoints of one workdir."""

  def __init__(
    self,
    workdir: pathlib.Path,
    *,
    keep_last: int = 1,
    keep_best: int = 0,
    best_metric: str = "",
    read_only: bool = False,
    timeout_seconds: int = 600,
  ):
    """Opens what there is; all processes see the same.

    Args:
      workdir: of the run.
      keep_last: how many of the newest stay.
      keep_best: how many of the best stay beside them.
      best_metric: by which they are, higher is better.
      read_only: whether nothing may be written.
      timeout_seconds: for which processes wait for each other to have written their
        parts of a checkpoint, before that has failed.

    Raises:
      ValueError: if nothing can be written, or processes see different checkpoints, or,
        to read only, damaged ones.
    """
    self._workdir = workdir
    self._best_metric = best_metric
    self._aside = 0  # how many could not be read
    self._waiting: concurrent.futures.Future[None] | None = None
    self._waiter = concurrent.futures.ThreadPoolExecutor(1, "wait for save")
    if read_only:
      self._set_aside_unreadable_scores(read_only)
      self._manager = self._reader = self._opened(**_to_read())
      return
    by_first(self._try_to_write)
    by_first(lambda: self._set_aside_unreadable_scores(read_only))
    kept = policies.AnyPreservationPolicy(self._kept(keep_last, keep_best))
    self._manager = self._opened(
      preservation_policy=kept,
      cleanup_tmp_directories=True,
      async_options=ocp.AsyncOptions(timeout_secs=timeout_seconds),
    )
    # Orbax's barriers would hold the others where one process cannot read.
    several = jax.process_count() > 1
    self._reader = self._opened(**_to_read()) if several else self._manager
    self._see_alike()

  def _opened(self, **options: Any) -> ocp.CheckpointManager:
    return ocp.CheckpointManager(
      (self._workdir / DIRECTORY).absolute(),
      item_names=("params", "optimizer", "progress", "facts"),
      options=ocp.CheckpointManagerOptions(
        best_fn=self._rate if self._best_metric else None, **options
      ),
    )

  def _managers(self) -> Iterable[ocp.CheckpointManager]:
    """One or two, in an order that is the same on all processes."""
    return dict.fromkeys((self._manager, self._reader))

  def _rate(self, metrics: Mapping[str, float]) -> float:
    return metrics[self._best_metric]

  def _kept(self, last: int, best: int) -> list[Any]:
    """Policies of what stays."""
    if not best:
      return [policies.LatestN(last)]
    of_best = policies.BestN(
      get_metric_fn=self._rate,
      reverse=False,
      n=best,
      keep_checkpoints_without_metrics=False,
    )
    return [policies.LatestN(last), of_best]

  def steps(self) -> list[int]:
    """Steps of all complete checkpoints, ascending."""
    return sorted(self._manager.all_steps())

  def save(
    self,
    state: TrainState,
    step: int,
    facts: Mapping[str, Any],
    metrics: Mapping[str, float | None] | None = None,
  ) -> None:
    """Starts a save; waits only for the copy to host memory and an earlier save.

    Args:
      state: the state after `step` steps.
      step: the same number, known to the host.
      facts: JSON-serialisable.
      metrics: of an evaluation at this step; only such a checkpoint can be the best.
        One that is there already gets them if it has none.
    """
    self.check_scores(metrics)
    value = metrics[self._best_metric] if metrics else None
    if of_all(step in self._manager.all_steps()).any():
      if value is not None:
        self._rate_afterwards(step, value)
      return
    self._manager.save(
      step,
      args=ocp.args.Composite(
        params=ocp.args.StandardSave(state.params),
        optimizer=ocp.args.StandardSave(state.opt_state),
        progress=ocp.args.StandardSave({"step": state.step, "rng": state.rng}),
        facts=ocp.args.JsonSave(
          {**facts, "step": step, "fingerprint": _fingerprints(state)}
        ),
      ),
      metrics=None if value is None else {self._best_metric: value},
    )
    self._waiting = self._waiter.submit(self._manager.wait_until_finished)

  def is_rated(self, step: int) -> bool:
    """Whether the checkpoint of `step` has scores."""
    return bool(of_all(self._scores(step).is_file()).any())

  def check_scores(self, metrics: Mapping[str, float | None] | None) -> None:
    """Refuses scores of which none says how good a checkpoint is."""
    if metrics is not None and self._best_metric not in metrics:
      raise ValueError(
        f"checkpoint.best_metric {self._best_metric!r} is not among what was evaluated: "
        f"{', '.join(metrics)}."
      )

  def restore_newest(
    self, abstract: TrainState, check: Callable[[Mapping[str, Any]], None]
  ) -> Restored | None:
    """The newest checkpoint that can be read, or None where there is none.

    One that cannot be read is named, moved to `checkpoints_corrupt/` and passed over.

    Args:
      abstract: shapes, types and shardings to restore into.
      check: called with the facts before arrays are read; what it raises is final.

    Raises:
      ValueError: if there are checkpoints and none of them can be read.
    """
    steps = self.steps()
    any_aside = of_all(self._aside).any()  # by its scores, and by process 0
    for step in reversed(steps):
      facts = self._or_set_aside(step, lambda step=step: self._facts(step))
      if facts is None:
        continue
      check(facts)
      read = lambda step=step, facts=facts: self._restore(step, facts, abstract)
      restored = self._or_set_aside(step, read)
      if restored is not None:
        return restored
    if steps or any_aside:
      which = f" at steps {steps}" if steps else ""
      raise ValueError(
        f"None of the checkpoints{which} of {self._workdir} could be read; they were "
        f"moved to {ASIDE}/. Start again in another workdir, or bring one back."
      )
    return None

  def facts(self, which: str) -> tuple[int, Mapping[str, Any]]:
    """The step that `which` ("latest", "best" or a number) means, and its facts.

    Raises:
      ValueError: if there is no such checkpoint.
    """
    steps = self.steps()
    step = {"latest": max(steps, default=None), "best": self._best_step()}.get(
      which, int(which) if which.isdecimal() else None
    )
    if step not in steps or step is None:
      raise ValueError(
        f"{self._workdir} has no checkpoint {which!r}; there are steps {steps}. Train "
        "first, or choose one with --config.eval.checkpoint."
      )
    return step, self._facts(step)

  def restore_params(self, step: int, abstract_params: Any) -> Any:
    """The parameters alone, checked against their fingerprint.

    Raises:
      ValueError: if the checkpoint is damaged.
    """
    facts = self._facts(step)
    restored: Any = self._reader.restore(
      step, args=ocp.args.Composite(params=ocp.args.StandardRestore(abstract_params))
    )
    if int(fingerprint(restored.params)) != facts["fingerprint"]["params"]:
      raise ValueError(
        f"The parameters of checkpoint {step} of {self._workdir} are not those that were "
        "saved: a file changed on disk. Choose another with --config.eval.checkpoint."
      )
    return restored.params

  def is_saving(self) -> bool:
    """Whether something is still being written.

    Orbax's own flag stays up where only one process fails.
    """
    return bool(self._waiting) and not self._waiting.done()

  def wait(self) -> None:
    """Returns when every save that was started is complete; raises what ended one."""
    waiting, self._waiting = self._waiting, None
    if waiting:
      concurrent.futures.wait([waiting])
      # Orbax raises once in every thread that asks; or the next save would, in this one.
      self._manager.wait_until_finished()

  def clean_up_after_failure(self) -> None:
    """Forgets a save that failed; what it wrote may be what fills the disk."""
    self._manager.reload()
    if jax.process_index() == 0:
      for path in (self._workdir / DIRECTORY).glob(f"*{_UNFINISHED}"):
        shutil.rmtree(path, ignore_errors=True)

  def close(self) -> None:
    """Finishes what was started and gives back the threads."""
    self._waiter.shutdown()
    for manager in self._managers():
      manager.close()

  def _facts(self, step: int) -> Mapping[str, Any]:
    items: Any = self._reader.restore(
      step, args=ocp.args.Composite(facts=ocp.args.JsonRestore())
    )
    return items.facts

  def _restore(
    self, step: int, facts: Mapping[str, Any], abstract: TrainState
  ) -> Restored:
    items: Any = self._reader.restore(
      step,
      args=ocp.args.Composite(
        params=ocp.args.StandardRestore(abstract.params),
        optimizer=ocp.args.StandardRestore(abstract.opt_state),
        progress=ocp.args.StandardRestore({"step": abstract.step, "rng": abstract.rng}),
      ),
    )
    state = TrainState(
      step=items.progress["step"],
      params=items.params,
      opt_state=items.optimizer,
      rng=items.progress["rng"],
    )
    if _fingerprints(state) != facts["fingerprint"]:
      raise ValueError("its arrays are not those that were saved")
    return Restored(state, facts)

  def _best_step(self) -> int | None:
    return self._manager.best_step() if self._best_metric else None

  def _or_set_aside(self, step: int, read: Callable[[], _T]) -> _T | None:
    """What `read` returns, or None, with the checkpoint set aside, if it fails.

    All processes agree: what one of them cannot read, none uses. A lack of memory is no
    damage, and is raised.
    """
    result, error = None, None
    try:
      result = read()
    except Exception as caught:
      # A right that is missing moves nothing either.
      if isinstance(caught, MemoryError | PermissionError) or (
        "RESOURCE_EXHAUSTED" in str(caught)
      ):
        raise
      if "PERMISSION_DENIED" in str(caught):  # of TensorStore
        raise PermissionError(" ".join(str(caught).split())[:500]) from caught
      error = caught
    if of_all(error is None).all():
      return result
    why = str(error or "another process cannot read it")
    by_first(lambda: self._set_aside(step, why))
    for manager in self._managers():
      manager.reload()
    return None

  def _try_to_write(self) -> None:
    """Finds out before Orbax does, whose processes would wait for each other."""
    folder = self._workdir / DIRECTORY
    trial = folder / ".trial"
    try:
      folder.mkdir(parents=True, exist_ok=True)
      trial.write_bytes(bytes(2**16))  # a full disk takes empty files
      trial.unlink()
    except OSError as error:
      with contextlib.suppress(OSError):
        trial.unlink(missing_ok=True)
      raise ValueError(
        f"No checkpoint can be written to {folder}: {error.strerror}. Make room or mend "
        "that, or choose another --workdir."
      ) from error

  def _scores(self, step: int) -> pathlib.Path:
    """Where Orbax keeps them."""
    return self._workdir / DIRECTORY / str(step) / "metrics" / "metrics"

  def _rate_afterwards(self, step: int, value: float) -> None:
    """Gives scores to a checkpoint whose evaluation a stop had put off."""

    def write() -> None:
      path = self._scores(step)
      if path.is_file():
        return
      try:
        path.parent.mkdir(exist_ok=True)
        with results.replacing(path) as temporary:
          temporary.write_text(json.dumps({self._best_metric: value}), encoding="utf-8")
      except OSError as error:
        log.warning(
          "Scores of checkpoint %d could not be noted (%s); it cannot be the best.",
          step,
          error.strerror,
        )

    by_first(write)
    for manager in self._managers():
      manager.reload()

  def _set_aside_unreadable_scores(self, read_only: bool) -> None:
    """Orbax reads all scores when it opens a folder, and one torn file would stop it."""
    for path in sorted((self._workdir / DIRECTORY).glob("*/metrics/metrics")):
      if not path.parents[1].name.isdecimal():  # it is being written, or never was
        continue
      try:
        json.loads(path.read_text(encoding="utf-8"))
      except ValueError as error:
        if read_only:
          raise ValueError(
            f"The checkpoint {path.parents[1]} is damaged ({path.name}: {error}). Train "
            "again, which sets it aside, or remove it."
          ) from error
        self._set_aside(int(path.parents[1].name), f"{path.name}: {error}")
        self._aside += 1

  def _set_aside(self, step: int, why: str) -> None:
    """For process 0."""
    log.warning(
      "Checkpoint %d cannot be read and is passed over (moved to %s/): %s",
      step,
      ASIDE,
      why.split("\n")[0],
    )
    aside = self._workdir / ASIDE
    aside.mkdir(exist_ok=True)
    taken = len(list(aside.glob(f"{step}.*")))
    (self._workdir / DIRECTORY / str(step)).rename(aside / f"{step}.{taken}")

  def _see_alike(self) -> None:
    """Waits until all processes see the same steps."""
    until = time.monotonic() + _SECONDS_TO_APPEAR
    while True:
      digest = hashlib.sha256(repr(self.steps()).encode()).hexdigest()
      first, *others = digests_of_all(digest)
      if all(other == first for other in others):
        return
      # Clocks differ, and all must give up in the same turn.
      if of_all(time.monotonic() > until).any():
        raise ValueError(
          f"Processes see different checkpoints in {self._workdir} (process "
          f"{jax.process_index()}: steps {self.steps()}); its file system must show all "
          "hosts the same."
        )
      time.sleep(1.0)
      self._manager.reload()


def steps_of(workdir: pathlib.Path) -> list[int]:
  """Steps of the checkpoints of a workdir, ascending, by a glance at its folder.

  Orbax gives a checkpoint its name when it is complete.
  """
  try:
    names = [path.name for path in (workdir / DIRECTORY).iterdir()]
  except FileNotFoundError:
    return []
  return sorted(int(name) for name in names if name.isdecimal())


def mark_complete(workdir: pathlib.Path, step: int) -> None:
  """Notes that training has ended at `step`, and no checkpoint will follow."""
  temporary = workdir / f"{COMPLETE}.tmp"
  temporary.write_text(json.dumps({"step": step}) + "\n", encoding="utf-8")
  temporary.replace(workdir / COMPLETE)


def unmark_complete(workdir: pathlib.Path) -> None:
  """Takes that back where a longer training begins."""
  (workdir / COMPLETE).unlink(missing_ok=True)


def is_complete(workdir: pathlib.Path) -> bool:
  """Whether training has ended here."""
  return (workdir / COMPLETE).is_file()


def of_run(workdir: pathlib.Path) -> Checkpoints:
  """The checkpoints of a workdir, to be read; the best is what its own config calls so.

  Raises:
    ValueError: if there are none.
  """
  with _without_narration():
    plain = Checkpoints(workdir, read_only=True)
    _, facts = plain.facts("latest")
    plain.close()
    best = config.best_metric(config.from_config_dict(facts["config"]))
    return Checkpoints(workdir, read_only=True, best_metric=best)


def _to_read() -> dict[str, Any]:
  """Options of a manager that writes nothing, and waits for no other process."""
  options: dict[str, Any] = {"read_only": True, "create": False}
  if jax.process_count() > 1:
    own = jax.process_index()
    options["multiprocessing_options"] = ocp.options.MultiprocessingOptions(
      primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"process_{own}"
    )
  return options


def hush() -> None:
  """Keeps what is told in a line from being told in hundreds; for a program's start.

  Orbax narrates every save, and logs every failure with its stack, from each thread; what
  Tensorstore was still writing when one failed then finds asyncio's loop closed.
  """
  absl.logging.set_verbosity(absl.logging.FATAL)
  logging.getLogger("asyncio").setLevel(logging.CRITICAL)
  before = sys.unraisablehook

  def hook(unraisable):
    if str(unraisable.exc_value) != "Event loop is closed":
      before(unraisable)

  sys.unraisablehook = hook


@contextlib.contextmanager
def _without_narration() -> Iterator[None]:
  """Keeps Orbax from warning that what was opened to be read cannot be written to."""
  before = absl.logging.get_verbosity()
  absl.logging.set_verbosity(min(before, absl.logging.ERROR))
  try:
    yield
  finally:
    absl.logging.set_verbosity(before)


def check_config(
  facts: Mapping[str, Any], cfg: Config, sections: Sequence[str] = ("",)
) -> None:
  """Refuses to go on from a checkpoint of another run.

  Args:
    facts: of the checkpoint.
    cfg: of this run.
    sections: beginnings of the names of the fields that must agree; "" is all fields
      but those that say where and how often.

  Raises:
    ValueError: naming every field that differs.
  """
  wrong = config.contradictions(facts["config"], cfg)
  if wrong := [w for w in wrong if w.startswith(tuple(sections))]:
    raise ValueError(
      "The workdir holds a checkpoint of another config:\n  "
      + "\n  ".join(wrong)
      + "\nGive the same values, or use another --workdir."
    )


def _fingerprints(state: TrainState) -> dict[str, int]:
  rest = {"optimizer": state.opt_state, "step": state.step, "rng": state.rng}
  return {"params": int(fingerprint(state.params)), "rest": int(fingerprint(rest))}
