"""Where a run ran: versions, devices, commit."""

import importlib.metadata
import json
import pathlib
import platform
import subprocess
from typing import Any

import jax

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def describe() -> dict[str, object]:
  """Flat facts about this process, its devices and its code."""
  devices = jax.devices()
  return {
    "python": platform.python_version(),
    **{name: importlib.metadata.version(name) for name in _PACKAGES},
    "platform": devices[0].platform,
    "device_kind": devices[0].device_kind,
    "devices": len(devices),
    "processes": jax.process_count(),
    "host": f"{platform.system()} {platform.machine()}",
    "commit": _commit(),
  }


def noted_config(workdir: pathlib.Path) -> dict[str, Any] | None:
  """What `note` wrote of the config of a run, if it began and can be read."""
  try:
    noted = json.loads((workdir / "config.json").read_text(encoding="utf-8"))
  except (OSError, ValueError):
    return None
  return noted if isinstance(noted, dict) else None


def note(workdir: pathlib.Path, config: str, num_steps: int, *, resuming: bool) -> None:
  """Writes `config.json` and `environment.json`, once a run: resuming keeps them."""
  facts = {**describe(), "plan": {"num_steps": num_steps}}
  environment = json.dumps(facts, indent=2) + "\n"
  for name, text in (("config.json", config), ("environment.json", environment)):
    path = workdir / name
    if not (resuming and path.exists()):
      temporary = path.with_suffix(".tmp")
      temporary.write_text(text, encoding="utf-8")
      temporary.replace(path)


def _commit() -> str | None:
  """The git commit of this code with "+" if files differ from it; None without git."""
  git = ["git", "-C", str(pathlib.Path(__file__).parent)]
  try:
    ask = lambda *words: subprocess.run(
      [*git, *words], capture_output=True, text=True, check=True, timeout=10
    ).stdout.strip()
    return ask("rev-parse", "--short=12", "HEAD") + (
      "+" if ask("status", "--porcelain", "--untracked-files=no") else ""
    )
  except (OSError, subprocess.SubprocessError):
    return None
