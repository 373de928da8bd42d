"""Scripts of launch/ run with stand-ins for every program that they would call."""

import dataclasses
import os
import pathlib
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[2]

# Writes its name, arguments and standard input, and does as the environment says.
_STAND_IN = """#!/bin/bash
call=("${0##*/}" "$@")
[ "${0##*/}" != kubectl ] || call+=("$(cat)")
# At once, as several may write at a time.
printf '%s\\0' "${call[@]}" $'\\036' >> "$CALLS"
case "${0##*/} $*" in
  *describe*) echo "$STATE" ;;
  sbatch*) echo "123;cluster" ;;
  "python "*) [ -z "$PYTHON" ] || eval "$PYTHON" ;;
  srun*) exit "${SRUN:-0}" ;;
esac
"""
_PROGRAMS = (
  "docker", "gcloud", "kubectl", "python", "sbatch", "scontrol", "srun", "sudo", "xpk",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Shell:
  """Runs commands in the checkout; `calls` of the stand-ins lie in a file."""

  directory: pathlib.Path

  def run(self, command: str | list[str], **environment: str):
    """A shell's line, or a script with its arguments; the result is never an error."""
    line = ["bash", "-c", command] if isinstance(command, str) else command
    return subprocess.run(
      line, cwd=ROOT, env=self.environment(**environment), capture_output=True, text=True
    )

  def environment(self, **more: str) -> dict[str, str]:
    path = f"{self.directory}:{os.environ['PATH']}"
    home = str(self.directory)
    calls = str(self.directory / "calls")
    return {"PATH": path, "HOME": home, "CALLS": calls, "STATE": "ACTIVE", **more}

  def calls(self) -> list[list[str]]:
    """What the stand-ins were called with since the last time."""
    path = self.directory / "calls"
    if not path.exists():
      return []
    text = path.read_text(encoding="utf-8")
    path.unlink()
    return [call.split("\0") for call in text.split("\0\036\0") if call]


@pytest.fixture
def shell(tmp_path):
  for name in _PROGRAMS:
    (tmp_path / name).write_text(_STAND_IN, encoding="utf-8")
    (tmp_path / name).chmod(0o755)
  return Shell(tmp_path)
