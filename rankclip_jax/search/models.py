"""The model of a config, and those that its `compare` lays beside it."""

import pathlib
from collections.abc import Iterator

from rankclip_jax import start
from rankclip_jax.config import Config
from rankclip_jax.interop import Weights


def each(
  cfg: Config, workdir: pathlib.Path, compare: str, setting: str
) -> Iterator[tuple[str, pathlib.Path, Weights]]:
  """Names, places and weights, the config's own model first, one after the other.

  Its place is the workdir, where its embeddings lie, wherever its weights do.
  `eval.checkpoint` is of all workdirs.

  Args:
    cfg: whose model is the first.
    workdir: of that config.
    compare: further workdirs, exports or checkpoints, separated by commas.
    setting: what the config calls `compare`, for errors.

  Raises:
    ValueError: if one of `compare` does not exist or is named twice; and as
      `start.to_use` and `start.read`.
  """
  others = [start.path_of(x.strip()) for x in compare.split(",") if x.strip()]
  for path in others:
    if not path.exists():
      raise ValueError(f"{setting} names {path}, which does not exist.")
  own, weights = start.to_use(cfg, workdir)
  paths = [own, *others]
  for i, path in enumerate(paths):
    if path.resolve() in [p.resolve() for p in paths[:i]]:
      raise ValueError(f"{setting} names {path}, which is among the models already.")
  names = _names(paths)
  yield names[0], workdir, weights
  for name, path in zip(names[1:], others, strict=True):
    yield name, path, start.read(path, cfg.eval.checkpoint, cfg.model.activation)


def _names(paths: list[pathlib.Path]) -> list[str]:
  """The ends of paths, as long as it takes to tell them apart."""
  parts = [path.resolve().parts for path in paths]
  length = 1
  while len({p[-length:] for p in parts}) < len(parts):
    length += 1
  return ["/".join(p[-length:]) for p in parts]
