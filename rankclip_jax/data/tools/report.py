"""The numbers of `check` as tables for people."""

from collections.abc import Callable, Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

_WIDTH = 160  # letters of a line where no terminal says
_SHARDS = 5
_LOSSES = 5
_LETTERS = 60  # of a caption
_QUANTILES = {
  "least": "min",
  "1 %": "1%",
  "5 %": "5%",
  "middle": "50%",
  "95 %": "95%",
  "99 %": "99%",
  "most": "max",
}


def show(numbers: Mapping[str, Any], last: str) -> None:
  """Prints everything to standard output, the verdict at the end."""
  console = Console(markup=False, highlight=False, emoji=False)
  if not console.is_terminal:
    console.width = max(console.width, _WIDTH)
  console.print()
  console.print(_counts(numbers))
  pictures, captions = numbers["pictures"], numbers["captions"]
  if pictures["count"]:
    console.print()
    console.print(_sizes(pictures, captions))
    console.print()
    console.print(_repeats(pictures, captions))
  console.print()
  console.print(_verdict(numbers), soft_wrap=True)
  console.print(last, soft_wrap=True)


def _counts(numbers: Mapping[str, Any]) -> Table:
  table = _grid()
  table.add_row("data", numbers["spec"])
  shards = f"{numbers['shards']:,} shard{'s'[: numbers['shards'] != 1]}"
  table.add_row("examples", f"{numbers['examples']:,} in {shards}")
  read = numbers["read"]
  whole = read == numbers["examples"]
  table.add_row(
    "read", f"{read:,}: all" if whole else f"{read:,}, seed {numbers['seed']}"
  )
  losses = numbers["losses"]
  for i, loss in enumerate(losses[:_LOSSES]):
    table.add_row("" if i else "lost", f"{loss['shard']}: {loss['detail']}")
  if len(losses) > _LOSSES:
    table.add_row("", f"and in {len(losses) - _LOSSES:,} more shards")
  if not losses:
    table.add_row("lost", "nothing that is known of")
  bad = numbers["bad"]
  table.add_row("bad", _part(bad["count"], bad["fraction"]))
  for reason, count in bad["by_reason"].items():
    table.add_row("", f"{count:,} {reason}")
  worst = list(bad["by_shard"].items())[:_SHARDS]
  for i, (shard, of) in enumerate(worst):
    text = f"{of['bad']:,} of {of['read']:,} in {shard or '(no file)'}"
    table.add_row("" if i else "worst shards", text)
  return table


def _sizes(pictures: Mapping[str, Any], captions: Mapping[str, Any]) -> Table:
  table = Table("", box=box.SIMPLE_HEAD, pad_edge=False)
  for name in _QUANTILES:
    table.add_column(name, justify="right")
  whole: Callable[[float], str] = lambda x: f"{x:,.0f}"
  kilo: Callable[[float], str] = lambda x: f"{x / 1e3:,.1f}"
  milli: Callable[[float], str] = lambda x: f"{1e3 * x:,.2f}"
  for name, spread, form in (
    ("width, pixels", pictures["width"], whole),
    ("height, pixels", pictures["height"], whole),
    ("short side, pixels", pictures["short_side"], whole),
    ("picture, kB", pictures["bytes"], kilo),
    ("caption, tokens", captions["tokens"], whole),
    ("captions an example", captions["per_example"], whole),
    ("reading, ms", pictures["read_seconds"], milli),
    ("decoding, ms", pictures["decode_seconds"], milli),
  ):
    table.add_row(name, *(form(spread[key]) for key in _QUANTILES.values()))
  return table


def _repeats(pictures: Mapping[str, Any], captions: Mapping[str, Any]) -> Table:
  table = _grid()
  table.add_row("formats", _shares(pictures["formats"], pictures["count"]))
  table.add_row("colours", _shares(pictures["modes"], pictures["count"]))
  length = captions["context_length"]
  for name, what, of in (
    ("cut captions", f"have more than {length} tokens", captions["truncated"]),
    ("empty captions", "have none", captions["empty"]),
    ("same caption", "are another example's, exactly", captions["duplicates"]),
    ("same picture", "are another example's, byte for byte", pictures["duplicates"]),
  ):
    table.add_row(name, f"{_part(of['count'], of['fraction'])} {what}")
  for i, frequent in enumerate(captions["most_frequent"]):
    text = " ".join(frequent["caption"].split())
    text = text[:_LETTERS] + "…" if len(text) > _LETTERS else text
    table.add_row("" if i else "most frequent", f"{frequent['count']:,} x {text}")
  return table


def _verdict(numbers: Mapping[str, Any]) -> str:
  unusable, most = numbers["unusable_fraction"], numbers["max_bad_fraction"]
  text = (
    f"{unusable:.2%} cannot be used, and --max-bad-fraction={most:g} allows {most:.2%}"
  )
  if unusable > most:
    return f"Too bad: {text}; bad_examples.jsonl names each with the reason."
  return f"Good: {text}."


def _part(count: int, fraction: float) -> str:
  return f"{count:,} ({fraction:.2%})"


def _shares(counts: Mapping[str, int], of: int) -> str:
  return ", ".join(f"{name} {count / of:.1%}" for name, count in counts.items())


def _grid() -> Table:
  table = Table.grid("", "", padding=(0, 3))
  table.columns[1].overflow = "fold"
  return table
