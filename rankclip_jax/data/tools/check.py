"""`python -m rankclip_jax.data check`: what is in the data, and how much of it is bad."""

import argparse
import json
import pathlib
import time
from collections.abc import Iterator, Sequence
from typing import Any, TextIO

import numpy as np

from rankclip_jax.data import decoding
from rankclip_jax.data.bad_examples import count_lost
from rankclip_jax.data.source import BadExample, Source, losses_of
from rankclip_jax.data.tools import arguments, gallery, histogram, report, survey, threads
from rankclip_jax.data.tools.progress import Progress

_PAIRS = 16


def main(argv: Sequence[str]) -> int:
  """Reads a sample and shows it; 1 if too much of it is bad."""
  args = _parser().parse_args(argv)
  for name in ("examples", "threads"):
    if getattr(args, name) < 1:
      raise ValueError(f"--{name} must be 1 or more, got {getattr(args, name)}.")
  began = time.monotonic()
  source = arguments.open_source(args)
  opened = time.monotonic()
  args.output.mkdir(parents=True, exist_ok=True)
  count = len(source) if args.all else args.examples
  indices = survey.sample(source, count, args.seed)
  with (args.output / "bad_examples.jsonl").open("w", encoding="utf-8") as file:
    found = _read(source, indices, args.threads, file)
  numbers = _numbers(args, source, found)
  numbers["seconds"] = {"open": opened - began, "read": time.monotonic() - opened}
  (args.output / "check.json").write_text(json.dumps(numbers, indent=2) + "\n")
  written = ["check.json", "bad_examples.jsonl"]
  if found.read > found.bad:
    _draw(args, source, indices, found)
    written += ["examples.png", "caption_lengths.png"]
  report.show(numbers, f"{', '.join(written)} are in {args.output}.")
  return int(numbers["unusable_fraction"] > args.max_bad_fraction)


def _parser() -> argparse.ArgumentParser:
  parser = arguments.Parser(
    "check",
    "Reads a random sample, decodes every picture, and shows what is bad, how large "
    "pictures and how long captions are, and what repeats. Ends with 1 if more than "
    "--max-bad-fraction cannot be used.",
  )
  arguments.add_source(parser)
  parser.add_argument(
    "--examples",
    type=int,
    default=10_000,
    metavar="N",
    help="to read (default: %(default)s)",
  )
  parser.add_argument("--all", action="store_true", help="read every example")
  parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the sample")
  parser.add_argument(
    "--context-length",
    type=int,
    default=77,
    metavar="N",
    help="tokens that the model reads of a caption (default: %(default)s)",
  )
  parser.add_argument(
    "--max-bad-fraction",
    type=float,
    default=0.01,
    metavar="SHARE",
    help="what may be bad or lost (default: %(default)s)",
  )
  parser.add_argument(
    "--threads",
    type=int,
    default=threads.default_count(),
    metavar="N",
    help="that read and decode (default: %(default)s)",
  )
  parser.add_argument(
    "--output",
    type=pathlib.Path,
    default=pathlib.Path("data_check"),
    metavar="DIR",
    help="for pictures, numbers and the list of bad examples (default: ./%(default)s)",
  )
  return parser


def _read(
  source: Source, indices: np.ndarray, num_threads: int, bad_examples: TextIO
) -> survey.Survey:
  """Looks at examples; a line is written for each that is bad."""
  found = survey.Survey()
  with Progress("checking", len(indices)) as progress:
    progress.update(0)
    for index, shard, facts in survey.looks(source, indices, num_threads):
      found.add(index, shard, facts)
      if isinstance(facts, BadExample):
        line = {
          "index": index,
          "shard": facts.shard,
          "key": facts.key,
          "reason": facts.reason,
          "detail": str(facts),
        }
        bad_examples.write(json.dumps(line) + "\n")
      progress.update(found.read)
  return found


def _numbers(
  args: argparse.Namespace, source: Source, found: survey.Survey
) -> dict[str, Any]:
  """All that is known, in JSON's types."""
  paths = arguments.data_files(args.spec, args.format)
  losses = losses_of(source)
  lost = count_lost(source)
  bad = found.bad_numbers()
  # Of all that there should be, as far as a sample and the shards' own counts tell.
  share = len(source) / (len(source) + lost)
  return {
    "spec": args.spec,
    "examples": len(source),
    "shards": found.shards() if paths is None else len(paths),
    "read": found.read,
    "seed": args.seed,
    "losses": [
      {"shard": x.shard, "reason": x.reason, "detail": x.detail, "count": x.count}
      for x in losses
    ],
    "bad": bad,
    "unusable_fraction": 1 - share + share * bad["fraction"],
    "max_bad_fraction": args.max_bad_fraction,
    "pictures": found.picture_numbers(),
    "captions": found.caption_numbers(
      args.context_length, lambda *which: survey.caption_with(source, *which)
    ),
  }


def _draw(
  args: argparse.Namespace, source: Source, indices: np.ndarray, found: survey.Survey
) -> None:
  lengths = histogram.draw(found.lengths(), args.context_length)
  (args.output / "caption_lengths.png").write_bytes(lengths)
  pairs = list(_pairs(source, indices, args.seed))
  note = f"{len(pairs)} of {len(source):,} examples, seed {args.seed}"
  gallery.draw(args.spec, note, pairs).save(args.output / "examples.png")


def _pairs(source: Source, indices: np.ndarray, seed: int) -> Iterator[gallery.Pair]:
  """Good examples of the sample, the same every time."""
  left = _PAIRS
  for index in np.random.default_rng(seed).permutation(indices):
    try:
      example = source[int(index)]
      image = decoding.exact(example)
    except BadExample:
      continue
    if not any(caption.strip() for caption in example.captions):
      continue
    height, width, _ = image.shape
    yield gallery.Pair(image, example.captions, f"{width} x {height} · {example.key}")
    left -= 1
    if not left:
      return
