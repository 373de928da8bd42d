"""The training loop: evaluate, save, next batch, step.

The step (`step.train_step`) is jitted once; its numbers are read one step late, so that
the host never waits for the device.
"""

import contextlib
import logging
import pathlib
from collections.abc import Mapping
from typing import Any

import jax

from rankclip_jax import checkpoint, config, environment, evaluate, metrics, start
from rankclip_jax import plan as plans
from rankclip_jax import state as states
from rankclip_jax.config import Config
from rankclip_jax.data.bad_examples import Allowance, BadExamples, check_lost
from rankclip_jax.data.source import losses_of
from rankclip_jax.feed import Feed, counts
from rankclip_jax.models import two_tower
from rankclip_jax.pending import Pending
from rankclip_jax.progress import TrainingProgress
from rankclip_jax.saving import SaveClock, Saver
from rankclip_jax.state import TrainState
from rankclip_jax.step import compile_step
from rankclip_jax.stopping import StopSignal
from rankclip_jax.together import by_first, check_same, of_all, together
from rankclip_jax.watchdog import Watchdog
from rankclip_jax.wishes import Wish, Wishes

log = logging.getLogger(__name__)


def run(cfg: Config, workdir: pathlib.Path) -> bool:
  """Trains to the end, or until a signal; goes on from the newest checkpoint, if any.

  Returns:
    Whether training is finished; False after SIGTERM or Ctrl-C, with the state saved.

  Raises:
    ValueError: if the config does not fit the devices, the data or the checkpoint.
    NonFiniteError: if the loss or its gradient stops being finite.
    SaveError: if nothing could be saved for too long.
  """
  with contextlib.ExitStack() as stack:
    weights = None
    fresh = not of_all(bool(checkpoint.steps_of(workdir))).any()
    if fresh:
      by_first(lambda: check_begun(cfg, workdir))
    # A run that goes on has its weights already, and asks only what model they are of.
    if fresh or cfg.model.name == "loaded":
      weights = together(lambda: start.weights_of(cfg))
    saved = checkpoint.Checkpoints(
      workdir,
      keep_last=cfg.checkpoint.keep_last,
      keep_best=cfg.checkpoint.keep_best,
      best_metric=config.best_metric(cfg),
      timeout_seconds=cfg.checkpoint.timeout_seconds,
    )
    stack.callback(_close, saved)
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
    then = restored.facts if restored else {}
    return _loop(cfg, workdir, p, facts, then, now, saved, writer)


def check_begun(cfg: Config, workdir: pathlib.Path) -> None:
  """Refuses a workdir in which a run of another config began, and saved nothing yet.

  Raises:
    ValueError: naming every field that differs.
  """
  begun = environment.noted_config(workdir)
  if begun and (wrong := config.contradictions(begun, cfg)):
    raise ValueError(
      f"In {workdir} a run of another config has begun, of which there is no checkpoint "
      "(config.json):\n  "
      + "\n  ".join(wrong).replace("the checkpoint has", "it has")
      + "\nGive the same values, or use another --workdir, or remove this one."
    )


def _close(saved: checkpoint.Checkpoints) -> None:
  """Gives back threads; how a save ended has been told where it mattered."""
  try:
    saved.close()
  except Exception as error:
    log.debug("A save ended while the run did: %s", error)


def _loop(
  cfg: Config,
  workdir: pathlib.Path,
  p: plans.Plan,
  facts: Mapping[str, Any],
  then: Mapping[str, Any],
  state: TrainState,
  saved: checkpoint.Checkpoints,
  writer: metrics.MetricsLog | None,
) -> bool:
  """Trains from `state` on; `then` are the facts of the checkpoint it comes from."""
  first = int(state.step)
  main_process = jax.process_index() == 0
  evaluator = together(lambda: evaluator_of(cfg, p, workdir / plans.INDEX_DIRECTORY))
  # What is damaged is told now, not after an epoch.
  evaluator.check()
  step_fn = compile_step(p)
  bad = bad_examples_of(workdir)
  bad.lost(losses_of(p.source))
  together(lambda: check_lost(p.source, cfg.data.max_bad_fraction))
  allowance = Allowance(cfg.data.max_bad_fraction, str(bad.path), then.get("examples"))
  eval_every = cfg.eval.every_epochs * p.epoch_steps
  evaluation = None

  with (
    StopSignal() as stop,
    TrainingProgress(p.num_steps, start=first, quiet=not main_process) as progress,
    Watchdog(
      workdir / f"stacks.{jax.process_index()}.txt", 60 * cfg.log.watchdog_minutes
    ) as watchdog,
  ):
    progress.say(f"{describe(cfg, p)}{f', from step {first}' if first else ''}")
    for loss in losses_of(p.source):
      progress.say(f"{loss.shard}: {loss.reason}, {loss.detail}")
    say = progress.say if main_process else log.warning
    clock = SaveClock(cfg.checkpoint.every_steps, cfg.checkpoint.every_minutes)
    saver = Saver(saved, workdir, clock, cfg.checkpoint.retry_minutes, say)
    wishes = Wishes(
      lambda: (
        (Wish.STOP if stop.received else Wish.NONE)
        | (Wish.SAVE if saver.due else Wish.NONE)
        | (Wish.GIVE_UP if saver.hopeless else Wish.NONE)
      )
    )
    feed = Feed(
      plans.batches_of(cfg, p, first, bad),
      plans.blank_batch(cfg, p),
      allowance,
      wishes,
      say,
      num_threads=cfg.data.num_threads,
      num_workers=cfg.data.num_workers,
    )
    pending = Pending(workdir, writer, cfg.log.every_steps, feed.check)
    for step in range(first, p.num_steps + 1):
      last = step == p.num_steps
      fresh = step == first and not last
      saver.look()
      agreed = wishes.agreed
      if Wish.GIVE_UP in agreed:
        saver.give_up()
      stopping, asked = Wish.STOP in agreed, Wish.SAVE in agreed
      due = last or bool(eval_every and step and step % eval_every == 0)
      # A stop leaves an evaluation to the run that goes on.
      evaluating = due and (last or not stopping)
      evaluating &= not fresh or not then.get("evaluated", True)
      saving = not fresh and (due or asked or clock.steps_are_up(step))
      if evaluating or saving or stopping:
        # Nothing is measured or saved before the step that led here proved finite.
        _show(progress, pending.read())
      scores = None
      if evaluating:
        watchdog.doing(f"the evaluation after step {step}")
        evaluation = evaluator(state.params)
        scores = evaluation.flat()
        if writer and (step > first or fresh):  # a finished run has its line already
          writer.write(step, {f"eval/{name}": value for name, value in scores.items()})
        progress.say(headline(step, cfg, scores))
      if saving or stopping:
        watchdog.doing(f"the save after step {step}")
        known = {
          **facts,
          "examples": allowance.so_far,
          "evaluated": evaluating or not due,
        }
        save = saver.finish if stopping or last else saver.save
        save(state, step, known, scores)
        wishes.done(Wish.SAVE)
      if stopping and not last:
        progress.say(f"Stopped by a signal at step {step}; the same command goes on.")
        return False
      if last:
        break
      if evaluating or saving:
        pending.restart_clock()
        feed.pause()
      watchdog.doing(f"step {step + 1}")

      try:
        batch, ids, waited = feed.next()
      except Exception:  # of this process alone; several fail as `Feed` says
        _show(progress, pending.read())
        if not fresh:
          saver.save(state, step, {**facts, "examples": allowance.so_far})
        if stop.received:  # the signal may have ended processes that read
          return False
        raise
      rows = evaluate.global_batch(batch, p.mesh)
      told = {name: rows.pop(name) for name in ("replaced", "wishes")}
      with jax.transfer_guard("disallow"):  # nothing else may cross unseen
        state, numbers = step_fn(state, rows)
        numbers = {**numbers, **counts(**told)}
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
  if evaluation and main_process:
    evaluate.save(evaluation, workdir, cfg, p.num_steps)
    checkpoint.mark_complete(workdir, p.num_steps)
  return True


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
