"""RankCLIP against CLIP on the built-in data: several seeds of each, with their spread.

Runs `main.py` once for every objective and seed (finished runs are not done again) and
prints a table of every metric, as `docs/results.md` holds it:

    python benchmarks/openmoji_seeds.py --workdir=runs/seeds --seeds=3
"""

import argparse
import datetime
import pathlib
import platform
import subprocess
import sys
from collections.abc import Sequence

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from rankclip_jax.evals import results  # noqa: E402


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/seeds"))
  parser.add_argument("--objectives", default="clip,rankclip")
  parser.add_argument("--seeds", type=int, default=3)
  parser.add_argument("--only_table", action="store_true", help="run nothing")
  args = parser.parse_args()
  objectives = args.objectives.split(",")
  for seed in range(args.seeds):
    for objective in objectives:
      if not args.only_table:
        train(args.workdir, objective, seed)
  print(table(args.workdir, objectives, args.seeds))


def run_of(workdir: pathlib.Path, objective: str, seed: int) -> pathlib.Path:
  return workdir / f"{objective}-{seed}"


def train(workdir: pathlib.Path, objective: str, seed: int) -> None:
  """One run of the README's command, unless its report is there already."""
  run = run_of(workdir, objective, seed)
  if (run / "report" / "index.html").exists():
    return
  command = [
    sys.executable,
    str(ROOT / "main.py"),
    f"--config={ROOT}/configs/openmoji.py:{objective}",
    f"--workdir={run}",
    f"--config.seed={seed}",
  ]
  subprocess.run(command, check=True)


def table(workdir: pathlib.Path, objectives: Sequence[str], seeds: int) -> str:
  """Mean and sample standard deviation over seeds, in Markdown."""
  values: dict[str, dict[str, list[float]]] = {}
  for objective in objectives:
    for seed in range(seeds):
      for r in results.read_all(run_of(workdir, objective, seed) / "results"):
        for name, value in r["metrics"].items():
          row = values.setdefault(f"{r['dataset']} {r['task']} {name}", {})
          row.setdefault(objective, []).append(value)
  lines = [
    f"{seeds} seeds each, mean ± sample standard deviation; "
    f"{platform.machine()}, Python {platform.python_version()}, "
    f"{datetime.date.today().isoformat()}.",
    "",
    f"| metric | {' | '.join(objectives)} |",
    f"|---|{'---|' * len(objectives)}",
  ]
  for name, row in values.items():
    cells = []
    for objective in objectives:
      numbers = [v for v in row.get(objective, []) if v is not None]
      complete = len(numbers) == seeds
      spread = np.std(numbers, ddof=1) if len(numbers) > 1 else float("nan")
      cells.append(f"{np.mean(numbers):.4f} ± {spread:.4f}" if complete else "-")
    lines.append(f"| {name} | {' | '.join(cells)} |")
  return "\n".join(lines)


if __name__ == "__main__":
  main()
