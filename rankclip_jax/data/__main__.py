"""Tools for training data: `python -m rankclip_jax.data COMMAND SPEC`."""

import argparse
import importlib
import io
import sys
from collections.abc import Sequence

_TOOLS = {
  "check": "reads a sample and shows what is in it, good and bad, with pictures",
  "index": "finds the examples of tars and tables once, so that training starts at once",
  "reshard": "writes small pictures as ArrayRecord or tars, in parallel, resumable",
  "bench": "times the loader alone, and every part of it",
  "prepare": "says which TFDS data sets are ready, and what the others need",
}
# Where it is not the tool of the same name.
_MODULES = {"prepare": "rankclip_jax.data.prepare"}
_EPILOG = """\
commands:
{}

SPEC is paths or patterns ({{00000..00331}}.tar, data/*.parquet), several of them between
'::', or tfds:NAME@SPLIT. COMMAND --help has the options of each.
"""
_INTERRUPTED = 130  # what shells make of Ctrl-C


def main(argv: Sequence[str]) -> int:
  """Runs a tool; returns its exit code, 1 after an error of one line."""
  for stream in (sys.stdout, sys.stderr):  # Names of files may be no text.
    if isinstance(stream, io.TextIOWrapper):
      stream.reconfigure(errors="backslashreplace")
  parser = argparse.ArgumentParser(
    "python -m rankclip_jax.data",
    usage="%(prog)s COMMAND SPEC [options]",
    description="Tools for training data.",
    epilog=_EPILOG.format("\n".join(f"  {n:<9}{what}" for n, what in _TOOLS.items())),
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  command = argv[0] if argv else "--help"
  if command in ("-h", "--help"):
    parser.print_help()
    return int(not argv)
  # Each imports libraries that take seconds, so only the one that is asked for is.
  name = _MODULES.get(command, f"rankclip_jax.data.tools.{command}")
  try:
    if command not in _TOOLS:
      raise ValueError(f"expected one of {', '.join(_TOOLS)}, got {command!r}.")
    return importlib.import_module(name).main(argv[1:])
  except (ValueError, OSError, ImportError) as error:
    print(f"Error: {error}", file=sys.stderr)
    return 1
  except KeyboardInterrupt as stopped:
    print(str(stopped) or "Interrupted.", file=sys.stderr)
    return _INTERRUPTED


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
