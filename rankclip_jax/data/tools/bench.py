"""How fast the loader is, and where its time goes."""

import dataclasses
import os
import time
from collections.abc import Callable, Sequence

import numpy as np
from rich.console import Console
from rich.table import Table

from rankclip_jax.data import decoding, pipeline
from rankclip_jax.data.source import BadExample, Example, Source
from rankclip_jax.data.tokenizer import Tokenizer
from rankclip_jax.data.tools import arguments
from rankclip_jax.data.views import View

# Read at once for the breakdown, so that what is timed is in memory.
_BLOCK = 64


@dataclasses.dataclass(frozen=True)
class Cost:
  """Seconds of one thread for one example, by what is done.

  Attributes:
    read: getting the file's bytes and captions.
    decode: pixels of the size that the crop needs.
    augment: crop, resizing, mirroring.
    tokenize: cleaning and ids.
    batch: all else that a row costs: its place in the order, its draws, its copy.
  """

  read: float
  decode: float
  augment: float
  tokenize: float
  batch: float

  @property
  def bare(self) -> float:
    """Of a loop that only decodes and augments bytes that lie in memory."""
    return self.decode + self.augment

  @property
  def whole(self) -> float:
    """Of everything."""
    return self.read + self.bare + self.tokenize + self.batch


def cost(source: Source, view: View, tokenizer: Tokenizer, examples: int) -> Cost:
  """Times every part for `examples` of the source, one thread, one after the other."""
  order = np.random.default_rng(0).permutation(len(source))
  order = np.resize(order, max(examples, _BLOCK))
  spent: dict[str, float] = dict.fromkeys(("read", "view", "decode", "tokenize"), 0.0)
  count = 0
  for start in range(0, len(order), _BLOCK):
    found, spent_reading = _timed(lambda i=start: _good(source, order[i : i + _BLOCK]))
    spent["read"] += spent_reading
    count += len(found)
    for name, do in (
      ("decode", lambda e, r: _decode(view, e, r)),
      ("view", lambda e, r: view(e, r)),
      ("tokenize", lambda e, r: tokenizer([e.captions[0]])),
    ):
      rngs = [np.random.default_rng(i) for i in range(len(found))]
      pairs = list(zip(found, rngs, strict=True))
      spent[name] += _timed(lambda do=do, pairs=pairs: [do(*pair) for pair in pairs])[1]
  if not count:
    raise ValueError("None of the examples can be used; see `check`.")
  rows = _rate(source, view, tokenizer, examples=count, threads=0)
  part = {name: seconds / count for name, seconds in spent.items()}
  augment = max(part["view"] - part["decode"], 0.0)
  known = part["read"] + part["decode"] + augment + part["tokenize"]
  return Cost(
    part["read"], part["decode"], augment, part["tokenize"], max(1 / rows - known, 0.0)
  )


def rate(
  source: Source,
  view: View,
  tokenizer: Tokenizer,
  *,
  batch: int,
  seconds: float,
  threads: int,
  workers: int = 0,
) -> float:
  """Examples a second of the whole loader, as training uses it."""
  batches = _batches(source, view, tokenizer, batch, threads, workers)
  for _ in range(2):  # threads and processes are up, files are open
    next(batches)
  began, count = time.perf_counter(), 0
  while (now := time.perf_counter()) - began < seconds:
    count += len(next(batches)["image"])
  return count / (now - began)


def main(argv: Sequence[str]) -> int:
  """Prints both; see the module."""
  parser = arguments.Parser("bench", str(__doc__).splitlines()[0])
  arguments.add_source(parser)
  parser.add_argument("--image-size", type=int, default=224)
  parser.add_argument("--context-length", type=int, default=77)
  parser.add_argument("--crop-scale", type=float, nargs=2, help="area; the centre if not")
  parser.add_argument("--exact", action="store_true", help="Pillow's pixels")
  parser.add_argument("--batch", type=int, default=256, help="examples of this process")
  parser.add_argument("--seconds", type=float, default=10.0)
  parser.add_argument("--examples", type=int, default=1000, help="for the breakdown")
  parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
  parser.add_argument("--workers", type=int, default=0, help="processes")
  args = parser.parse_args(argv)
  source = arguments.open_source(args)
  batch = min(args.batch, len(source))
  scale = tuple(args.crop_scale) if args.crop_scale else None
  view = View(args.image_size, scale, fast=not args.exact)
  tokenizer = Tokenizer(args.context_length)
  parts = cost(source, view, tokenizer, args.examples)
  per_second = rate(
    source,
    view,
    tokenizer,
    batch=batch,
    seconds=args.seconds,
    threads=args.threads,
    workers=args.workers,
  )
  readers = args.threads * max(args.workers, 1)
  _show(parts, per_second, readers, min(readers, os.cpu_count() or 1))
  return 0


def _show(parts: Cost, per_second: float, readers: int, cores: int) -> None:
  table = Table("part", "µs an example", "share", title="One thread")
  for field in dataclasses.fields(parts):
    spent = getattr(parts, field.name)
    table.add_row(field.name, f"{1e6 * spent:.0f}", f"{spent / parts.whole:.0%}")
  table.add_row("together", f"{1e6 * parts.whole:.0f}", "")
  console = Console(soft_wrap=True)
  console.print(table)
  bare = cores / parts.bare
  console.print(
    f"Loader: {per_second:,.0f} examples/s with {readers} readers on {cores} cores, "
    f"{per_second / bare:.0%} of {bare:,.0f}, what they could decode and augment alone.",
    highlight=False,
  )


def _batches(source, view, tokenizer, batch, threads, workers=0):
  return pipeline.train_batches(
    source,
    image_size=view.size,
    tokenizer=tokenizer,
    augment_scale=view.crop_scale,
    flip=view.flip,
    fast=view.fast,
    global_batch=batch,
    num_steps=2**31,
    seed=0,
    on_bad=_ignore,
    num_threads=threads,
    num_workers=workers,
    prefetch=2,
  )


def _ignore(bad: BadExample) -> None:
  """`check` counts them."""


def _rate(source, view, tokenizer, *, examples: int, threads: int) -> float:
  """Examples a second for at least so many of them."""
  batch = min(_BLOCK, len(source))
  batches = _batches(source, view, tokenizer, batch, threads)
  next(batches)
  steps = -(-examples // batch)
  _, seconds = _timed(lambda: [next(batches) for _ in range(steps)])
  return steps * batch / seconds


def _good(source: Source, indices: np.ndarray) -> list[Example]:
  found = []
  for index in indices:
    try:
      example = source[int(index)]
      decoding.size_of(example)
    except BadExample:
      continue
    found.append(example)
  return found


def _decode(view: View, example: Example, rng: np.random.Generator) -> None:
  if view.fast and isinstance(example.image, bytes):
    view.decoded(example, rng)
  else:
    decoding.exact(example)


def _timed(do: Callable) -> tuple[list, float]:
  began = time.perf_counter()
  return do(), time.perf_counter() - began
