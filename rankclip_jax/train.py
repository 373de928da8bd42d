"""The training loop: evaluate, save, next batch, step.

The step (`step.train_step`) is jitted once; its numbers are read one step late, so that
the host never waits for the device.
"""

import contextlib
import json
import logging
import math
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array

from rankclip_jax import checkpoint, config, environment, evaluate, metrics, start
from rankclip_jax import plan as plans
from rankclip_jax import state as states
from rankclip_jax.config import Config
from rankclip_jax.data.bad_examples import Allowance, BadExamples, check_lost
from rankclip_jax.data.source import losses_of
from rankclip_jax.feed import Feed, counts
from rankclip_jax.models import two_tower
from rankclip_jax.progress import TrainingProgress
from rankclip_jax.state import TrainState
from rankclip_jax.step import compile_step
from rankclip_jax.stopping import StopSignal
from rankclip_jax.together import by_first, check_same, together

# With several processes, how often they agree on whether to stop or to save by the clock.
_STEPS_BETWEEN_AGREEMENTS = 10

log = logging.getLogger(__name__)


class NonFiniteError(ArithmeticError):
  """A loss or a gradient became infinite or NaN."""


class Pending:
  """The numbers of the step that is still running, and what to do once they are here."""

  def __init__(
    self,
    workdir: pathlib.Path,
    writer: metrics.MetricsLog | None,
    every_steps: int,
    check: Callable[[dict[str, float]], None] = lambda values: None,
  ):
    self._workdir, self._writer, self._every = workdir, writer, every_steps
    self._check = check
    self._step = 0
    self._ids: np.ndarray | None = None
    self._numbers: Mapping[str, Array] = {}
    self._host: Mapping[str, float] = {}
    self._batch_size = 0
    self._last_read = time.perf_counter()

  def push(self, step, numbers, *, ids, batch_size, host) -> None:
    """Holds the numbers after `step` steps until the next `read`."""
    self._step, self._numbers, self._ids = step, numbers, ids
    self._batch_size = batch_size
    self._host = host

  def read(self) -> tuple[int, dict[str, float]] | None:
    """Waits for the pending numbers, writes them, and returns step and numbers.

    Raises:
      NonFiniteError: if the loss, a gradient or an update is not finite; the example
        ids of the batch are in `workdir/nonfinite.<process>.json`.
      ValueError: if `check` refuses the numbers.
    """
    if not self._numbers:
      return None
    values = {k: float(v) for k, v in jax.device_get(self._numbers).items()}
    now = time.perf_counter()
    seconds, self._last_read = now - self._last_read, now
    self._numbers = {}
    self._check(values)
    if not all(math.isfinite(v) for v in values.values()):
      self._refuse(values)
    values |= {**self._host, "step_seconds": seconds}
    values["examples_per_second"] = self._batch_size / seconds
    values["examples_per_second_per_device"] = (
      values["examples_per_second"] / jax.device_count()
    )
    if self._writer and self._step % self._every == 0:
      self._writer.write(self._step, values)
    return self._step, values

  def restart_clock(self) -> None:
    """Keeps time spent outside of steps out of the next step's seconds."""
    self._last_read = time.perf_counter()

  def _refuse(self, values: Mapping[str, float]) -> None:
    ids = [] if self._ids is None else self._ids.tolist()
    bad = {k: str(v) for k, v in values.items() if not math.isfinite(v)}
    path = self._workdir / f"nonfinite.{jax.process_index()}.json"
    path.write_text(json.dumps({"step": self._step, "example_ids": ids, **bad}) + "\n")
    raise NonFiniteError(
      f"Step {self._step} gave {bad}. No checkpoint was written since; the last good one "
      f"is untouched. The batch's example ids are {ids[:8]}... (all {len(ids)} in "
      f"{path.name}). Lower optim.learning_rate, set optim.clip_norm=1, or look at these "
      "examples."
    )


def run(cfg: Config, workdir: pathlib.Path) -> bool:
  """Trains to the end, or until a signal; goes on from the newest checkpoint, if any.

  Returns:
    Whether training is finished; False after SIGTERM or Ctrl-C, with the state saved.

  Raises:
    ValueError: if the config does not fit the devices, the data or the checkpoint.
    NonFiniteError: if the loss or its gradient stops being finite.
  """
  with StopSignal() as stop, contextlib.ExitStack() as stack:
    weights = None
    # A run that goes on has its weights already, and asks only what model they are of.
    if not checkpoint.steps_of(workdir) or cfg.model.name == "loaded":
      weights = together(lambda: start.weights_of(cfg))
    saved = checkpoint.Checkpoints(
      workdir,
      keep_last=cfg.checkpoint.keep_last,
      keep_best=cfg.checkpoint.keep_best,
      best_metric=config.best_metric(cfg),
    )
    stack.enter_context(contextlib.closing(saved))
    if weights is None and not saved.steps():  # none of what there is can be read
      weights = together(lambda: start.weights_of(cfg))
    if weights and jax.process_count() > 1:
      check_same(start.digest_of(weights), "init.weights")
    cache = workdir / plans.INDEX_DIRECTORY
    p = together(lambda: plans.make(cfg, weights.size if weights else None, cache))
    facts = together(lambda: plans.facts_of(cfg, p))
    check_same(facts["data"]["digest"], "training data")

    def check(then: Mapping[str, Any]) -> None:
      checkpoint.check_config(then, cfg)
      plans.check_data(then, facts)

    shapes = states.abstract(p.size, p.objective, p.optimizer, p.mesh)
    restored = saved.restore_newest(shapes, check)
    if restored is None:
      now = states.create(cfg.seed, p.size, p.objective, p.optimizer, p.mesh)
      if weights:
        now = start.from_weights(
          now, weights, p.objective, temperature=cfg.init.temperature
        )
    else:
      now = restored.state

    def begun() -> metrics.MetricsLog:
      environment.note(
        workdir, config.to_json(cfg), p.num_steps, resuming=restored is not None
      )
      if int(now.step) < p.num_steps:
        checkpoint.unmark_complete(workdir)
      return metrics.MetricsLog(workdir, step=int(now.step))

    writer = by_first(begun)
    if writer:
      stack.enter_context(contextlib.closing(writer))
    so_far = restored.facts.get("examples") if restored else None
    return _loop(cfg, workdir, p, facts, so_far, now, saved, writer, stop)


def _loop(
  cfg: Config,
  workdir: pathlib.Path,
  p: plans.Plan,
  facts: Mapping[str, Any],
  so_far: Mapping[str, int] | None,
  state: TrainState,
  saved: checkpoint.Checkpoints,
  writer: metrics.MetricsLog | None,
  stop: StopSignal,
) -> bool:
  first = int(state.step)
  main_process = jax.process_index() == 0
  evaluator = together(lambda: evaluator_of(cfg, p, workdir / plans.INDEX_DIRECTORY))
  # What is damaged is told now, not after an epoch.
  evaluator.check()
  step_fn = compile_step(p)
  bad = bad_examples_of(workdir)
  bad.lost(losses_of(p.source))
  together(lambda: check_lost(p.source, cfg.data.max_bad_fraction))
  allowance = Allowance(cfg.data.max_bad_fraction, str(bad.path), so_far)
  clock = SaveClock(cfg.checkpoint.every_steps, cfg.checkpoint.every_minutes)
  eval_every = cfg.eval.every_epochs * p.epoch_steps
  evaluation = None

  with TrainingProgress(p.num_steps, start=first, quiet=not main_process) as progress:
    progress.say(f"{describe(cfg, p)}{f', from step {first}' if first else ''}")
    for loss in losses_of(p.source):
      progress.say(f"{loss.shard}: {loss.reason}, {loss.detail}")
    feed = Feed(
      plans.batches_of(cfg, p, first, bad),
      plans.blank_batch(cfg, p),
      allowance,
      progress.say if main_process else log.warning,
      num_threads=cfg.data.num_threads,
      num_workers=cfg.data.num_workers,
    )
    pending = Pending(workdir, writer, cfg.log.every_steps, feed.check)
    for step in range(first, p.num_steps + 1):
      last = step == p.num_steps
      fresh = step == first and not last
      stopping, by_clock = agree(step, stop.received, clock.minutes_are_up())
      evaluating = last or bool(eval_every and step % eval_every == 0 and not fresh)
      saving = not fresh and (evaluating or by_clock or clock.steps_are_up(step))
      if evaluating or saving or stopping:
        # Nothing is measured or saved before the step that led here proved finite.
        _show(progress, pending.read())
      scores = None
      if evaluating and (last or not stopping):
        evaluation = evaluator(state.params)
        scores = evaluation.flat()
        if writer and step > first:  # a finished run has its line already
          writer.write(step, {f"eval/{name}": value for name, value in scores.items()})
        progress.say(headline(step, cfg, scores))
      if saving or stopping:
        saved.save(state, step, {**facts, "examples": allowance.so_far}, scores)
        clock.saved()
      if stopping and not last:
        saved.wait()
        progress.say(f"Stopped by a signal at step {step}; the same command goes on.")
        return False
      if last:
        break
      if evaluating or saving:
        pending.restart_clock()
        feed.pause()

      try:
        batch, ids, waited = feed.next()
      except Exception:  # of this process alone; several fail as `Feed` says
        _show(progress, pending.read())
        if not fresh:
          saved.save(state, step, {**facts, "examples": allowance.so_far})
        if stop.received:  # the signal may have ended processes that read
          saved.wait()
          return False
        raise
      rows = evaluate.global_batch(batch, p.mesh)
      replaced = rows.pop("replaced")
      with jax.transfer_guard("disallow"):  # nothing else may cross unseen
        state, numbers = step_fn(state, rows)
        numbers = {**numbers, **counts(replaced)}
      feed.given(numbers)
      _show(progress, pending.read())
      pending.push(
        step + 1,
        numbers,
        ids=ids,
        batch_size=cfg.data.batch_size,
        host={"data_wait_seconds": waited},
      )

    if bad.summary():
      progress.say(bad.summary())
  saved.wait()
  if evaluation and main_process:
    evaluate.save(evaluation, workdir, cfg, p.num_steps)
    checkpoint.mark_complete(workdir, p.num_steps)
  return True


class SaveClock:
  """When the next checkpoint is due, by steps and by minutes (0 is never)."""

  def __init__(self, every_steps: int, every_minutes: float):
    self._every_steps, self._seconds = every_steps, 60.0 * every_minutes
    self._last = time.monotonic()

  def steps_are_up(self, step: int) -> bool:
    return bool(self._every_steps) and step % self._every_steps == 0

  def minutes_are_up(self) -> bool:
    return bool(self._seconds) and time.monotonic() - self._last >= self._seconds

  def saved(self) -> None:
    self._last = time.monotonic()


def agree(step: int, *flags: bool) -> tuple[bool, ...]:
  """Each flag, true on all processes if it is true on any.

  Clocks and signals differ between processes, so with several of them a flag only
  counts at steps where all exchange it.
  """
  if jax.process_count() == 1:
    return flags
  if step % _STEPS_BETWEEN_AGREEMENTS:
    return (False,) * len(flags)
  everyone = multihost_utils.process_allgather(np.array(flags))
  return tuple(bool(f) for f in np.any(np.reshape(everyone, (-1, len(flags))), axis=0))


def bad_examples_of(workdir: pathlib.Path) -> BadExamples:
  """This process's file of examples that could not be used."""
  own = f".{jax.process_index()}" if jax.process_index() else ""
  return BadExamples(workdir / f"bad_examples{own}.jsonl")


def evaluator_of(
  cfg: Config, p: plans.Plan, cache: pathlib.Path | None = None
) -> evaluate.Evaluator:
  graph, _ = two_tower.abstract(p.size, with_bias=p.objective.has_bias)
  return evaluate.Evaluator(
    graph,
    p.mesh,
    evaluate.held_out(cfg, cache),
    p.tokenizer,
    image_size=p.size.image_size,
    batch_size=cfg.eval.batch_size,
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


def _show(progress: TrainingProgress, read: tuple[int, dict[str, float]] | None) -> None:
  if read:
    progress.update(*read)
