"""`python -m rankclip_jax.data reshard`: small pictures, in files that are read fast.

Each shard of the output is made of one range of the source, all or nothing, so that any
number of processes share the work, and a run that was stopped goes on where it was.
"""

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
import re
import time
from collections.abc import Iterator, Sequence
from typing import Any, get_args

from rankclip_jax.data import files
from rankclip_jax.data.source import Source, losses_of
from rankclip_jax.data.tools import arguments, shards, threads, workers
from rankclip_jax.data.tools.shards import Plan

_FORMAT = 1  # of the manifest
_THREADS = 16  # that wait for files elsewhere
_MANIFEST, _BAD, _LOCK = "manifest.json", "bad_examples.jsonl", ".lock"
_TEMPORARY = re.compile(r"(\d{5,}(\.|_stats\.)\w+|manifest\.json|\w+\.jsonl)\.\d+\.tmp")


def main(argv: Sequence[str]) -> int:
  """Writes all shards that are not complete yet."""
  args = _parser().parse_args(argv)
  for name, low, high in (
    ("size", 1, 65_500), ("quality", 1, 100), ("per_shard", 1, 10**9),
    ("workers", 1, 1024),
  ):  # fmt: skip
    if not low <= (value := getattr(args, name)) <= high:
      flag = name.replace("_", "-")
      raise ValueError(f"--{flag} must be from {low} to {high}, got {value}.")
  if files.is_remote(args.output):
    raise ValueError(f"--output must be a folder of this machine, got {args.output}.")
  output = pathlib.Path(args.output)
  began = time.monotonic()
  source = arguments.open_source(args)
  plan = Plan(output, args.to, args.size, args.quality, args.per_shard, len(source))
  with _alone(output):
    _agree(output, _manifest(args, source))
    workers.run(source, plan, args.workers)
    print(_finished(source, plan, time.monotonic() - began))
  return 0


def _parser() -> argparse.ArgumentParser:
  parser = arguments.Parser(
    "reshard",
    "Writes the examples in their order into new files: pictures with a short side of "
    "at most --size pixels, as JPEG, with all of their captions. Bad examples are left "
    f"out and listed in DIR/{_BAD}. The same command goes on after it was stopped.",
  )
  arguments.add_source(parser)
  parser.add_argument("--output", required=True, metavar="DIR", help="a new folder")
  parser.add_argument(
    "--to",
    choices=get_args(shards.Kind),
    default="array_record",
    help="of files; tar is img2dataset's layout (default: %(default)s)",
  )
  parser.add_argument(
    "--size",
    type=int,
    default=256,
    metavar="N",
    help="pixels of the short side; none is enlarged (default: %(default)s)",
  )
  parser.add_argument(
    "--quality",
    type=int,
    default=90,
    metavar="N",
    help="of JPEGs; those that are small enough stay as they are (default: %(default)s)",
  )
  parser.add_argument(
    "--per-shard",
    type=int,
    default=10_000,
    metavar="N",
    help="examples of a shard, bad ones included (default: %(default)s)",
  )
  parser.add_argument(
    "--workers",
    type=int,
    default=threads.cores(),
    metavar="N",
    help="processes; 1 is this one alone (default: %(default)s)",
  )
  return parser


@contextlib.contextmanager
def _alone(output: pathlib.Path) -> Iterator[None]:
  """Makes the folder, keeps other processes out, and takes away what a killed one left.

  Raises:
    ValueError: if another process is writing there.
  """
  output.mkdir(parents=True, exist_ok=True)
  with (output / _LOCK).open("w") as lock:  # The system forgets it with the process.
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise ValueError(f"Another process is writing to {output}; wait for it.") from error
    for path in output.iterdir():
      if _TEMPORARY.fullmatch(path.name):
        path.unlink()
    yield


def _manifest(args: argparse.Namespace, source: Source) -> dict[str, Any]:
  """What the shards depend on."""
  paths = arguments.data_files(args.spec, args.format)
  digest = hashlib.sha256()
  versions = threads.in_order(files.version, paths or (), _THREADS)
  for found in zip(paths or (), versions, strict=True):
    digest.update(repr(found).encode(errors="surrogateescape"))
  return {
    "format": _FORMAT,
    "spec": args.spec,
    "source": {
      "format": args.format,
      "caption_key": args.caption_key,
      "image_key": args.image_key,
      "tfds_dir": args.tfds_dir,
      "examples": len(source),
      "files": None if paths is None else len(paths),
      "version": digest.hexdigest()[:16],
    },
    "to": args.to,
    "size": args.size,
    "quality": args.quality,
    "per_shard": args.per_shard,
  }


def _agree(output: pathlib.Path, wanted: dict[str, Any]) -> None:
  """Writes the manifest, or compares it with the one that is there.

  Raises:
    ValueError: if it is another one, or there are files without any.
  """
  path = output / _MANIFEST
  remedy = "choose another --output, or delete this one"
  if not path.exists():
    others = [p.name for p in output.iterdir() if p.name != _LOCK]
    if others:
      raise ValueError(
        f"{output} has files and is not of reshard, such as {sorted(others)[0]}; choose "
        "a new or an empty --output."
      )
    _replace(path, json.dumps(wanted, indent=2) + "\n")
    return
  try:
    found = _flat(json.loads(path.read_text()))
  except (ValueError, AttributeError) as error:
    raise ValueError(f"{path} is damaged ({error}); {remedy}.") from error
  now = _flat(wanted)
  if found != now:
    names = [n for n in {**found, **now} if found.get(n) != now.get(n)]
    listed = "; ".join(
      f"{name} was {found.get(name)!r}, is now {now.get(name)!r}" for name in names
    )
    raise ValueError(
      f"{output} was begun with other data or options: {listed}. Run it as before, "
      f"{remedy}."
    )


def _flat(manifest: dict[str, Any]) -> dict[str, Any]:
  source = {f"source {name}": value for name, value in manifest["source"].items()}
  return {name: value for name, value in manifest.items() if name != "source"} | source


def _finished(source: Source, plan: Plan, seconds: float) -> str:
  """Lists all bad examples; returns the line that says what was written.

  Raises:
    ValueError: if there is nothing but bad examples.
  """
  losses = [
    {
      "shard": x.shard,
      "key": "",
      "reason": x.reason,
      "detail": x.detail,
      "count": x.count,
    }
    for x in losses_of(source)
  ]
  noted = [plan.stats(shard) for shard in range(len(plan))]
  stats = [one for one in noted if one is not None]
  bad = [line for one in stats for line in one["bad_examples"]]
  lines = [json.dumps(line, ensure_ascii=True) + "\n" for line in [*losses, *bad]]
  _replace(plan.output / _BAD, "".join(lines))
  good, size = (sum(one[name] for one in stats) for name in ("successes", "bytes"))
  if not good:
    raise ValueError(
      f"None of {plan.examples:,} examples can be used; {plan.output / _BAD} says why."
    )
  written = sum(one["successes"] > 0 for one in stats)
  left_out = f"{len(bad):,} bad ones left out" if bad else "none left out"
  lost = f", {len(losses)} damaged shards of the source" if losses else ""
  more = f", listed in {plan.output / _BAD}" if bad or losses else ""
  return (
    f"Wrote {good:,} of {plan.examples:,} examples ({left_out}{lost}{more}) to "
    f"{plan.output}/*.{plan.kind}: {written:,} files, {size / 1e6:,.1f} MB, in "
    f"{seconds:,.1f} s."
  )


def _replace(path: pathlib.Path, text: str) -> None:
  temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
  temporary.write_text(text)
  os.replace(temporary, path)
