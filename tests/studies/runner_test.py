"""What is run, what is not run again, and what becomes of errors and signals."""

import io
import os
import signal
import subprocess
import sys
import time

import pytest
from rich.console import Console

from rankclip_jax.studies import __main__ as studies
from rankclip_jax.studies import disk, runner, study
from tests.studies.conftest import begin, finish, log

CODE = """
import pathlib, os
with open("{calls}", "a") as file: file.write("{name}\\n")
print("cache", os.environ["JAX_COMPILATION_CACHE_DIR"])
"""


@pytest.fixture
def console():
  return Console(file=io.StringIO(), soft_wrap=True, width=200)


@pytest.fixture
def pretend(monkeypatch, tmp_path):
  """Runs note that they were called, and then do as they are told by name."""
  monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
  what = {}

  def commands(run):
    code = CODE.format(calls=tmp_path / "calls", name=run.name)
    return [["-c", code + what.get(run.name, "")]]

  monkeypatch.setattr(study.Run, "commands", commands)
  what["calls"] = lambda: (tmp_path / "calls").read_text().split()
  return what


def copies(run):
  """Code by which a run that was finished elsewhere appears."""
  ready = run.workdir.with_name(f"ready-{run.name}")
  finish(run, 0.5)
  run.workdir.rename(ready)
  return f"os.rename({str(ready)!r}, {str(run.workdir)!r})"


def test_what_is_done_is_not_done_again_and_errors_do_not_stop_the_rest(
  tiny, runs, pretend, console
):
  for run in runs[1:]:
    pretend[run.name] = copies(run)
  finish(runs[0], 0.5)
  pretend[runs[2].name] = "raise SystemExit('Error: no luck')"
  assert not runner.run(tiny, runs, console)
  assert pretend["calls"]() == [run.name for run in runs[1:]]
  said = console.file.getvalue()
  assert "1 of 6 runs are done" in said
  assert "rankclip-0: failed code 1: Error: no luck" in said
  assert "low-0 (1 of 5) ..." in said
  assert "rankclip-0 (2 of 5, " in said  # with what is left
  cache = str(runs[0].workdir.parent / "jax_cache")
  assert f"cache {cache}" in disk.log_path(runs[1]).read_text()
  # The next time only what failed is tried again.
  pretend[runs[2].name] = (
    f"os.rename({str(runs[2].workdir.with_name('ready-rankclip-0'))!r}"
  )
  pretend[runs[2].name] += f", {str(runs[2].workdir)!r})"
  assert runner.run(tiny, runs, console)
  assert pretend["calls"]()[5:] == [runs[2].name]


def test_nothing_runs_where_a_folder_is_of_another_run(tiny, runs, pretend, console):
  begin(runs[-1], seed=77)
  with pytest.raises(ValueError, match="seed: the run has 77"):
    runner.run(tiny, runs, console)
  assert not disk.log_path(runs[0]).exists()


def test_what_another_runner_has_done_meanwhile_is_not_done_again(
  tiny, runs, pretend, console
):
  pretend[runs[0].name] = copies(runs[0]) + f"\n{copies(runs[1])}"
  assert runner.run(tiny, runs[:2], console)
  assert pretend["calls"]() == [runs[0].name]


def test_what_another_runner_is_at_is_left_to_it(tiny, runs, pretend, console):
  with log(runs[0], "").open("ab") as other:
    assert disk.lock(other)
    assert not runner.run(tiny, runs[:1], console)
  assert "clip-0: running" in console.file.getvalue()


def test_a_signal_stops_the_run_in_hand_and_no_other_begins(tiny, runs, tmp_path):
  """The runner as a process; its child saves on SIGTERM, as main.py does."""
  code = f"""
import signal, sys, time
from rich.console import Console
from rankclip_jax.studies import runner, study
child = '''
import pathlib, signal, sys, time
def save(*_):
  pathlib.Path({str(tmp_path / "saved")!r}).touch()
  sys.exit(75)
signal.signal(signal.SIGTERM, save)
pathlib.Path({str(tmp_path / "began")!r}).touch()
time.sleep(200)
'''
study.Run.commands = lambda run: [["-c", child]]
two = [study.Variant(n, "s", 0.0, "configs/openmoji.py") for n in "ab"]
a = study.Study("tiny", "x", two)
import pathlib
runs = study.expand(a, pathlib.Path({str(tmp_path / "w")!r}), seeds=1, settings={{}})
try:
  runner.run(a, runs, Console(stderr=True))
except KeyboardInterrupt:
  sys.exit(130)
"""
  with subprocess.Popen([sys.executable, "-c", code], cwd=study.ROOT) as process:
    deadline = time.monotonic() + 120
    while not (tmp_path / "began").exists():
      assert time.monotonic() < deadline
      time.sleep(0.05)
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(120) == 130
  assert (tmp_path / "saved").exists()
  assert [p.name for p in (tmp_path / "w" / "logs").iterdir()] == ["a-0.log"]


def command(*words):
  return studies.main([str(word) for word in words])


@pytest.fixture
def mine(tmp_path):
  """The study of `tiny`, as a file, and its flags."""
  path = tmp_path / "mine.py"
  path.write_text(
    "from rankclip_jax.studies import Study, Variant\n"
    "def get_study(arg):\n"
    "  names = ('clip', 'rankclip')\n"
    "  made = [Variant(n, n, n, 'configs/openmoji.py:small,' + n) for n in names]\n"
    "  return Study('mine', 'objective', made, seeds=1)\n"
  )
  sets = ("model.name=nano", "data.subset=8", "data.batch_size=8", "data.holdout=16")
  return (
    f"--study={path}",
    f"--workdir={tmp_path / 'out'}",
    "--set",
    "optim.epochs=2",
    *sets,
  )


def test_a_real_run_is_found_done_and_drawn(mine, tmp_path, capsys):
  """Two steps, by the command that is printed."""
  assert command("print", *mine) == 0
  clip, rankclip = capsys.readouterr().out.splitlines()
  assert clip.startswith("python ")
  assert "--config.seed=0 --config.optim.epochs=2" in rankclip
  subprocess.run(f"{sys.executable} {clip[7:]}", shell=True, check=True, timeout=300)
  capsys.readouterr()
  assert command("status", *mine) == 1
  out = capsys.readouterr().out.splitlines()
  assert [line.split() for line in out[:2]] == [
    ["clip-0", "done"],
    ["rankclip-0", "missing"],
  ]
  assert out[2] == "1 of 2 runs are done."
  assert command("print", *mine) == 0
  assert capsys.readouterr().out.splitlines() == [rankclip]
  assert command("plot", *mine) == 1
  assert "rankclip-0 (missing)" in capsys.readouterr().err
  assert command("plot", "--partial", f"--output={tmp_path / 'docs'}", *mine) == 0
  assert sorted(p.name for p in (tmp_path / "docs").iterdir()) == ["mine.md", "mine.png"]
  # Another config than what lies there is an error, and so is another number of epochs.
  assert command("status", *mine, "model.context_length=12") == 1
  assert "model.context_length: the run has None" in capsys.readouterr().err


@pytest.mark.parametrize(
  "words, message",
  [
    (["--set", "optim.epochs"], "--set takes FIELD=VALUE"),
    (["--seeds=0"], "one seed at least"),
    (["--study=nowhere.py"], "There is no study nowhere.py"),
  ],
)
def test_bad_flags_are_one_line(mine, words, message, capsys):
  assert command("status", *mine[:2], *words) == 1
  error = capsys.readouterr().err
  assert message in error
  assert error.count("\n") == 1
