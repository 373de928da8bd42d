"""`python -m rankclip_jax.data index`: finds all examples once, and keeps where they are.

Training does so as well where it finds no index. This is for data on which many runs
start, or that is indexed on a machine near to it.
"""

import os
import pathlib
import time
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table

from rankclip_jax.data import files
from rankclip_jax.data.source import losses_of
from rankclip_jax.data.tools import arguments

_WIDTH = 160  # letters of a line where no terminal says
_LOSSES_SHOWN = 10


def main(argv: Sequence[str]) -> int:
  """Makes the index of the data, and says what it found."""
  parser = arguments.Parser(
    "index",
    "Finds where every example is, and keeps that beside the data (or in --cache), so "
    "that training starts at once. What is there and not stale is not made again.",
  )
  arguments.add_source(parser)
  args = parser.parse_args(argv)
  began = time.monotonic()
  source = arguments.open_source(args)
  seconds = time.monotonic() - began
  paths = arguments.data_files(args.spec, args.format)
  losses = losses_of(source)

  table = Table.grid("", "", padding=(0, 3))
  table.add_row("examples", f"{len(source):,}")
  table.add_row("shards", "as TFDS has them" if paths is None else f"{len(paths):,}")
  lines = [f"{loss.shard}: {loss.detail}" for loss in losses[:_LOSSES_SHOWN]]
  if len(losses) > _LOSSES_SHOWN:
    lines.append(f"and {len(losses) - _LOSSES_SHOWN} more shards")
  table.add_row("losses", "\n".join(lines) or "none")
  table.add_row("index", _where(paths or (), args.cache))
  table.add_row("seconds", f"{seconds:.1f}")
  console = Console(markup=False, highlight=False, emoji=False)
  if not console.is_terminal:
    console.width = max(console.width, _WIDTH)
  console.print(table)
  return 0


def _where(paths: Sequence[str], cache: pathlib.Path | None) -> str:
  """Where the indices of these files lie, for people."""
  beside = [found for path in dict.fromkeys(paths) for found in _beside(path)]
  cached = _in_cache(paths, cache) if cache and cache.is_dir() else []
  lines = []
  if beside:
    lines.append(f"{_files(beside)} beside the data ({beside[0]})")
  if cached:
    lines.append(f"{_files(cached)} in {cache}")
  return "\n".join(lines) or "none is kept: the data has its own, or needs none"


def _beside(path: str) -> Iterator[str]:
  if files.is_remote(path):
    return
  folder, name = os.path.split(path)
  for index in (f"{path}.index", os.path.join(folder, f".{name}.index")):
    if os.path.exists(index):
      yield index


def _in_cache(paths: Sequence[str], cache: pathlib.Path) -> list[str]:
  """Files like NAME.DIGEST.index."""
  names = {os.path.basename(path) for path in paths}
  return [
    str(file)
    for file in sorted(cache.glob("*.index"))
    if file.stem.rpartition(".")[0].removeprefix(".") in names
  ]


def _files(paths: Sequence[str]) -> str:
  size = sum(os.path.getsize(path) for path in paths)
  return f"{len(paths):,} file{'s'[: len(paths) > 1]} of {size / 1e6:,.2f} MB"
