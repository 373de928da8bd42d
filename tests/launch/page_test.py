"""docs/launch.md shows what its commands print; run as a program, this file writes it."""

import os
import pathlib
import re
import subprocess

ROOT = pathlib.Path(__file__).parents[2]
PAGE = ROOT / "docs" / "launch.md"
BLOCK = re.compile(r"```console\n(.*?)```\n", re.DOTALL)


def commands(block: str) -> list[str]:
  """Lines that begin with "$ ", with what a backslash continues."""
  return re.findall(r"^\$ ((?:.*\\\n)*.*\n)", block, re.MULTILINE)


def rewritten(page: str, environment: dict[str, str]) -> str:
  """The page with the output of every command as it is now; a block is one shell."""

  def block(match: re.Match) -> str:
    shown, script = "", ""
    for command in commands(match[1]):
      # What earlier commands of the block set is needed; their output is shown already.
      ran = subprocess.run(
        ["bash", "-c", f"{{ {script}:; }} >/dev/null\n{command}"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
      )
      assert ran.returncode == 0, ran.stderr
      script += command
      shown += f"$ {command}{ran.stdout}"
    return f"```console\n{shown}```\n"

  return BLOCK.sub(block, page)


def test_the_page_shows_what_commands_print(shell):
  page = PAGE.read_text(encoding="utf-8")
  assert rewritten(page, shell.environment()) == page
  assert shell.calls() == []
  every = [c for block in BLOCK.findall(page) for c in commands(block)]
  assert len(every) >= 10
  assert all("--dry-run" in c or c.startswith("export ") for c in every)


def test_the_page_names_every_script_and_action(shell):
  page = PAGE.read_text(encoding="utf-8")
  for name in ("tpu_vm.sh", "gke.sh", "slurm.sh", "gpu_node.sh"):
    script = (ROOT / "launch" / name).read_text(encoding="utf-8")
    # The actions are those of the last `case`.
    arms = re.findall(
      r"^  ([a-z][\w |]*)\)", script[script.rindex("case $action") :], re.M
    )
    assert len(arms) >= 3
    for action in {word for arm in arms for word in arm.split(" | ")}:
      assert re.search(rf"\b{action}\b", page), f"{name} {action}"


if __name__ == "__main__":
  text = rewritten(PAGE.read_text(encoding="utf-8"), dict(os.environ))
  PAGE.write_text(text, encoding="utf-8")
