"""Which tasks there are, which of them are this job's, and what the jobs left out."""

import dataclasses
import itertools
import json
import pathlib
from collections.abc import Sequence

from rankclip_jax.config import Config
from rankclip_jax.data.benchmarks import opening, table
from rankclip_jax.evals import results
from rankclip_jax.suite import tasks

RESULTS = "results"
_SKIPPED = "skipped"
_STEP = "step_"
_EVERY = "all"


@dataclasses.dataclass(frozen=True)
class Skip:
  """A task that was not done, and why."""

  dataset: str
  task: str
  reason: str


def whole(cfg: Config) -> list[tuple[str, tasks.Name]]:
  """Every data set of the config with every task that it is good for.

  Raises:
    ValueError: for a name that is no data set, or one that is named twice.
  """
  return list(itertools.chain(*_groups(cfg)))


def mine(cfg: Config) -> list[tuple[str, tasks.Name]]:
  """This job's, of which those that share costly embeddings stay together.

  Raises:
    ValueError: as `whole`.
  """
  return list(itertools.chain(*_groups(cfg)[cfg.eval.shard :: cfg.eval.num_shards]))


def of_step(workdir: pathlib.Path, step: int) -> pathlib.Path:
  """Where the results of a checkpoint go."""
  return workdir / RESULTS / f"{_STEP}{step}"


def steps(workdir: pathlib.Path) -> list[int]:
  """The checkpoints that have results, ascending."""
  names = [
    path.name.removeprefix(_STEP) for path in (workdir / RESULTS).glob(f"{_STEP}*")
  ]
  return sorted(int(name) for name in names if name.isdecimal())


def note_begun(workdir: pathlib.Path, shard: str) -> None:
  """Takes back that a job (`i_of_n`) has ended, which it may have with other weights."""
  _note(workdir, shard).unlink(missing_ok=True)


def note_skipped(workdir: pathlib.Path, shard: str, skipped: Sequence[Skip]) -> None:
  """Writes down what a job (`i_of_n`) left out; an empty list says that nothing was."""
  path = _note(workdir, shard)
  path.parent.mkdir(parents=True, exist_ok=True)
  lines = [dataclasses.asdict(skip) for skip in skipped]
  results.write_text(path, json.dumps(lines, indent=2) + "\n")


def skipped(workdir: pathlib.Path, num_shards: int) -> list[Skip]:
  """What all jobs left out.

  Raises:
    ValueError: naming jobs that have not ended.
  """
  paths = [_note(workdir, f"{shard}_of_{num_shards}") for shard in range(num_shards)]
  if missing := [shard for shard, path in enumerate(paths) if not path.is_file()]:
    raise ValueError(
      f"Jobs {missing} of {num_shards} have not ended in {workdir}; run each with "
      f"--config.eval.shard=i --config.eval.num_shards={num_shards}, then merge."
    )
  return [Skip(**x) for path in paths for x in json.loads(path.read_text())]


def _note(workdir: pathlib.Path, shard: str) -> pathlib.Path:
  return workdir / RESULTS / _SKIPPED / f"{shard}.json"


def _names(cfg: Config) -> list[str]:
  if cfg.eval.datasets == _EVERY:
    return list(table.BENCHMARKS)
  return [name.strip() for name in cfg.eval.datasets.split(",") if name.strip()]


def _known(name: str) -> str:
  """The table's name for a data set, or a user's folder as it is."""
  return name if pathlib.Path(name).expanduser().is_dir() else table.find(name).name


def _groups(cfg: Config) -> list[list[tuple[str, tasks.Name]]]:
  """The tasks of all data sets, together where they embed the same."""
  names = [_known(name) for name in _names(cfg)]
  if twice := sorted({name for name in names if names.count(name) > 1}):
    raise ValueError(f"config.eval.datasets names {', '.join(twice)} more than once.")
  return [
    [(name, task) for task in group] for name in names for group in _tasks(name, cfg)
  ]


def _tasks(name: str, cfg: Config) -> list[tuple[tasks.Name, ...]]:
  if opening.named(name).task == "retrieval":
    return [("zeroshot_retrieval", "geometry")]
  groups: list[tuple[tasks.Name, ...]] = [("zeroshot_classification",)]
  match cfg.eval.probe != "none", bool(cfg.eval.few_shot):
    case True, True:
      groups.append(("linear_probe", "few_shot_probe"))
    case True, False:
      groups.append(("linear_probe",))
    case False, True:
      groups.append(("few_shot_probe",))
  return groups
