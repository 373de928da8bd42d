"""A study: variants of a run, several seeds of each, and the figure that they make."""

import dataclasses
import importlib.util
import pathlib
import re
import types
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import config_flags

from rankclip_jax import config as configs
from rankclip_jax.config import Config

ROOT = pathlib.Path(__file__).resolve().parents[2]
MAIN = ROOT / "main.py"


@dataclasses.dataclass(frozen=True)
class Metric:
  """A number of the results, and what the figure calls it.

  Attributes:
    task, name: as in the results.
    label: for people.
    dataset: as in the results; "" is what the run held out.
    percent: whether the figure shows 0.5 as 50.
  """

  task: str
  name: str
  label: str
  dataset: str = ""
  percent: bool = False


RETRIEVAL = (
  Metric(
    "zeroshot_retrieval",
    "image_retrieval_recall@1",
    "recall@1, text to image (%)",
    percent=True,
  ),
  Metric(
    "zeroshot_retrieval",
    "text_retrieval_recall@1",
    "recall@1, image to text (%)",
    percent=True,
  ),
)
RANKING = (
  Metric(
    "geometry",
    "rank_consistency_cross_modal_kendall_tau",
    "rank consistency, cross-modal (Kendall's τ)",
  ),
  Metric(
    "geometry",
    "rank_consistency_in_modal_kendall_tau",
    "rank consistency, in-modal (Kendall's τ)",
  ),
)


@dataclasses.dataclass(frozen=True)
class Variant:
  """A run but for its seed.

  Studies in one workdir share the runs of variants of one name, if these have one config;
  if not, that is an error.

  Attributes:
    name: of its folders.
    series: the line, or colour, of the figure that it belongs to.
    x: where on the axis it stands: numbers, or one word for each place.
    config: a file of configs/ with what follows its colon, from the repository's root.
    settings: fields of the config in place of the file's.
  """

  name: str
  series: str
  x: float | str
  config: str
  settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Study:
  """Which runs, and what is drawn of them.

  Attributes:
    name: of its figure and its table.
    x_label: of the axis.
    variants: at least one; x is a number in all of them or in none.
    metrics: a panel of the figure each.
    log_x: whether the axis is logarithmic.
    seeds: how many of each variant, from 0 on.
    benchmarks: the field's data sets that every run is evaluated on when it is trained,
      as `config.eval.datasets`; "" is none but what it held out.
  """

  name: str
  x_label: str
  variants: Sequence[Variant]
  metrics: Sequence[Metric] = (*RETRIEVAL, *RANKING)
  log_x: bool = False
  seeds: int = 3
  benchmarks: str = ""

  def __post_init__(self):
    names = [variant.name for variant in self.variants]
    if not names or not self.metrics:
      raise ValueError(f"The study {self.name!r} needs a variant and a metric at least.")
    if twice := sorted({name for name in names if names.count(name) > 1}):
      raise ValueError(f"The study {self.name!r} has several variants {twice[0]!r}.")
    if strange := [n for n in (self.name, *names) if not re.fullmatch(r"[\w.+-]+", n)]:
      raise ValueError(
        f"Names of studies and variants become names of files, so they are of letters, "
        f"digits, and _ . + -, got {strange[0]!r}."
      )
    if len({isinstance(variant.x, str) for variant in self.variants}) > 1:
      raise ValueError(f"The study {self.name!r} mixes numbers and words on its x axis.")

  @property
  def in_words(self) -> bool:
    """Whether places on the x axis are words."""
    return isinstance(self.variants[0].x, str)


@dataclasses.dataclass(frozen=True)
class Run:
  """One variant with one seed.

  Attributes:
    name: of its folder.
    workdir: that folder.
    flags: of main.py but for the workdir; they make `config`.
    config: what they resolve to.
    benchmarks: see `Study`.
  """

  name: str
  variant: Variant
  seed: int
  workdir: pathlib.Path
  flags: tuple[str, ...]
  config: Config
  benchmarks: str = ""

  def commands(self) -> list[list[str]]:
    """The words after `python` of what trains and evaluates it, one after the other."""
    train = [_shown(str(MAIN)), *self.flags, f"--workdir={self.workdir}"]
    if not self.benchmarks:
      return [train]
    datasets = f"--config.eval.datasets={self.benchmarks}"
    return [train, [*train, "--config.mode=eval", datasets]]


def variant_of(config: str, word: str) -> str:
  """A config with one more word behind its colon: configs/cc3m.py:rn50,clip."""
  return f"{config}{',' if ':' in config else ':'}{word}"


def load(path: str) -> Study:
  """The study of a file, PATH or PATH:ARGUMENT, by its `get_study(argument or None)`.

  Raises:
    ValueError: if there is no such file, or it makes no study.
  """
  name, _, argument = path.partition(":")
  file = pathlib.Path(name)
  if not file.is_file():
    known = ", ".join(p.stem for p in sorted((ROOT / "configs/studies").glob("*.py")))
    raise ValueError(
      f"There is no study {name}; those of configs/studies/ are {known}, and any file "
      "with a function get_study may be one."
    )
  module = _module(file)
  make = getattr(module, "get_study", None)
  study = make(argument or None) if callable(make) else None
  if not isinstance(study, Study):
    raise ValueError(f"{name} must have a function get_study(arg) that returns a Study.")
  return study


def expand(
  study: Study, workdir: pathlib.Path, *, seeds: int, settings: Mapping[str, str]
) -> list[Run]:
  """Every run of a study, all variants of a seed before those of the next.

  Args:
    study: of which.
    workdir: of the study; every run has a folder in it.
    seeds: how many, from 0 on.
    settings: fields of the config for all runs, as flags have them.

  Raises:
    ValueError: if a field is unknown, or varied by the study itself, or a value is bad.
  """
  if seeds < 1:
    raise ValueError(f"A study needs one seed at least, got {seeds}.")
  return [
    _run(study, variant, seed, workdir, settings)
    for seed in range(seeds)
    for variant in study.variants
  ]


def _run(
  study: Study,
  variant: Variant,
  seed: int,
  workdir: pathlib.Path,
  settings: Mapping[str, str],
) -> Run:
  own = {**variant.settings, "seed": seed}
  if both := sorted(own.keys() & settings.keys()):
    raise ValueError(
      f"The study {study.name!r} varies {both[0]} itself; leave it out of --set, or "
      "change its file."
    )
  given = [f"--config.{name}={value}" for name, value in {**own, **settings}.items()]
  config = f"{ROOT}/{variant.config}"
  name = f"{variant.name}-{seed}"
  return Run(
    name=name,
    variant=variant,
    seed=seed,
    workdir=workdir / name,
    flags=(f"--config={_shown(config)}", *given),
    config=_resolved(config, given),
    benchmarks=study.benchmarks,
  )


def _resolved(config: str, given: Sequence[str]) -> Config:
  """What main.py makes of a config's file and these flags.

  Raises:
    ValueError: as main.py.
  """
  configs.check_flag_names(given)
  path, _, argument = config.partition(":")
  values = _module(pathlib.Path(path)).get_config(argument or None)
  words, parsed = ["main.py", *given], flags.FlagValues()
  config_flags.DEFINE_config_dict("config", values, flag_values=parsed, sys_argv=words)
  try:
    parsed(words)
  except flags.Error as error:
    raise ValueError(str(error)) from error
  return configs.from_config_dict(parsed.config)


def _module(file: pathlib.Path) -> types.ModuleType:
  """The module of a file that is in no package."""
  spec = importlib.util.spec_from_file_location(f"of_study_{file.stem}", file)
  assert spec is not None
  assert spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def _shown(path: str) -> str:
  """As short as can be: relative to the working directory, if it is in there."""
  return path.removeprefix(f"{pathlib.Path.cwd()}/")
