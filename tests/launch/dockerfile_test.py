import importlib.metadata
import os
import pathlib
import re
import shlex
import tomllib

ROOT = pathlib.Path(__file__).parents[2]
FILE = ROOT / "launch" / "Dockerfile"


def instructions() -> list[tuple[str, str]]:
  """Name and arguments of every instruction."""
  text = re.sub(r"^\s*#.*\n", "", FILE.read_text(encoding="utf-8"), flags=re.MULTILINE)
  lines = text.replace("\\\n", " ").splitlines()
  return [tuple(line.split(maxsplit=1)) for line in lines if line]


def sources() -> list[str]:
  return [
    source
    for name, rest in instructions()
    if name == "COPY"
    for source in shlex.split(rest)[:-1]
  ]


def test_what_is_copied_is_there_and_sent_to_docker():
  assert {"main.py", "configs", "rankclip_jax", "launch"} <= set(sources())
  # Docker takes this file before .dockerignore, by the Dockerfile's name.
  sent = pathlib.Path(f"{FILE}.dockerignore").read_text(encoding="utf-8").splitlines()
  for source in sources():
    assert (ROOT / source).exists()
    assert f"!{source}" in sent


def test_python_is_one_that_the_project_supports():
  image, version = re.fullmatch(
    r"(\w+):(\d+\.\d+)-slim-\w+", dict(instructions())["FROM"]
  ).groups()
  wanted = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
  least = wanted["project"]["requires-python"].removeprefix(">=")
  assert image == "python"
  assert tuple(map(int, version.split("."))) >= tuple(map(int, least.split(".")))


def test_versions_come_from_requirements_alone():
  (run,) = [rest for name, rest in instructions() if name == "RUN"]
  (install,) = re.findall(r"pip install (.*)", run)
  words = [w for w in install.split() if not w.startswith("--")]
  assert words == ["-r", "requirements.txt", '${extra:+"$extra"}']
  # An extra of the jax that is pinned brings its plugins in the versions that go with it.
  extras = re.findall(r"extra='jax\[(\w+)\]'", run)
  assert len(extras) == 2
  known = importlib.metadata.metadata("jax").get_all("Provides-Extra") or []
  assert set(extras) <= set(known)


def test_it_starts_what_everything_starts():
  (entry,) = [rest for name, rest in instructions() if name == "ENTRYPOINT"]
  assert entry == '["launch/run.sh"]'  # no shell between Docker's signals and the program
  assert os.access(ROOT / "launch" / "run.sh", os.X_OK)
