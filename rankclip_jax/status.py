"""Where a run is: `python -m rankclip_jax.status WORKDIR`. Reads files, needs no jax."""

import argparse
import collections
import datetime
import json
import math
import pathlib
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rankclip_jax import lock

_METRICS = "metrics.jsonl"
_CHECKPOINTS = "checkpoints"
_FAILED_SAVES = "save_failures.jsonl"
_COMPLETE = "training_complete.json"
# How fast a run is now is the median of so many logged steps, in so many bytes at most.
_RECENT = 50
_TAIL_BYTES = 2**18
_HEADLINE = ("image_retrieval_recall@1", "text_retrieval_recall@1")
_LABEL = 12
# Any of these makes a folder the workdir of a run.
_SIGNS = ("config.json", _METRICS, lock.TRAINING, "results")


def main(argv: Sequence[str]) -> int:
  """Prints where the runs are; returns the exit code, 1 after an error of one line."""
  parser = argparse.ArgumentParser(
    "python -m rankclip_jax.status", description="Where runs are, from their workdirs."
  )
  parser.add_argument("workdir", nargs="+", type=pathlib.Path)
  code = 0
  for workdir in parser.parse_args(argv).workdir:
    try:
      print(describe(workdir), flush=True)
    except (ValueError, OSError) as error:
      print(f"Error: {error}", file=sys.stderr)
      code = 1
  return code


def describe(workdir: pathlib.Path) -> str:
  """Whether a run goes on, how far it is, how fast, what is left, and what went wrong.

  Files that are damaged or cannot be read are named, and the rest is told.

  Raises:
    ValueError: if that is no workdir of a run.
    OSError: if it may not be looked into.
  """
  if not workdir.is_dir():
    raise ValueError(f"{workdir} is no folder; give the --workdir of a run.")
  if not any((workdir / name).exists() for name in _SIGNS):
    raise ValueError(
      f"{workdir} holds none of {', '.join(_SIGNS)}; give the --workdir of a run."
    )
  parts = (_state, _progress, _checkpoint, _evaluation, _troubles)
  lines = [line for part in parts for line in _readable(part, workdir)]
  return "\n".join([f"{workdir}", *(f"  {label:<{_LABEL}}{x}" for label, x in lines)])


def _readable(
  part: Callable[[pathlib.Path], Iterator[tuple[str, str]]], workdir: pathlib.Path
) -> Iterator[tuple[str, str]]:
  """What a part has to say, up to a file that is not as we write it."""
  try:
    yield from part(workdir)
  except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
    what = part.__name__.removeprefix("_")
    why = " ".join(f"{type(error).__name__}: {error}".split())
    yield "damaged", f"a file that tells of the {what} cannot be read ({why})"


def _state(workdir: pathlib.Path) -> Iterator[tuple[str, str]]:
  path = workdir / lock.TRAINING
  owner, silence = lock.owner(path), lock.silence(path)
  if owner and lock.is_alive(path):
    yield "training", f"{owner}"
  elif (workdir / _COMPLETE).is_file():
    yield "training", f"ended at step {_object(workdir / _COMPLETE).get('step')}"
  elif owner and owner.is_gone():
    yield "training", f"not running: it was killed {owner}; the same command goes on"
  elif owner:
    yield "training", f"no sign of life for {_duration(silence)}; it was {owner}"
  elif (steps := _checkpoints(workdir)) and steps[-1] == _num_steps(workdir):
    yield "training", f"ended at step {steps[-1]}"
  else:
    yield "training", "not running; the same command goes on"
  for path in sorted((workdir / "results" / "locks").glob("*.json")):
    if lock.is_alive(path):
      job = path.stem.replace("_", " ")
      yield "evaluation", f"job {job} runs {lock.owner(path)}"


def _progress(workdir: pathlib.Path) -> Iterator[tuple[str, str]]:
  steps = [x for x in _tail(workdir / _METRICS) if _is_step(x)][-_RECENT:]
  if not steps:
    yield "step", "none logged yet"
    return
  step, num_steps = steps[-1]["step"], _num_steps(workdir)
  epochs = _object(workdir / "config.json").get("optim", {}).get("epochs")
  ago = f"logged {_duration(time.time() - steps[-1]['time'])} ago"
  if num_steps and epochs:
    epoch = min(step * epochs // num_steps + 1, epochs)
    of = f"{num_steps} ({step / num_steps:.1%}), epoch {epoch} of {epochs}"
    yield "step", f"{step} of {of}, {ago}"
  else:
    yield "step", f"{step}, {ago}"
  terms = {k.removeprefix("train/"): v for k, v in steps[-1].items() if "train/" in k}
  losses = {k.removesuffix("_loss"): v for k, v in terms.items() if k.endswith("loss")}
  yield "loss", "  ".join(f"{k} {_number(losses[k])}" for k in sorted(losses))
  seconds = statistics.median(x["step_seconds"] for x in steps)
  rates = {
    name: statistics.median(x[name] for x in steps if x.get(name))
    for name in ("examples_per_second", "examples_per_second_per_device")
    if any(x.get(name) for x in steps)
  }
  waited = sum(x.get("data_wait_seconds") or 0.0 for x in steps)
  share = waited / sum(x["step_seconds"] for x in steps)
  fast = [f"{v:,.0f} {k.replace('_per_', '/')}" for k, v in rates.items()]
  if used := [x["mfu"] for x in steps if x.get("mfu")]:
    fast.append(f"{statistics.median(used):.1%} MFU")
  yield "speed", ", ".join([*fast, f"{seconds:.3g} s a step"])
  held = {k: v for k, v in steps[-1].items() if "memory" in k and v is not None}
  if held:
    names = {k: k.removesuffix("_gib").replace("_", " ") for k in held}
    shown = ", ".join(f"{v:.2f} GiB {names[k]}" for k, v in held.items())
    yield "memory", shown.replace(" memory", "")
  yield "input", f"{share:.1%} of the time went into waiting for data"
  if num_steps and step < num_steps:
    left = num_steps - step
    what = f"{left} steps, about {_duration(left * seconds)}"
    yield "left", f"{what}, evaluations and saving not counted"


def _is_step(line: Mapping[str, Any]) -> bool:
  """Whether a line of metrics is a step's, and whole."""
  numbers = [line.get(name) for name in ("step", "time", "step_seconds")]
  return all(isinstance(x, int | float) and math.isfinite(x) and x > 0 for x in numbers)


def _checkpoint(workdir: pathlib.Path) -> Iterator[tuple[str, str]]:
  steps = _checkpoints(workdir)
  if not steps:
    yield "checkpoint", "none yet"
    return
  # Orbax renames a folder when it is complete, and leaves it as it is from then on.
  saved = (workdir / _CHECKPOINTS / str(steps[-1])).stat().st_mtime
  kept = ", ".join(map(str, steps))
  yield "checkpoint", f"step {steps[-1]}, {_duration(time.time() - saved)} ago ({kept})"


def _evaluation(workdir: pathlib.Path) -> Iterator[tuple[str, str]]:
  path = workdir / _METRICS
  data = path.read_bytes() if path.is_file() else b""
  found = None
  while found is None and (place := data.rfind(b'"eval/')) >= 0:
    begin, end = data.rfind(b"\n", 0, place) + 1, data.find(b"\n", place)
    found = _parsed(data[begin : end if end >= 0 else len(data)])
    data = data[:begin]  # a torn line hides none before it
  best = _object(workdir / "config.json").get("checkpoint", {}).get("best_metric")
  shown = [
    f"{name.removeprefix('eval/')} {_number(value)}"
    for name, value in (found or {}).items()
    if name.endswith(tuple(f"/zeroshot_retrieval/{h}" for h in _HEADLINE))
    or (best and name == f"eval/{best}")
  ]
  if found and shown:
    ago = _duration(time.time() - found["time"])
    yield "evaluation", f"step {found['step']}, {ago} ago: {', '.join(shown)}"


def _troubles(workdir: pathlib.Path) -> Iterator[tuple[str, str]]:
  files = sorted(workdir.glob("bad_examples*.jsonl"))
  if last := [x for path in files for x in _tail(path)]:
    count = sum(path.read_bytes().count(b"\n") for path in files)
    reasons = collections.Counter(str(x.get("reason")) for x in last)
    counts = ", ".join(f"{n} {reason}" for reason, n in reasons.most_common(5))
    names = ", ".join(path.name for path in files)
    yield "examples", f"{count} were bad (of the last: {counts}), see {names}"
  yield from _failed_saves(workdir)
  for path in sorted(workdir.glob("nonfinite.*.json")):
    told = f"step {_object(path).get('step')}, see {path.name}"
    yield "diverged", f"{_ago(workdir, path)}: {told}"
  if aside := sorted(p.name for p in workdir.glob("checkpoints_corrupt/*")):
    yield "damaged", f"checkpoints {', '.join(aside)} were set aside"
  for path in sorted(workdir.glob("error*.log")):
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    raised = [x for x in lines if re.match(r"[A-Za-z_][\w.]*(Error|Exception)\b", x)]
    told = raised[-1] if raised else f"see {path.name}"
    yield "error", f"{_ago(workdir, path)}: {told}"
  for path in sorted(workdir.glob("stacks.*.txt")):
    yield "stood still", f"{_ago(workdir, path)}: where threads were is in {path.name}"


def _failed_saves(workdir: pathlib.Path) -> Iterator[tuple[str, str]]:
  """Of checkpoints, unless a later one is complete."""
  failed = [x for x in _tail(workdir / _FAILED_SAVES) if "step" in x]
  newest = max(_checkpoints(workdir), default=-1)
  if open_ones := [x for x in failed if x["step"] > newest]:
    last, count = open_ones[-1], len({x["step"] for x in open_ones})
    ago = _duration(time.time() - last["time"])
    told = f"the last {ago} ago at step {last['step']}: {last.get('error')}"
    yield "not saved", f"{count} checkpoint(s) since step {max(newest, 0)}, {told}"


def _ago(workdir: pathlib.Path, path: pathlib.Path) -> str:
  """When a file was written, and whether the training that runs now is younger."""
  when = path.stat().st_mtime
  ago = _duration(time.time() - when) + " ago"
  owner = lock.owner(workdir / lock.TRAINING)
  if owner and lock.is_alive(workdir / lock.TRAINING):
    begun = datetime.datetime.fromisoformat(owner.since).timestamp()
    ago += ", before this run" if when < begun else ""
  return ago


def _num_steps(workdir: pathlib.Path) -> int | None:
  """Of the whole run: noted at its start, and in every checkpoint."""
  noted = _object(workdir / "environment.json").get("plan", {}).get("num_steps")
  for step in reversed([] if noted else _checkpoints(workdir)):
    path = workdir / _CHECKPOINTS / str(step) / "facts" / "metadata"
    if noted := _object(path).get("num_steps"):
      break
  return noted


def _checkpoints(workdir: pathlib.Path) -> list[int]:
  found = (workdir / _CHECKPOINTS).glob("*")
  return sorted(int(p.name) for p in found if p.name.isdecimal())


def _tail(path: pathlib.Path) -> list[dict[str, Any]]:
  """The objects of a JSON-lines file's last lines; what is torn is passed over."""
  if not path.is_file():
    return []
  with path.open("rb") as file:
    size = file.seek(0, 2)
    file.seek(max(size - _TAIL_BYTES, 0))
    lines = file.read().splitlines()
  return [x for x in map(_parsed, lines) if x is not None]


def _object(path: pathlib.Path) -> Mapping[str, Any]:
  """A JSON file's object; {} if there is none."""
  try:
    return _parsed(path.read_bytes()) or {}
  except OSError:
    return {}


def _parsed(text: bytes) -> dict[str, Any] | None:
  try:
    value = json.loads(text)
  except ValueError:
    return None
  return value if isinstance(value, dict) else None


def _number(value: float | None) -> str:
  return "not finite" if value is None else f"{value:.3f}"


def _duration(seconds: float) -> str:
  """ "12 s", "3.5 min", "7.1 h" or "2.4 days"."""
  for unit, size in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
    if seconds >= 1.5 * size and math.isfinite(seconds):
      return f"{seconds / size:.1f} {unit}"
  return f"{max(seconds, 0.0):.0f} s"


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
