"""What each job did and left out, in a file of its own, for those that join jobs.

`results/skipped/i_of_n.json` has the job's flags, whether it has ended, and for every
checkpoint a digest of the model, the keys of its results, and the reasons of skips.
"""

import dataclasses
import json
import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from rankclip_jax.evals import results
from rankclip_jax.suite import jobs
from rankclip_jax.suite.jobs import SEVERAL

_FOLDER = "skipped"

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Skip:
  """A task that was not done, and why; `dataset` as results call it."""

  dataset: str
  task: str
  reason: str


@dataclasses.dataclass(frozen=True)
class Done:
  """A task that has a result of this key."""

  dataset: str
  task: str
  key: str


@dataclasses.dataclass(frozen=True)
class Visit:
  """What a job did with a checkpoint.

  Attributes:
    step: None for weights that are of none.
    weights: a digest of the model; "" if the checkpoint was deleted before.
    done: results.
    skipped: the other tasks.
  """

  step: int | None
  weights: str
  done: tuple[Done, ...] = ()
  skipped: tuple[Skip, ...] = ()


@dataclasses.dataclass(frozen=True)
class Note:
  """What a job did.

  Attributes:
    flags: that decide what comes out, as text by their names.
    visits: of checkpoints, in the order of their steps.
    ended: whether there will be no more.
  """

  flags: Mapping[str, str]
  visits: tuple[Visit, ...] = ()
  ended: bool = False

  def of_step(self, step: int | None) -> Visit | None:
    """The visit of a checkpoint, if there was one."""
    return next((visit for visit in self.visits if visit.step == step), None)

  def with_visit(self, visit: Visit) -> "Note":
    """The same after one more visit, or more of one of its step."""
    visits = [old for old in self.visits if old.step != visit.step] + [visit]
    visits.sort(key=lambda each: -1 if each.step is None else each.step)
    return dataclasses.replace(self, visits=tuple(visits))


class Diary:
  """Keeps the note of a job on disk while the job runs."""

  def __init__(self, workdir: pathlib.Path, shard: str, flags: Mapping[str, str]):
    """Begins, and takes back that the job has ended before.

    An earlier note of the same flags goes on where several checkpoints are measured: what
    it says of those that training has deleted since is known to nobody else.
    """
    self._workdir, self._shard = workdir, shard
    self._note = Note(flags)
    try:
      old = read(workdir, shard)
    except ValueError as error:
      log.warning("%s", error)
      old = None
    if old is not None and old.flags == flags and flags["eval.checkpoint"] == SEVERAL:
      there = lambda x: not x.done or jobs.of_step(workdir, x.step).is_dir()
      self._note = Note(flags, tuple(filter(there, old.visits)))
    self._write()

  def meets(self, step: int | None, weights: str) -> None:
    """A checkpoint; `weights` are a digest of it, or "" if it is deleted already."""
    old = self._note.of_step(step)
    if old is None or weights not in ("", old.weights):
      self._note = self._note.with_visit(Visit(step, weights))
      self._write()

  def tells(self, step: int | None, told: Done | Skip) -> None:
    """What became of a task."""
    visit = self._note.of_step(step)
    assert visit is not None
    task = (told.dataset, told.task)
    done, skipped = (
      [each for each in before if (each.dataset, each.task) != task]
      for before in (visit.done, visit.skipped)
    )
    (done if isinstance(told, Done) else skipped).append(told)
    visit = dataclasses.replace(visit, done=tuple(done), skipped=tuple(skipped))
    self._note = self._note.with_visit(visit)
    self._write()

  def ends(self) -> None:
    """There is nothing left to do."""
    self._note = dataclasses.replace(self._note, ended=True)
    self._write()

  def _write(self) -> None:
    path = path_of(self._workdir, self._shard)
    path.parent.mkdir(parents=True, exist_ok=True)
    results.write_text(path, json.dumps(dataclasses.asdict(self._note), indent=2) + "\n")


def path_of(workdir: pathlib.Path, shard: str) -> pathlib.Path:
  """Where the note of a job (`i_of_n`) lies."""
  return workdir / jobs.RESULTS / _FOLDER / f"{shard}.json"


def read(workdir: pathlib.Path, shard: str) -> Note | None:
  """The note of a job; None where there is none.

  Raises:
    ValueError: if it is damaged.
  """
  path = path_of(workdir, shard)
  try:
    record = json.loads(path.read_text(encoding="utf-8"))
    visits = tuple(map(_visit, record["visits"]))
    return Note(dict(record["flags"]), visits, bool(record["ended"]))
  except FileNotFoundError:
    return None
  except (ValueError, KeyError, TypeError) as error:
    raise ValueError(
      f"{path} is no note of a job ({type(error).__name__}: {error}); remove it, and run "
      "the job again: it does only what is missing."
    ) from error


def of_all(
  workdir: pathlib.Path, num_shards: int, flags: Mapping[str, str]
) -> list[Note]:
  """The notes of all jobs.

  Raises:
    ValueError: if jobs have not ended, or ran with other flags.
  """
  read_notes = [read(workdir, f"{shard}_of_{num_shards}") for shard in range(num_shards)]
  ended = [note for note in read_notes if note is not None and note.ended]
  if len(ended) < num_shards:
    missing = [i for i, x in enumerate(read_notes) if x is None or not x.ended]
    raise ValueError(
      f"Jobs {missing} of {num_shards} have not ended in {workdir}; run each with "
      f"--config.eval.shard=i --config.eval.num_shards={num_shards}, then merge."
    )
  for shard, note in enumerate(ended):
    _check_flags(shard, note.flags, flags)
  return ended


def _check_flags(shard: int, there: Mapping[str, str], here: Mapping[str, str]) -> None:
  wrong = [
    f"{name}: job {shard} had {there.get(name)!r}, the merge has {here.get(name)!r}"
    for name in sorted(there.keys() | here.keys())
    if there.get(name) != here.get(name)
  ]
  if wrong:
    raise ValueError(
      "A merge wants the flags of its jobs:\n  "
      + "\n  ".join(wrong)
      + "\nGive it the same, or run the job again with these."
    )


def _visit(record: Mapping[str, Any]) -> Visit:
  rows: Sequence[Mapping[str, str]] = record["done"]
  return Visit(
    record["step"],
    record["weights"],
    tuple(Done(**row) for row in rows),
    tuple(Skip(**row) for row in record["skipped"]),
  )
