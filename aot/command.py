"""The command line of `aot.loss` and of `aot.step`."""

import argparse
import json
from collections.abc import Callable, Sequence
from typing import TypeVar

Case = TypeVar("Case")


def answer(
  about: str | None,
  cases: Sequence[Case],
  by_hand: Sequence[Case],
  facts: Callable[[Case], dict],
) -> None:
  """Prints the facts of the cases that `--cases` names, by default of `cases`.

  One JSON object a line, as soon as it is known.
  """
  parser = argparse.ArgumentParser(description=about)
  named = {str(case): case for case in (*cases, *by_hand)}
  default = list(map(str, cases))
  parser.add_argument("--cases", nargs="*", default=default, choices=named)
  for name in parser.parse_args().cases:
    print(json.dumps(facts(named[name])), flush=True)
