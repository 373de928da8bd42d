"""The loop's parts that end_to_end_test does not reach: non-finite numbers, clocks."""

import contextlib
import dataclasses
import json
import math
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rankclip_jax import (
  checkpoint,
  compiling,
  config,
  evaluate,
  loop,
  metrics,
  pending,
  plan,
  saving,
  train,
  utilisation,
)
from rankclip_jax.stopping import Left

TINY = config.Config(
  data=config.DataConfig(batch_size=64),
  model=config.ModelConfig(name="nano", dtype="float32"),
  objective=config.ObjectiveConfig(name="clip"),
  optim=config.OptimConfig(epochs=1),
)


@pytest.fixture
def writer(tmp_path):
  with contextlib.closing(metrics.MetricsLog(tmp_path)) as log:
    yield log


def pending_numbers(tmp_path, writer, loss, grad_norm=1.0, step=3):
  rates = utilisation.Rates(2, devices=1, flops=5.0, peak=100.0)
  p = pending.Pending(tmp_path, writer, 1, rates)
  p.push(
    step,
    {"train/loss": jnp.float32(loss), "grad_norm": jnp.float32(grad_norm)},
    ids=np.array([5, 9]),
    host={"data_wait_seconds": 0.5},
  )
  return p


def test_numbers_are_written_once_when_read(tmp_path, writer):
  p = pending_numbers(tmp_path, writer, 2.0)
  step, values = p.read() or (None, {})
  assert step == 3
  assert values["train/loss"] == 2.0
  assert values["data_wait_seconds"] == 0.5
  assert values["examples_per_second"] == pytest.approx(2 / values["step_seconds"])
  assert values["mfu"] == pytest.approx(2 * 5.0 / values["step_seconds"] / 100.0)
  assert p.read() is None
  assert len((tmp_path / metrics.FILE).read_text().splitlines()) == 1


@pytest.mark.parametrize("loss, norm", [(np.nan, 1.0), (np.inf, 1.0), (1.0, np.nan)])
def test_what_is_not_finite_stops_the_run_with_the_examples(tmp_path, writer, loss, norm):
  with pytest.raises(
    pending.NonFiniteError, match=r"Step 3 gave .*ids are \[5, 9\].*all 2 in"
  ):
    pending_numbers(tmp_path, writer, loss, norm).read()
  noted = json.loads((tmp_path / "nonfinite.0.json").read_text())
  assert noted["step"] == 3
  assert noted["example_ids"] == [5, 9]
  assert (tmp_path / metrics.FILE).read_text() == ""


def test_numbers_of_a_step_that_had_no_data_are_not_written(tmp_path, writer):
  def check(values):
    assert values["train/loss"] == 2.0
    raise ValueError("no data")

  p = pending.Pending(tmp_path, writer, 1, utilisation.Rates(1, 1, 1.0), check)
  p.push(3, {"train/loss": jnp.float32(2)}, ids=np.array([5]), host={})
  with pytest.raises(ValueError, match="no data"):
    p.read()
  assert (tmp_path / metrics.FILE).read_text() == ""


def test_a_run_that_diverges_keeps_its_last_good_checkpoint(tmp_path, monkeypatch):
  """A NaN at step 3 is found before step 3 or any later one is saved."""
  cfg = dataclasses.replace(
    TINY,
    checkpoint=config.CheckpointConfig(every_steps=1, keep_last=99),
    eval=config.EvalConfig(every_epochs=0),
  )
  compile_ahead = loop.compile_ahead

  def breaking(p, rows, told):
    compiled = compile_ahead(p, rows, told)

    spoil = jax.jit(lambda loss, step: jnp.where(step == 3, jnp.nan, loss))

    def wrapped(state, batch):
      state, numbers = compiled.call(state, batch)
      return state, {**numbers, "train/loss": spoil(numbers["train/loss"], state.step)}

    return dataclasses.replace(compiled, call=wrapped)

  monkeypatch.setattr(loop, "compile_ahead", breaking)
  checkpoint.mark_complete(tmp_path, 2)  # by a shorter training
  with pytest.raises(pending.NonFiniteError, match="Step 3 gave"):
    train.run(cfg, tmp_path)
  assert not checkpoint.is_complete(tmp_path)
  kept = sorted(
    int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()
  )
  assert kept == [1, 2]
  ids = json.loads((tmp_path / "nonfinite.0.json").read_text())["example_ids"]
  p = plan.make(cfg)
  assert ids == next(plan.batches_of(cfg, p, 2))["id"].tolist()


def test_an_update_that_is_not_finite_is_not_saved(tmp_path, monkeypatch):
  """Adam without epsilon divides 0 by 0 while loss and gradient are still finite."""
  make = plan.optim.optimizer
  without_eps = lambda rate, **options: make(rate, **{**options, "eps": 0.0})
  monkeypatch.setattr(plan.optim, "optimizer", without_eps)
  every = config.CheckpointConfig(every_steps=1)
  with pytest.raises(pending.NonFiniteError, match="Step 1 gave .*update_norm"):
    train.run(dataclasses.replace(TINY, checkpoint=every), tmp_path)
  assert not [p for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()]


def test_save_clock(monkeypatch):
  now = [100.0]
  monkeypatch.setattr(saving.time, "monotonic", lambda: now[0])
  clock = saving.SaveClock(every_steps=4, every_minutes=2.0)
  assert [s for s in range(1, 10) if clock.steps_are_up(s)] == [4, 8]
  now[0] += 119
  assert not clock.minutes_are_up()
  now[0] += 1
  assert clock.minutes_are_up()
  clock.saved()
  assert not clock.minutes_are_up()
  off = saving.SaveClock(0, 0.0)
  now[0] += 1e9
  assert not off.minutes_are_up()
  assert not off.steps_are_up(8)


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"data": config.DataConfig(batch_size=65)}, "65 is global .* 8 devices; .* 64"),
    ({"data": config.DataConfig(batch_size=4096)}, "3237 examples has no batch of 4096"),
    ({"model": config.ModelConfig(name="huge")}, "Unknown model 'huge'"),
    ({"objective": config.ObjectiveConfig(name="rank")}, "Unknown objective 'rank'"),
    (
      {"objective": config.ObjectiveConfig(name="clip", decay="log")},
      "'clip' ranks nothing, so decay would do nothing",
    ),
    ({"mesh": config.MeshConfig(fsdp=3)}, "does not make the 8 devices"),
    (
      {"objective": config.ObjectiveConfig(name="rankclip_released")},
      "needs at least 2 epochs",
    ),
  ],
)
def test_what_does_not_fit_is_refused_before_training(changes, message):
  with pytest.raises(ValueError, match=message):
    plan.make(dataclasses.replace(TINY, **changes))


def test_a_workdir_in_which_another_run_has_begun_is_left_as_it_is(tmp_path):
  other = dataclasses.replace(TINY, seed=7)
  (tmp_path / "config.json").write_text(config.to_json(other))
  with pytest.raises(ValueError, match=r"has begun.*\n  seed: it has 7, the config 0\n"):
    train.run(TINY, tmp_path)
  assert [p.name for p in tmp_path.iterdir()] == ["config.json"]
  train.check_begun(other, tmp_path)
  (tmp_path / "config.json").write_text('{"seed": 7, "da')  # torn: it says nothing
  train.check_begun(TINY, tmp_path)


class Told(loop.StopSignal):
  """A signal that has come as soon as something is so."""

  received = property(lambda self: self._is_so())

  def __init__(self, is_so):
    self._is_so = is_so

  def __enter__(self):
    return self

  def __exit__(self, *_):
    pass


@pytest.mark.parametrize("step", [2, 4])
def test_a_stop_amid_an_evaluation_saves_and_leaves_it(tmp_path, monkeypatch, step):
  """Step 4 is the last."""
  cfg = dataclasses.replace(
    TINY,
    data=config.DataConfig(batch_size=64, subset=128, holdout=64),
    optim=config.OptimConfig(epochs=2),
    eval=config.EvalConfig(every_epochs=1, batch_size=16),
  )
  embedded = []

  def encoder(graph, mesh, tower, real=evaluate.encoder):
    run = real(graph, mesh, tower)
    return lambda *args: embedded.append(tower) or run(*args)

  with monkeypatch.context() as patch:
    patch.setattr(evaluate, "encoder", encoder)
    # Amid the first or the second evaluation.
    assert train.run(cfg, tmp_path / "whole")
    before = 2 + (len(embedded) // 2 if step == 4 else 0)
    embedded.clear()
    patch.setattr(loop, "StopSignal", lambda: Told(lambda: len(embedded) >= before))
    assert not train.run(cfg, tmp_path / "stopped")
    assert len(embedded) == before + 1  # the batch that told the others
  workdir = tmp_path / "stopped"
  assert checkpoint.steps_of(workdir)[-1] == step
  assert evaluated(workdir).keys() == {2, 4} - {step, 4}
  saved = checkpoint.Checkpoints(workdir, read_only=True)
  assert not saved.is_rated(step)
  assert not checkpoint.is_complete(workdir)
  assert train.run(cfg, workdir)
  assert evaluated(workdir) == evaluated(tmp_path / "whole")
  assert saved.is_rated(step)
  saved.close()
  assert scores(workdir) == scores(tmp_path / "whole")  # it can be the best
  assert checkpoint.is_complete(workdir)


def scores(workdir):
  """What Orbax ranks checkpoints by, of each."""
  saved = checkpoint.of_run(workdir)
  found = {step: saved._manager.metrics(step) for step in saved.steps()}
  saved.close()
  assert all(found.values())
  return found


def evaluated(workdir):
  """A metric of each evaluation, by step."""
  lines = map(json.loads, (workdir / metrics.FILE).read_text().splitlines())
  name = "eval/openmoji/geometry/alignment"
  return {x["step"]: x[name] for x in lines if name in x}


def test_a_stop_at_an_evaluation_leaves_it_to_the_run_that_goes_on(tmp_path, monkeypatch):
  cfg = dataclasses.replace(
    TINY,
    data=config.DataConfig(batch_size=64, subset=128, holdout=64),
    optim=config.OptimConfig(epochs=3),
    eval=config.EvalConfig(every_epochs=1),
  )

  assert train.run(cfg, tmp_path / "undisturbed")
  expected = evaluated(tmp_path / "undisturbed")
  assert expected.keys() == {2, 4, 6}

  workdir = tmp_path / "stopped"
  workdir.mkdir()

  begun = lambda: (workdir / metrics.FILE).read_text() != ""
  with monkeypatch.context() as patch:
    patch.setattr(loop, "StopSignal", lambda: Told(begun))
    assert not train.run(cfg, workdir)
  assert checkpoint.steps_of(workdir) == [2]
  assert not evaluated(workdir)
  assert train.run(cfg, workdir)
  assert evaluated(workdir) == expected


def test_a_stop_while_it_compiles_leaves_at_once_and_nothing_to_save(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(Left, "any", False)
  begun = threading.Event()
  monkeypatch.setattr(compiling, "_compiled", lambda *_: begun.set() or time.sleep(20))
  monkeypatch.setattr(loop, "StopSignal", lambda: Told(begun.is_set))
  assert not train.run(TINY, tmp_path)
  assert Left.any  # the launcher does not wait for the compiler
  assert not Left.with_others
  assert not checkpoint.steps_of(tmp_path)


def test_a_start_that_hangs_says_where(tmp_path, monkeypatch, caplog):
  cfg = dataclasses.replace(TINY, log=config.LogConfig(watchdog_minutes=0.005))

  def hangs(*_):
    until = time.monotonic() + 20
    while "opening the training data has taken" not in caplog.text:
      assert time.monotonic() < until
      time.sleep(0.01)
    raise ValueError("at last")

  monkeypatch.setattr(train.plans, "make", hangs)
  with pytest.raises(ValueError, match="at last"):
    train.run(cfg, tmp_path)
  assert "in hangs" in (tmp_path / "stacks.0.txt").read_text()


def test_numbers_that_are_not_finite_are_told_on_a_full_disk_too(tmp_path, writer):
  p = pending_numbers(tmp_path / "none", writer, loss=math.nan)
  with pytest.raises(pending.NonFiniteError, match="Step 3 gave"):
    p.read()
