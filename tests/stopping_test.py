import os
import signal
import subprocess
import sys

import pytest

from rankclip_jax import stopping


@pytest.fixture(autouse=True)
def handlers():
  profiles = signal.getsignal(signal.SIGUSR2)
  with stopping.keeping_handlers():
    yield
  signal.signal(signal.SIGUSR2, profiles)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_before_there_is_anything_to_save_a_signal_ends_the_process(number, capsys):
  stopping.leave_when_told()
  with pytest.raises(SystemExit) as ended:
    signal.raise_signal(number)
  assert ended.value.code == stopping.EXIT_STOPPED == 75
  assert f"{number.name} came when nothing was left to save" in capsys.readouterr().err


@pytest.mark.parametrize("place, waits", [(1, []), (0, [2.5])])
def test_with_other_processes_it_waits_for_no_orderly_end(monkeypatch, place, waits):
  """Process 0 gives the others time, who would be aborted without it."""
  codes, slept = [], []
  monkeypatch.setattr(stopping.os, "_exit", codes.append)
  monkeypatch.setattr(stopping.time, "sleep", slept.append)
  monkeypatch.setattr(stopping, "_place", None)
  stopping.joined(place, patience=2.5)
  stopping.leave_when_told()
  with pytest.raises(SystemExit):  # the stand-in comes back
    signal.raise_signal(signal.SIGTERM)
  assert (codes, slept) == ([stopping.EXIT_STOPPED], waits)


def test_a_full_disk_does_not_change_the_code():
  program = (
    "import signal, sys; from rankclip_jax import stopping; sys.stdout.write('x'); "
    "stopping.joined(1, 0.0); stopping.leave_when_told(); "
    "signal.raise_signal(signal.SIGTERM)"
  )
  with open("/dev/full", "w") as full:
    ended = subprocess.run(
      [sys.executable, "-c", program],
      stdout=full,
      stderr=full,
      env={**os.environ, "PYTHONUNBUFFERED": ""},  # it is full when it is flushed
    )
  assert ended.returncode == stopping.EXIT_STOPPED


def test_asking_for_a_profile_ends_nothing():
  stopping.leave_when_told()
  signal.raise_signal(signal.SIGUSR2)
  assert signal.getsignal(signal.SIGUSR2) == signal.SIG_IGN


def test_the_loop_remembers_and_gives_back():
  stopping.leave_when_told()
  with stopping.StopSignal() as stop:
    signal.raise_signal(signal.SIGTERM)
    assert stop.received
    with pytest.raises(KeyboardInterrupt):
      signal.raise_signal(signal.SIGINT)
  with pytest.raises(SystemExit):
    signal.raise_signal(signal.SIGTERM)


def test_what_others_set_is_taken_back():
  stopping.leave_when_told()
  before = signal.getsignal(signal.SIGTERM)
  with stopping.keeping_handlers():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
  assert signal.getsignal(signal.SIGTERM) is before


def test_main_hears_signals_while_it_imports(tmp_path):
  """Before jax is imported, which takes most of the time."""
  process = subprocess.Popen(
    [sys.executable, "-X", "importtime", "main.py", "--config=none.py"],
    stderr=subprocess.PIPE,
    text=True,
  )
  assert process.stderr
  for line in process.stderr:
    if "| absl" in line.replace(" ", "").replace("|", "| "):  # what main imports next
      break
  else:
    pytest.fail("main.py did not import absl")
  process.send_signal(signal.SIGTERM)
  rest = process.communicate(timeout=60)[1]
  assert process.returncode == stopping.EXIT_STOPPED
  assert "SIGTERM came when nothing was left to save" in rest
  assert "| jax\n" not in rest
