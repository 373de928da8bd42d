"""Many runs for one figure: `python -m rankclip_jax.studies COMMAND --study=... `."""

import argparse
import pathlib
import shlex
import sys
from collections.abc import Sequence

from rich.console import Console

from rankclip_jax.studies import disk, figure, runner, study, table
from rankclip_jax.studies.study import Run, Study

_COMMANDS = {
  "run": "runs here what is not done yet, one run after the other",
  "print": "prints one shell command a run that is not done, for a scheduler",
  "status": "says of every run: done, running, failed, interrupted or missing",
  "plot": "draws the figure and writes the table, from the results on disk",
}
_INTERRUPTED = 130  # what shells make of Ctrl-C


def main(argv: Sequence[str]) -> int:
  """Runs a command; returns its exit code, 1 after an error or if runs are not done."""
  args = _parser().parse_args(argv)
  try:
    chosen = study.load(args.study)
    seeds = chosen.seeds if args.seeds is None else args.seeds
    settings = dict(_setting(text) for text in args.set)
    runs = study.expand(chosen, args.workdir, seeds=seeds, settings=settings)
    if args.command == "run":
      return int(not runner.run(chosen, runs, _console()))
    if args.command == "print":
      return _print(chosen, runs)
    if args.command == "status":
      return _status(chosen, runs)
    return _plot(chosen, runs, args.output or args.workdir, partial=args.partial)
  except (ValueError, OSError) as error:
    print(f"Error: {error}", file=sys.stderr)
    return 1
  except KeyboardInterrupt:
    print("Interrupted; the same command goes on.", file=sys.stderr)
    return _INTERRUPTED


def _parser() -> argparse.ArgumentParser:
  lines = "\n".join(f"  {name:<8}{what}" for name, what in _COMMANDS.items())
  parser = argparse.ArgumentParser(
    "python -m rankclip_jax.studies",
    description="Many runs for one figure.",
    epilog=f"commands:\n{lines}\n",
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("command", choices=_COMMANDS, metavar="COMMAND")
  parser.add_argument(
    "--study", required=True, metavar="FILE", help="of configs/studies/, or your own"
  )
  parser.add_argument(
    "--workdir", required=True, type=pathlib.Path, help="a folder of it is each run's"
  )
  parser.add_argument(
    "--seeds", type=int, metavar="N", help="of each variant (default: the study's)"
  )
  parser.add_argument(
    "--set",
    nargs="+",
    action="extend",
    default=[],
    metavar="FIELD=VALUE",
    help="fields of the config for all runs; give them to every command alike",
  )
  parser.add_argument(
    "--output", type=pathlib.Path, help="of plot (default: the workdir)"
  )
  parser.add_argument(
    "--partial", action="store_true", help="plot what is done, and say what is not"
  )
  return parser


def _setting(text: str) -> tuple[str, str]:
  name, equals, value = text.partition("=")
  if not equals:
    raise ValueError(f"--set takes FIELD=VALUE, as in optim.epochs=6, got {text!r}.")
  return name.removeprefix("config."), value


def _print(chosen: Study, runs: Sequence[Run]) -> int:
  """A line for each run that is neither done nor running."""
  for run in runs:
    if disk.status(run, chosen).state not in ("done", "running"):
      commands = [shlex.join(["python", *words]) for words in run.commands()]
      print(" && ".join(commands))
  return 0


def _status(chosen: Study, runs: Sequence[Run]) -> int:
  found = {run.name: disk.status(run, chosen) for run in runs}
  width = max(map(len, found))
  for name, status in found.items():
    print(f"{name:<{width}}  {status.state:<11}  {status.detail}".rstrip())
  done = sum(status.state == "done" for status in found.values())
  print(f"{done} of {len(runs)} runs are done.")
  return int(done < len(runs))


def _plot(
  chosen: Study, runs: Sequence[Run], output: pathlib.Path, *, partial: bool
) -> int:
  found = table.read(chosen, runs, partial=partial)
  output.mkdir(parents=True, exist_ok=True)
  picture, text = output / f"{chosen.name}.png", output / f"{chosen.name}.md"
  picture.write_bytes(figure.draw(found))
  text.write_text(table.markdown(found), encoding="utf-8")
  print(f"{table.sentence(found)}: {picture}, {text}")
  return 0


def _console() -> Console:
  return Console(stderr=True, soft_wrap=True, markup=False, highlight=False)


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
