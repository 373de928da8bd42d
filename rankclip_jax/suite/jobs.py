"""Which tasks there are, and which of them are this job's."""

import hashlib
import itertools
import pathlib

from rankclip_jax import config as configs
from rankclip_jax.config import Config
from rankclip_jax.data.benchmarks import opening, table
from rankclip_jax.data.benchmarks.table import Benchmark
from rankclip_jax.suite import tasks

RESULTS = "results"
SEVERAL = "several"  # in place of eval.checkpoint, whether "all" or "follow"
_STEP = "step_"
_EVERY = "all"


def whole(cfg: Config) -> list[tuple[str, tasks.Name]]:
  """Every data set of the config with every task that it is good for.

  Raises:
    ValueError: if there is none; for a name that is no data set, or whose results would
      overwrite those of another one.
  """
  return list(itertools.chain(*_groups(cfg)))


def mine(cfg: Config) -> list[tuple[str, tasks.Name]]:
  """This job's, of which those of a data set, that share its embeddings, stay together.

  Raises:
    ValueError: as `whole`.
  """
  return list(itertools.chain(*_groups(cfg)[cfg.eval.shard :: cfg.eval.num_shards]))


def shard_of(cfg: Config) -> str:
  """This job's name, `i_of_n`."""
  return f"{cfg.eval.shard}_of_{cfg.eval.num_shards}"


def name_of(dataset: str, cfg: Config) -> str:
  """What results call a data set."""
  return opening.named(dataset, cfg.eval.folder_dir)[0].name


def of_step(workdir: pathlib.Path, step: int | None) -> pathlib.Path:
  """Where the results of a checkpoint go, or those of weights that are of none."""
  return workdir / RESULTS if step is None else workdir / RESULTS / f"{_STEP}{step}"


def flags_of(cfg: Config) -> dict[str, str]:
  """The flags that decide what comes out, by their names; of files what is in them.

  Raises:
    ValueError: as `whole`, or if a file cannot be read.
  """
  of = cfg.eval
  datasets = sorted({dataset for dataset, _ in whole(cfg)})
  flags = {
    "data.holdout": cfg.data.holdout,
    "eval.checkpoint": SEVERAL if of.checkpoint in configs.SEVERAL else of.checkpoint,
    "eval.datasets": ",".join(datasets),
    "eval.few_shot": ",".join(map(str, sorted(of.few_shot))),
    "eval.few_shot_seeds": of.few_shot_seeds,
    "eval.names": _content(of.names),
    "eval.probe": of.probe,
    "eval.templates": _content(of.templates),
    "init.weights": cfg.init.weights,
    "seed": cfg.seed,
  }
  return {name: str(value) for name, value in flags.items()}


def _content(path: str) -> str:
  if not path:
    return ""
  try:
    return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()[:16]
  except OSError as error:
    raise ValueError(f"{path} cannot be read: {error.strerror}.") from error


def _names(cfg: Config) -> list[str]:
  if cfg.eval.datasets == _EVERY:
    return list(table.BENCHMARKS)
  names = [name.strip() for name in cfg.eval.datasets.split(",") if name.strip()]
  if not names:
    raise ValueError(
      f"config.eval.datasets={cfg.eval.datasets!r} names no data set; give the ones that "
      "are evaluated, separated by commas."
    )
  return names


def _groups(cfg: Config) -> list[list[tuple[str, tasks.Name]]]:
  """The tasks of each data set."""
  groups: dict[str, list[tuple[str, tasks.Name]]] = {}
  for name in _names(cfg):
    benchmark, folder = opening.named(name, cfg.eval.folder_dir)
    dataset = str(folder or benchmark.name)
    group: list[tuple[str, tasks.Name]] = [(dataset, x) for x in _tasks(benchmark, cfg)]
    if benchmark.name in groups:
      other, _ = groups[benchmark.name][0]
      if other == dataset:
        raise ValueError(f"config.eval.datasets names {dataset} more than once.")
      raise ValueError(
        f"config.eval.datasets: {other} and {dataset} are both called {benchmark.name}, "
        "and their results would overwrite each other; rename a folder."
      )
    groups[benchmark.name] = group
  return list(groups.values())


def _tasks(benchmark: Benchmark, cfg: Config) -> list[tasks.Name]:
  if benchmark.task == "retrieval":
    return ["zeroshot_retrieval", "geometry"]
  found: list[tasks.Name] = ["zeroshot_classification"]
  if cfg.eval.probe != "none":
    found.append("linear_probe")
  if cfg.eval.few_shot:
    found.append("few_shot_probe")
  return found
