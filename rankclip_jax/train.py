"""Training: from a config to the state to go on from, and then the loop."""

import contextlib
import dataclasses
import logging
import pathlib
from collections.abc import Mapping
from typing import Any

import jax

from rankclip_jax import checkpoint, config, environment, metrics, start
from rankclip_jax import plan as plans
from rankclip_jax import state as states
from rankclip_jax.config import Config
from rankclip_jax.loop import Loop
from rankclip_jax.together import by_first, check_same, of_all, together
from rankclip_jax.wandb_mirror import WandbMirror
from rankclip_jax.watchdog import Watchdog

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
    stacks = workdir / f"stacks.{jax.process_index()}.txt"
    watchdog = stack.enter_context(Watchdog(stacks, 60 * cfg.log.watchdog_minutes))
    watchdog.doing("opening the checkpoints")
    weights = None
    begun_already = together(lambda: bool(checkpoint.steps_of(workdir)))
    fresh = not of_all(begun_already).any()
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
    watchdog.doing("opening the training data")
    cache = workdir / plans.INDEX_DIRECTORY
    p = together(lambda: plans.make(cfg, weights.size if weights else None, cache))
    facts = together(lambda: plans.facts_of(cfg, p))
    check_same(facts["data"]["digest"], "training data")

    def check(then: Mapping[str, Any]) -> None:
      checkpoint.check_config(then, cfg)
      plans.check_data(then, facts)

    watchdog.doing("reading or making the first state")
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
      mirrors = []
      if project := cfg.log.wandb:
        mirrors.append(WandbMirror(workdir, project, dataclasses.asdict(cfg)))
      return metrics.MetricsLog(workdir, step=int(now.step), mirrors=mirrors)

    writer = by_first(begun)
    if writer:
      stack.enter_context(contextlib.closing(writer))
    then = restored.facts if restored else {}
    watchdog.doing("reading what is held out")
    loop = Loop(
      cfg, workdir, p, facts, then, saved, writer, watchdog, first=int(now.step)
    )
    return loop.run(now)


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
