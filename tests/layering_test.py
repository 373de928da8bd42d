"""Imports point one way; see docs/architecture.md."""

import ast
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "rankclip_jax"

# Which rooms of the package each room may import, itself included.
ALLOWED = {
  "config": {"evals"},  # how held-out data are called
  "losses": {"losses"},
  "models": {"models"},
  "interop": {"interop", "models"},
  "data": {"data"},
  "evals": {"evals"},
  "probes": {"probes", "evals", "sharding"},
  "report": {"report", "evals"},
  "optim": set(),
  "sharding": set(),
  "accumulate": {"sharding"},
  "metrics": set(),
  "progress": set(),
  "environment": set(),
  "state": {"sharding", "losses", "models"},
  "checkpoint": {"config", "evals", "state", "together"},
  "plan": {"config", "data", "losses", "models", "optim", "sharding"},
  "step": {"accumulate", "optim", "plan", "state", "sharding", "losses", "models"},
  "start": {
    "checkpoint", "config", "interop", "losses", "models", "sharding", "state",
  },
  "inputs": set(),
  "inference": {"data", "inputs", "interop", "models", "sharding", "start"},
  "search": {
    "config", "data", "evals", "inference", "interop", "search", "start",
  },
  "attention": {
    "attention", "config", "data", "inference", "interop", "models", "search", "start",
  },
  "export": {"checkpoint", "config", "evals", "interop", "start"},
  "evaluate": {
    "checkpoint", "config", "data", "evals", "models", "plan", "sharding", "stopping",
    "together",
  },
  "feed": {"data", "wishes"},
  "together": {"stopping"},
  "wishes": set(),
  "watchdog": set(),
  "pending": {"metrics", "utilisation"},
  "utilisation": {"models"},
  "profiling": set(),
  "compiling": {"plan", "state", "step", "stopping"},
  "saving": {"checkpoint", "processes", "state", "stopping", "together"},
  "lock": set(),
  "status": {"lock"},
  "processes": {"config", "processes", "stopping", "together"},
  "loop": {
    "checkpoint", "compiling", "config", "data", "evaluate", "feed", "metrics", "models",
    "pending", "plan", "profiling", "progress", "saving", "state", "stopping", "together",
    "utilisation", "watchdog", "wishes",
  },
  "train": {
    "checkpoint", "config", "environment", "loop", "metrics", "plan", "start", "state",
    "together", "wandb_mirror", "watchdog",
  },
  "wandb_mirror": {"evals"},
  "stopping": set(),
  "suite": {
    "checkpoint", "config", "data", "evals", "inference", "interop", "lock", "metrics",
    "probes", "start", "stopping", "suite", "together",
  },
  "studies": {"config", "evals", "report", "stopping", "studies"},
  "launcher": {
    "attention", "checkpoint", "config", "evals", "evaluate", "export", "lock",
    "processes", "saving", "report", "search", "stopping", "suite", "together", "train",
  },
}  # fmt: skip
# Libraries that a room must do without.
FORBIDDEN = {
  "data": {"jax", "flax", "optax", "orbax"},
  "evals": {"jax", "flax", "optax", "orbax"},
  "report": {"jax", "flax", "optax", "orbax"},
  "lock": {"jax", "flax", "optax", "orbax"},
  "stopping": {"jax", "flax", "optax", "orbax"},
  "status": {"jax", "flax", "optax", "orbax"},
  "studies": {"jax", "flax", "optax", "orbax"},
  "losses": {"flax", "orbax", "ml_collections"},
  "probes": {"flax", "orbax", "ml_collections"},
  "models": {"optax", "orbax", "ml_collections"},
  "interop": {"optax", "orbax", "ml_collections", "torch", "transformers", "open_clip"},
}


def imports(path: pathlib.Path) -> set[str]:
  """Dotted names of everything a file imports, `from a import b` as `a.b`."""
  names = set()
  for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{path}: imports are absolute here"
      names |= {f"{node.module}.{alias.name}" for alias in node.names}
  return names


def room(path: pathlib.Path) -> str:
  return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


FILES = [p for p in sorted(PACKAGE.rglob("*.py")) if room(p) != "__init__"]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_only_what_its_room_allows(path):
  own = {n.split(".")[1] for n in imports(path) if n.startswith("rankclip_jax.")}
  libraries = {n.split(".")[0] for n in imports(path)}
  assert own <= ALLOWED[room(path)]
  assert not libraries & FORBIDDEN.get(room(path), set())


def test_only_checkpoint_knows_orbax():
  users = {room(p) for p in FILES if any(n.startswith("orbax") for n in imports(p))}
  assert users == {"checkpoint"}


def test_every_room_has_rules():
  assert {room(p) for p in FILES} == set(ALLOWED)
