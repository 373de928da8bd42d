"""What the tools have in common: SPEC on the command line, and the source it names."""

import argparse
import glob
import os
import pathlib
from collections.abc import Sequence
from typing import Literal, NoReturn, get_args

from rankclip_jax.data import files, opening
from rankclip_jax.data.source import Source

_TFDS = "tfds:"


class Parser(argparse.ArgumentParser):
  """A parser whose complaint is one line, as of every other error."""

  def __init__(self, tool: str, description: str):
    super().__init__(
      prog=f"python -m rankclip_jax.data {tool}",
      description=description,
      allow_abbrev=False,
    )

  def error(self, message: str) -> NoReturn:
    """Raises ValueError."""
    raise ValueError(f"{message}; see {self.prog} --help.")


def add_source(parser: argparse.ArgumentParser) -> None:
  """Adds SPEC and the options that say how it is opened."""
  parser.add_argument(
    "spec",
    metavar="SPEC",
    help="paths or patterns, several of them between '::', or tfds:NAME@SPLIT",
  )
  parser.add_argument(
    "--format",
    choices=get_args(opening.Format),
    help="where the endings do not say it",
  )
  parser.add_argument(
    "--caption-key",
    default="",
    metavar="NAME",
    help="the column, JSON key or feature with the captions; else the known names",
  )
  parser.add_argument(
    "--image-key",
    default="",
    metavar="NAME",
    help="the column or feature with the pictures; else the known names",
  )
  parser.add_argument(
    "--tfds-dir",
    default="",
    metavar="DIR",
    help="where TFDS data sets lie; else TFDS's own folder",
  )
  parser.add_argument(
    "--cache",
    type=pathlib.Path,
    metavar="DIR",
    help="for indices that cannot be written beside the data",
  )


def open_source(args: argparse.Namespace) -> Source:
  """The source that the arguments of `add_source` name.

  Raises:
    ValueError: if there is none, see `opening.open_source`.
  """
  how, spec = resolved(args.spec, args.format)
  options = opening.Options(
    caption_key=args.caption_key,
    image_key=args.image_key,
    data_dir=args.tfds_dir,
    cache=args.cache,
  )
  return opening.open_source(how, spec, options)


def resolved(
  spec: str, how: opening.Format | None
) -> tuple[opening.Format | Literal["mixture"], str]:
  """The format of all parts, "mixture" where they differ, and the spec for it.

  Raises:
    ValueError: if there is no part, or none was given and an ending does not say it.
  """
  parts = files.parts(spec)
  if not parts:
    raise ValueError(f"{spec!r} names no data; give paths or patterns between '::'.")
  kinds: set[opening.Format] = {how} if how else {_recognised(part) for part in parts}
  if len(kinds) > 1:
    return "mixture", spec
  return kinds.pop(), "::".join(part.removeprefix(_TFDS) for part in parts)


def data_files(spec: str, how: opening.Format | None) -> Sequence[str] | None:
  """The files of a source, in order; None where that is known to a library alone."""
  found = []
  for part in files.parts(spec):
    kind = how or _recognised(part)
    if kind == "tfds":
      return None
    for path in files.expand(part):
      folder = kind == "parquet" and not files.is_remote(path) and os.path.isdir(path)
      found += files.expand(f"{glob.escape(path)}/*.parquet") if folder else [path]
  return found


def _recognised(part: str) -> opening.Format:
  try:
    return opening.recognised(part)
  except ValueError as error:
    raise ValueError(
      f"{part!r}: the ending says no format; known are {', '.join(opening.ENDINGS)} and "
      f"tfds:NAME. Name it with --format={'|'.join(get_args(opening.Format))}."
    ) from error
