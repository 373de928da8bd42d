"""The training loop: evaluate, save, next batch, step.

The step (`step.train_step`) is jitted once; its numbers are read one step late, so that
the host never waits for the device.
"""

import dataclasses
import logging
import pathlib
from collections.abc import Mapping
from typing import Any

import jax

from rankclip_jax import checkpoint, config, evaluate, metrics
from rankclip_jax import plan as plans
from rankclip_jax.compiling import CompiledStep, compile_ahead
from rankclip_jax.config import Config
from rankclip_jax.data.bad_examples import Allowance, BadExamples, check_lost
from rankclip_jax.data.source import losses_of
from rankclip_jax.feed import Feed, counts
from rankclip_jax.models import two_tower
from rankclip_jax.pending import Pending
from rankclip_jax.profiling import DIRECTORY, Captures
from rankclip_jax.progress import TrainingProgress
from rankclip_jax.saving import SaveClock, Saver
from rankclip_jax.state import TrainState
from rankclip_jax.stopping import Left, Stopped, StopSignal
from rankclip_jax.together import of_all, together
from rankclip_jax.utilisation import rates_of
from rankclip_jax.watchdog import Watchdog
from rankclip_jax.wishes import Wish, Wishes

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Due:
  """What is to be done before the next step, the same on all processes.

  Attributes:
    last: there is no next step.
    stop: a signal came.
    evaluate: the state is measured.
    measured: no evaluation is left to the run that goes on.
    save: the state is saved.
  """

  last: bool
  stop: bool
  evaluate: bool
  measured: bool
  save: bool

  @property
  def anything(self) -> bool:
    return self.stop or self.evaluate or self.save


class Loop:
  """One run's way from a step to its end, or to a signal.

  Args:
    cfg: of the run.
    workdir: where everything is written.
    p: what the config means here.
    facts: stored with every checkpoint, see `plan.facts_of`.
    then: the facts of the checkpoint that the run goes on from; {} starts it.
    saved: the checkpoints of the workdir.
    writer: of metrics; None on all processes but the first.
    watchdog: that watches already.
    first: the step to go on from.

  Raises:
    ValueError: on all processes, if the data or what is held out cannot be used.
  """

  def __init__(
    self,
    cfg: Config,
    workdir: pathlib.Path,
    p: plans.Plan,
    facts: Mapping[str, Any],
    then: Mapping[str, Any],
    saved: checkpoint.Checkpoints,
    writer: metrics.MetricsLog | None,
    watchdog: Watchdog,
    *,
    first: int,
  ):
    self._cfg, self._workdir, self._plan, self._first = cfg, workdir, p, first
    self._facts, self._writer = facts, writer
    # Whether an evaluation was left over by a stop.
    self._left = not (then.get("evaluated", True) or saved.is_rated(first))
    self._eval_every = cfg.eval.every_epochs * p.epoch_steps
    self._evaluation: evaluate.Evaluation | None = None
    self._stop = StopSignal()
    self._evaluator = together(
      lambda: evaluator_of(cfg, p, workdir / plans.INDEX_DIRECTORY, self._stop)
    )
    # What is damaged is told now, not after an epoch.
    self._evaluator.check()
    self._bad = bad_examples_of(workdir)
    self._bad.lost(losses_of(p.source))
    together(lambda: check_lost(p.source, cfg.data.max_bad_fraction))
    self._allowance = Allowance(
      cfg.data.max_bad_fraction, str(self._bad.path), then.get("examples")
    )
    main_process = jax.process_index() == 0
    self._progress = TrainingProgress(p.num_steps, start=first, quiet=not main_process)
    say = self._progress.say if main_process else log.warning
    self._watchdog, watchdog.say = watchdog, say
    clock = SaveClock(cfg.checkpoint.every_steps, cfg.checkpoint.every_minutes)
    self._saver = Saver(saved, workdir, clock, cfg.checkpoint.retry_minutes, say)
    self._wishes = Wishes(self._own_wishes)
    self._feed = Feed(
      plans.batches_of(cfg, p, first, self._bad),
      plans.blank_batch(cfg, p),
      self._allowance,
      self._wishes,
      say,
      num_threads=cfg.data.num_threads,
      num_workers=cfg.data.num_workers,
    )
    rates = rates_of(p.size, cfg.data.batch_size, cfg.optim.frozen)
    self._pending = Pending(workdir, writer, cfg.log.every_steps, rates, self._feed.check)
    profile = cfg.profile
    self._captures = Captures(workdir / DIRECTORY, profile.steps, profile.num_steps, say)
    self._step: CompiledStep | None = None

  def run(self, state: TrainState) -> bool:
    """Whether training is finished; see `train.run`."""
    with self._stop, self._progress, self._captures:
      self._begin()
      for step in range(self._first, self._plan.num_steps + 1):
        due = self._due(step)
        if due.anything:
          # Nothing is measured or saved before the step that led here proved finite.
          self._read()
          due, scores = self._measure(state, step, due)
          if due.save or due.stop:
            self._save(state, step, scores, due)
          self._restart_clocks()
        if due.stop:
          self._progress.say(
            f"Stopped by a signal at step {step}; the same command goes on."
          )
          return False
        if due.last:
          break
        try:
          host = {} if self._step else self._compile()
        except Stopped:
          self._progress.say(
            "Stopped by a signal while the step was compiled, with nothing new to save; "
            "the same command goes on."
          )
          # Other processes, if there are any, hear their own signals, or lose this one.
          Left.behind(with_others=False)
          return False
        self._watchdog.doing(f"step {step + 1}")
        if self._captures.between(step, state.step):
          self._restart_clocks()
        try:
          batch, ids, waited = self._feed.next()
        except Exception as error:  # of this process alone; several fail as `Feed` says
          self._save_what_there_is(state, step)
          if self._stop.received:
            log.warning("A stop is what was asked for; the data failed too: %s", error)
            return False
          raise
        state, numbers = self._take(state, batch, step)
        self._read()
        self._pending.push(
          step + 1,
          numbers,
          ids=ids,
          host={**host, "data_wait_seconds": waited},
        )
      if summary := self._bad.summary():
        self._progress.say(summary)
      self._watchdog.doing("writing results")
      self._end()
    return True

  def _begin(self) -> None:
    from_step = f", from step {self._first}" if self._first else ""
    self._progress.say(f"{describe(self._cfg, self._plan)}{from_step}")
    for loss in losses_of(self._plan.source):
      self._progress.say(f"{loss.shard}: {loss.reason}, {loss.detail}")

  def _own_wishes(self) -> Wish:
    return (
      (Wish.STOP if self._stop.received else Wish.NONE)
      | (Wish.SAVE if self._saver.due else Wish.NONE)
      | (Wish.GIVE_UP if self._saver.hopeless else Wish.NONE)
    )

  def _due(self, step: int) -> Due:
    """What the config, clocks, signals and disks of all ask for after `step` steps."""
    self._saver.look()
    agreed = self._wishes.agreed
    if Wish.GIVE_UP in agreed:
      self._saver.give_up()
    last, stop = step == self._plan.num_steps, Wish.STOP in agreed
    fresh = step == self._first and not last
    by_epochs = bool(self._eval_every and step and step % self._eval_every == 0)
    wanted = last or by_epochs
    # A stop leaves an evaluation to the run that goes on.
    done = fresh and not self._left  # before this run began
    evaluates = wanted and not stop and not done
    by_clock = Wish.SAVE in agreed or self._saver.clock.steps_are_up(step)
    return Due(
      last=last,
      stop=stop,
      evaluate=evaluates,
      measured=evaluates or not wanted,
      save=not done and (wanted or by_clock),
    )

  def _measure(
    self, state: TrainState, step: int, due: Due
  ) -> tuple[Due, dict[str, float | None] | None]:
    """Evaluates if that is due, and writes and shows the scores.

    Returns:
      What is due now, and the scores; a signal that comes meanwhile stops the run.
    """
    if not due.evaluate:
      return due, None
    self._watchdog.doing(f"the evaluation after step {step}")
    try:
      self._evaluation = self._evaluator(state.params)
    except Stopped:
      return dataclasses.replace(due, stop=True, measured=False), None
    scores = self._evaluation.flat()
    finished = step == self._first == self._plan.num_steps and not self._left
    if self._writer and not finished:  # such a run has its line already
      self._writer.write(step, {f"eval/{name}": value for name, value in scores.items()})
    self._progress.say(headline(step, self._cfg, scores))
    return due, scores

  def _save(
    self,
    state: TrainState,
    step: int,
    scores: Mapping[str, float | None] | None,
    due: Due,
  ) -> None:
    """Starts a save; where the run ends here, it returns when that is complete."""
    self._watchdog.doing(f"the save after step {step}")
    known = self._known(evaluated=due.measured)
    self._saver.save(state, step, known, scores, complete=due.stop or due.last)
    self._wishes.done(Wish.SAVE)

  def _save_what_there_is(self, state: TrainState, step: int) -> None:
    """Before an error of the data ends the run."""
    self._read()
    if step > self._first:
      # Whoever told this run to stop is told that it was saved.
      told = self._stop.received and jax.process_count() == 1
      self._saver.save(state, step, self._known(evaluated=True), complete=told)

  def _known(self, *, evaluated: bool) -> dict[str, Any]:
    """What is stored with the arrays."""
    return {**self._facts, "examples": self._allowance.so_far, "evaluated": evaluated}

  def _compile(self) -> dict[str, float]:
    """Has the step ready; what that took is a metric of the first one."""
    self._watchdog.doing("compiling the step")
    rows = plans.batch_shapes(self._cfg, self._plan)
    self._step = compile_ahead(self._plan, rows, lambda: self._stop.received)
    self._progress.say(str(self._step))
    of_all(True)  # sockets are opened by the first step, which waits 30 s for the slowest
    self._restart_clocks()
    self._progress.restart_clock()
    return {"compile_seconds": self._step.seconds}

  def _take(
    self, state: TrainState, batch: Mapping[str, Any], step: int
  ) -> tuple[TrainState, Any]:
    """A step, of which nothing is waited for."""
    rows = evaluate.global_batch(batch, self._plan.mesh)
    told = {name: rows.pop(name) for name in ("replaced", "wishes")}
    assert self._step
    with (
      jax.profiler.StepTraceAnnotation("train", step_num=step + 1),
      jax.transfer_guard("disallow"),  # nothing else may cross unseen
    ):
      state, numbers = self._step.call(state, rows)
      numbers = {**numbers, **counts(**told)}
    self._feed.given(numbers)
    return state, numbers

  def _restart_clocks(self) -> None:
    """Keeps what was done beside steps out of the time of the next."""
    self._pending.restart_clock()
    self._feed.pause()

  def _read(self) -> None:
    if read := self._pending.read():
      self._progress.update(*read)

  def _end(self) -> None:
    if self._evaluation and jax.process_index() == 0:
      evaluate.save(self._evaluation, self._workdir, self._cfg, self._plan.num_steps)
      checkpoint.mark_complete(self._workdir, self._plan.num_steps)


def bad_examples_of(workdir: pathlib.Path) -> BadExamples:
  """This process's file of examples that could not be used."""
  own = f".{jax.process_index()}" if jax.process_index() else ""
  return BadExamples(workdir / f"bad_examples{own}.jsonl")


def evaluator_of(
  cfg: Config, p: plans.Plan, cache: pathlib.Path, stop: StopSignal
) -> evaluate.Evaluator:
  graph, _ = two_tower.abstract(p.size, with_bias=p.objective.has_bias)
  return evaluate.Evaluator(
    graph,
    p.mesh,
    evaluate.held_out(cfg, cache),
    p.tokenizer,
    image_size=p.size.image_size,
    batch_size=cfg.eval.batch_size,
    told=lambda: stop.received,
  )


def describe(cfg: Config, p: plans.Plan) -> str:
  """One line that says what is about to run."""
  return (
    f"Training {cfg.model.name} with {cfg.objective.name} on {len(p.source)} pairs of "
    f"{cfg.data.source}: {cfg.optim.epochs} epochs, {p.num_steps} steps of "
    f"{cfg.data.batch_size} on {p.mesh.size} {jax.devices()[0].device_kind} device(s)"
  )


def headline(step: int, cfg: Config, scores: Mapping[str, float | None]) -> str:
  """Recall@1 in both directions, for people."""
  prefix = f"{config.held_out_name(cfg)}/zeroshot_retrieval"
  image = scores[f"{prefix}/image_retrieval_recall@1"]
  text = scores[f"{prefix}/text_retrieval_recall@1"]
  return f"step {step}: recall@1 text to image {image:.3f}, image to text {text:.3f}"
