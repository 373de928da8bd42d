"""A real training whose steps are captured, and read back from the trace."""

import gzip
import json
import signal

import jax
import pytest

from rankclip_jax import config, profiling, train
from rankclip_jax.data import interrupts
from rankclip_jax.profiling import Captures

CFG = config.Config(
  data=config.DataConfig(batch_size=64, subset=384, holdout=64),
  model=config.ModelConfig(name="nano", dtype="float32"),
  objective=config.ObjectiveConfig(name="clip"),
  optim=config.OptimConfig(epochs=1),
  profile=config.ProfileConfig(steps=(2,), num_steps=2),
)


def steps_in(folder) -> set[int]:
  """Of the steps that a trace names."""
  (path,) = folder.rglob("*.trace.json.gz")
  events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
  args = [e.get("args", {}) for e in events if e.get("name", "").startswith("train")]
  return {int(x["step_num"]) for x in args if "step_num" in x}


def test_chosen_steps_of_a_training_are_captured_whole(tmp_path, capsys):
  assert train.run(CFG, tmp_path)
  folder = tmp_path / profiling.DIRECTORY / "step_2" / "process_0"
  assert steps_in(folder) == {3, 4}
  assert [p.name for p in (tmp_path / profiling.DIRECTORY).iterdir()] == ["step_2"]
  assert f"tensorboard --logdir {folder}" in capsys.readouterr().out.replace("\n", "")
  first = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
  assert first["compile_seconds"] > 0
  assert first["step_seconds"] < first["compile_seconds"]
  assert first["model_flops_per_second_per_device"] > 0
  assert first["host_memory_gib"] > 0.1
  assert "mfu" not in first


def test_whoever_reads_for_a_run_is_left_alone():
  with interrupts.blocked():
    assert profiling.SIGNAL in signal.pthread_sigmask(signal.SIG_BLOCK, ())
  assert profiling.SIGNAL not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


@pytest.fixture
def calls(monkeypatch):
  found = []
  profiler = profiling.jax.profiler
  monkeypatch.setattr(
    profiler, "start_trace", lambda path: found.append(path.parent.name)
  )
  monkeypatch.setattr(profiler, "stop_trace", lambda: found.append("stop"))
  return found


def test_a_signal_asks_for_the_next_steps(tmp_path, calls):
  said = []
  before = signal.getsignal(profiling.SIGNAL)
  with Captures(tmp_path, (), 2, said.append) as captures:
    captures.between(1, None)
    signal.raise_signal(profiling.SIGNAL)
    captures.between(2, None)
    signal.raise_signal(profiling.SIGNAL)  # one is under way
    assert not captures.between(3, None)
    assert captures.between(4, jax.numpy.zeros(()))
    captures.between(5, None)
    assert calls == ["step_2", "stop"]
    signal.raise_signal(profiling.SIGNAL)
    captures.between(9, None)
  assert calls == ["step_2", "stop", "step_9", "stop"]  # a run that ends ends it
  assert len(said) == 2
  assert signal.getsignal(profiling.SIGNAL) is before


def test_what_goes_wrong_with_a_profile_ends_nothing(tmp_path, calls, monkeypatch):
  said = []

  def broken(*_):
    raise RuntimeError("only one profile at a time")

  with Captures(tmp_path, (1, 5), 1, said.append) as captures:
    with monkeypatch.context() as patch:
      patch.setattr(profiling.jax.profiler, "start_trace", broken)
      captures.between(1, None)
    captures.between(5, None)
    monkeypatch.setattr(profiling.jax.profiler, "stop_trace", broken)
    captures.between(6, None)
  assert said == ["No profile: only one profile at a time"] * 2
  assert calls == ["step_5"]
