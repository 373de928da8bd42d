"""Starts the processes' side of a run: distribution, workdir, and one of the modes."""

import contextlib
import logging
import pathlib
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

import absl.logging
import jax

from rankclip_jax import (
  attention,
  checkpoint,
  evaluate,
  export,
  lock,
  processes,
  saving,
  search,
  suite,
  train,
)
from rankclip_jax.config import Config
from rankclip_jax.evals import results
from rankclip_jax.stopping import EXIT_STOPPED, Left, Stopped, leave_now, leave_others
from rankclip_jax.together import by_first, of_first

log = logging.getLogger(__name__)

# Modes that use a model, each a function of config and workdir to what is printed.
_TOOLS = {
  "embed": search.embed,
  "search": search.search,
  "attention": attention.run,
  "export": export.run,
  "merge": suite.merge,
}

_HEADLINES = {
  "zeroshot_retrieval": (
    "image_retrieval_recall@1",
    "image_retrieval_recall@5",
    "text_retrieval_recall@1",
    "text_retrieval_recall@5",
  ),
  "zeroshot_retrieval_main_caption": (
    "image_retrieval_recall@1",
    "text_retrieval_recall@1",
  ),
  "zeroshot_classification": ("acc1", "mean_per_class_recall"),
  "linear_probe": ("lp_acc1", "lp_mean_per_class_recall"),
  "few_shot_probe": ("lp_acc1_k1_mean", "lp_acc1_k4_mean", "lp_acc1_k16_mean"),
  "geometry": (
    "rank_consistency_cross_modal_kendall_tau",
    "rank_consistency_in_modal_kendall_tau",
  ),
}


def run(cfg: Config, workdir: pathlib.Path) -> int:
  """Runs the config's mode; returns the exit code of the process.

  Raises:
    ValueError: with what to do next, if something does not fit.
  """
  try:
    code = _run(cfg, workdir)
  except Exception as error:
    # The user gets one line; whoever looks for a bug gets the rest. Where another run is
    # at home the file is not ours.
    with contextlib.suppress(OSError):
      if not (isinstance(error, lock.HeldError) or _is_anothers(cfg, workdir)):
        (workdir / _errors_file()).write_text(traceback.format_exc(), encoding="utf-8")
    if processes.is_loss(error):
      processes.leave(error, EXIT_STOPPED)
    if Left.any:
      with contextlib.suppress(OSError):
        told = isinstance(error, ValueError | OSError)
        print(f"Error: {error}" if told else traceback.format_exc(), file=sys.stderr)
      if isinstance(error, saving.SaveError):
        _end(1)  # as all others do
      leave_now(1)
    raise
  if Left.any:
    _end(code)
  return code


def _end(code: int) -> NoReturn:
  """Without the threads that would hold this process."""
  if not Left.with_others:
    leave_others(code)
  with contextlib.suppress(RuntimeError):
    jax.distributed.shutdown()
  leave_now(code)


def _run(cfg: Config, workdir: pathlib.Path) -> int:
  logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stderr)
  absl.logging.get_absl_handler().setFormatter(logging.Formatter("%(message)s"))
  logging.getLogger("rankclip_jax").setLevel(logging.INFO)
  checkpoint.hush()
  compared = filter(None, map(str.strip, cfg.report.compare.split(",")))
  others = [pathlib.Path(workdir).expanduser() for workdir in compared]
  for other in others:
    if not other.is_dir():
      raise ValueError(f"config.report.compare names {other}, which does not exist.")
  needs_workdir = not cfg.init.weights or cfg.mode in ("report", "merge")
  needs_workdir |= cfg.mode == "eval" and not cfg.eval.datasets
  # Whoever follows a training may come first.
  needs_workdir &= cfg.mode != "eval" or cfg.eval.checkpoint != "follow"
  if cfg.mode != "train" and needs_workdir and not workdir.is_dir():
    raise ValueError(f"--workdir={workdir} does not exist; --config.mode=train makes it.")
  if cfg.mode in _TOOLS and cfg.distributed.mode != "off":
    raise ValueError(
      f'config.mode="{cfg.mode}" runs as one process; start it on one host, with '
      "--config.distributed.mode=off."
    )
  processes.join(cfg)
  processes.prepare(workdir)
  if cfg.mode in _TOOLS:
    print(_TOOLS[cfg.mode](cfg, workdir))
    return 0
  if cfg.mode == "train" and not _train(cfg, workdir):
    return EXIT_STOPPED
  if cfg.mode == "eval" and cfg.eval.datasets:
    if not suite.run(cfg, workdir):
      return EXIT_STOPPED
  elif cfg.mode == "eval":
    try:
      evaluate.run(cfg, workdir)
    except Stopped:
      log.warning("Stopped by a signal; nothing was written.")
      return EXIT_STOPPED
  by_first(lambda: _report(workdir, others))
  return 0


def _report(workdir: pathlib.Path, others: Sequence[pathlib.Path]) -> None:
  from rankclip_jax import report  # which plots: seconds that training need not wait

  page = report.build([workdir, *others], workdir / "report")
  print(summary(workdir))
  print(f"Report: {page}")


def _is_anothers(cfg: Config, workdir: pathlib.Path) -> bool:
  """Whether a training lives there that this one, which failed early, is no part of."""
  if cfg.mode != "train" or jax.distributed.is_initialized():
    return False
  return lock.is_alive(workdir / lock.TRAINING)  # its own this one has given back


def _errors_file() -> str:
  """Of this process; before the processes have joined, all have the same to say."""
  index = jax.process_index() if jax.distributed.is_initialized() else 0
  return f"error.{index}.log" if index else "error.log"


def _train(cfg: Config, workdir: pathlib.Path) -> bool:
  remedy = "wait for it, stop it, or choose another --workdir."
  locked = lock.held(workdir / lock.TRAINING, f"Training in {workdir}", remedy)
  with contextlib.ExitStack() as stack:
    try:
      stack.enter_context(of_first(locked))
    except ValueError as error:  # on every process, of which the first alone was told
      raise lock.HeldError(str(error)) from error
    return train.run(cfg, workdir)


def summary(workdir: pathlib.Path) -> str:
  """The numbers one asks for first, from the results on disk."""
  lines = []
  for result in results.read_all(workdir / "results"):
    shown = _HEADLINES.get(result["task"], ())
    values = [(name, result["metrics"].get(name)) for name in shown]
    numbers = "  ".join(f"{n} {v:.3f}" for n, v in values if v is not None)
    if numbers:
      lines.append(f"{result['dataset']} {result['task']}: {numbers}")
  return "\n".join(lines)
