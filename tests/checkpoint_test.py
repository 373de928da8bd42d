"""Saving, keeping, refusing, and living with damaged files."""

import dataclasses
import json
import resource
import shutil

import absl.logging
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from rankclip_jax import checkpoint, config, sharding
from rankclip_jax.state import TrainState

METRIC = "recall"


def state_at(step, mesh=None):
  """A small state, a function of the step."""
  mesh = mesh or sharding.make_mesh()
  big = jnp.arange(64 * 64, dtype=jnp.float32).reshape(64, 64) * (step + 1)
  state = TrainState(
    step=jnp.int32(step),
    params={"blocks": {"kernel": big}, "logit_scale": jnp.float32(step)},
    opt_state=(jnp.int32(step), {"kernel": -big}),
    rng=jnp.array([1, step], jnp.uint32),
  )
  place = lambda x: jax.device_put(
    x, NamedSharding(mesh, P("fsdp") if x.ndim > 1 else P())
  )
  return jax.tree.map(place, state)


def abstract(mesh=None):
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
    state_at(0, mesh),
  )


def open_at(path, **options):
  return checkpoint.Checkpoints(path, best_metric=METRIC, **{"keep_last": 9, **options})


def save_steps(path, steps, scores=None, **options):
  saved = open_at(path, **options)
  for step in steps:
    saved.save(state_at(step), step, {"note": step}, (scores or {}).get(step))
  saved.wait()
  return saved


def accept(facts):
  del facts


def test_round_trip_onto_another_mesh(tmp_path):
  save_steps(tmp_path, [3]).close()
  mesh = sharding.make_mesh(1, 8)
  restored = open_at(tmp_path).restore_newest(abstract(mesh), accept)
  assert restored is not None
  jax.tree.map(np.testing.assert_array_equal, restored.state, state_at(3))
  assert restored.facts["note"] == 3
  assert restored.state.params["blocks"]["kernel"].sharding.spec == P("fsdp")


def test_an_empty_workdir_has_nothing(tmp_path):
  assert open_at(tmp_path).restore_newest(abstract(), accept) is None


def test_keeps_the_last_and_the_best(tmp_path):
  scores = {1: {METRIC: 0.9}, 2: {METRIC: 0.5}, 3: {METRIC: 0.7}}
  saved = save_steps(tmp_path, range(1, 6), scores, keep_last=2, keep_best=1)
  assert saved.steps() == [1, 4, 5]
  saved.close()
  again = open_at(tmp_path, keep_last=2, keep_best=1)
  assert again.facts("best")[0] == 1
  assert again.facts("latest")[0] == 5
  again.save(state_at(6), 6, {}, {METRIC: 0.1})
  again.wait()
  assert again.steps() == [1, 5, 6]


def test_which_checkpoint_is_meant(tmp_path):
  saved = save_steps(tmp_path, [2, 4])
  assert saved.facts("2") == (2, saved.facts("2")[1])
  assert saved.facts("2")[1]["note"] == 2
  with pytest.raises(ValueError, match=r"no checkpoint '3'; there are steps \[2, 4\]"):
    saved.facts("3")
  params = saved.restore_params(2, abstract().params)
  jax.tree.map(np.testing.assert_array_equal, params, state_at(2).params)


def largest_file(folder):
  return max(
    (p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size
  )


def flip_bit(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


DAMAGE = {
  "a flipped bit": lambda step: flip_bit(largest_file(step / "params")),
  "a truncated file": lambda step: largest_file(step / "optimizer").write_bytes(b"x"),
  "empty facts": lambda step: [
    p.write_bytes(b"") for p in (step / "facts").iterdir() if p.is_file()
  ],
  "a missing item": lambda step: shutil.rmtree(step / "params"),
}


# Orbax leaves the coroutines of its other reads unawaited when one of them fails.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_newest_is_named_set_aside_and_passed_over(tmp_path, caplog, how):
  save_steps(tmp_path, [1, 2]).close()
  DAMAGE[how](tmp_path / "checkpoints" / "2")
  saved = open_at(tmp_path)
  restored = saved.restore_newest(abstract(), accept)
  assert restored is not None
  assert int(restored.state.step) == 1
  assert "Checkpoint 2 cannot be read" in caplog.text
  assert (tmp_path / "checkpoints_corrupt" / "2.0").is_dir()
  saved.save(state_at(2), 2, {})  # the step is free again
  saved.wait()
  assert saved.steps() == [1, 2]


@pytest.mark.parametrize(
  "said", ["PERMISSION_DENIED: Error opening", "RESOURCE_EXHAUSTED"]
)
def test_what_is_no_damage_moves_nothing(tmp_path, monkeypatch, said):
  """As TensorStore says it, whose errors are no OSErrors."""
  save_steps(tmp_path, [1, 2]).close()
  saved = open_at(tmp_path)

  def refused(*_):
    raise ValueError(f"{said} of a file")

  monkeypatch.setattr(saved, "_restore", refused)
  with pytest.raises((PermissionError, ValueError), match=said):
    saved.restore_newest(abstract(), accept)
  assert checkpoint.steps_of(tmp_path) == [1, 2]
  saved.close()


def test_torn_scores_are_set_aside_before_orbax_reads_them(tmp_path, caplog):
  scores = {step: {METRIC: 0.5} for step in (1, 2)}
  save_steps(tmp_path, [1, 2], scores).close()
  (tmp_path / "checkpoints" / "2" / "metrics" / "metrics").write_text("")
  with pytest.raises(ValueError, match="checkpoints/2 is damaged"):
    open_at(tmp_path, read_only=True)
  assert open_at(tmp_path).steps() == [1]
  assert "Checkpoint 2 cannot be read" in caplog.text


def test_a_best_metric_that_is_never_measured_is_refused(tmp_path):
  with pytest.raises(ValueError, match="best_metric 'recall' is not among .*: other"):
    open_at(tmp_path).save(state_at(1), 1, {}, {"other": 0.5})


def test_when_all_are_damaged_nothing_starts_over(tmp_path):
  save_steps(tmp_path, [1, 2]).close()
  for step in "12":
    shutil.rmtree(tmp_path / "checkpoints" / step / "params")
  with pytest.raises(ValueError, match=r"None of the checkpoints at steps \[1, 2\]"):
    open_at(tmp_path).restore_newest(abstract(), accept)


def test_damaged_parameters_are_not_evaluated(tmp_path):
  saved = save_steps(tmp_path, [1])
  flip_bit(largest_file(tmp_path / "checkpoints" / "1" / "params"))
  with pytest.raises(ValueError, match="checkpoint 1 .* are not those that were saved"):
    saved.restore_params(1, abstract().params)


def test_an_unfinished_save_is_not_a_checkpoint(tmp_path):
  save_steps(tmp_path, [1, 2]).close()
  folder = tmp_path / "checkpoints"
  (folder / "2").rename(folder / "2.orbax-checkpoint-tmp-1")
  saved = open_at(tmp_path)
  assert saved.steps() == [1]
  restored = saved.restore_newest(abstract(), accept)
  assert restored is not None
  assert int(restored.state.step) == 1


def test_a_refusal_is_final_and_moves_nothing(tmp_path):
  save_steps(tmp_path, [1]).close()

  def refuse(facts):
    raise ValueError(f"not {facts['note']}")

  with pytest.raises(ValueError, match="not 1"):
    open_at(tmp_path).restore_newest(abstract(), refuse)
  assert (tmp_path / "checkpoints" / "1").is_dir()


def test_check_config_names_fields_and_can_look_at_some_only():
  c = config.Config()
  facts = {"config": json.loads(config.to_json(c))}
  checkpoint.check_config(facts, c)
  other = dataclasses.replace(c, seed=5)
  with pytest.raises(ValueError, match="seed: the checkpoint has 0, the config 5"):
    checkpoint.check_config(facts, other)
  checkpoint.check_config(facts, other, ("model.",))


def test_reading_a_run_says_nothing_and_leaves_logging_alone(tmp_path, caplog):
  """Orbax warns that what was opened to be read cannot be written to."""
  facts = {"config": dataclasses.asdict(config.Config())}
  saved = open_at(tmp_path)
  saved.save(state_at(1), 1, facts)
  saved.wait()
  saved.close()
  before = absl.logging.get_verbosity()
  absl.logging.set_verbosity(absl.logging.WARNING)  # as in a plain Python
  caplog.clear()
  try:
    opened = checkpoint.of_run(tmp_path)
    assert opened.facts("latest")[0] == 1
    opened.close()
    with pytest.raises(ValueError, match="has no checkpoint 'latest'"):
      checkpoint.of_run(tmp_path / "none")
    assert absl.logging.get_verbosity() == absl.logging.WARNING
  finally:
    absl.logging.set_verbosity(before)
  assert [r.getMessage() for r in caplog.records if r.name == "absl"] == []


def test_where_nothing_can_be_written_is_found_out_at_once(tmp_path):
  """A limit on the size of files stands for a full disk."""
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (1024, before[1]))
  try:
    with pytest.raises(ValueError, match="No checkpoint can be written.*File too large"):
      checkpoint.Checkpoints(tmp_path)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
  assert not list((tmp_path / checkpoint.DIRECTORY).iterdir())
  (tmp_path / "file").write_text("")
  with pytest.raises(ValueError, match="Not a directory"):
    checkpoint.Checkpoints(tmp_path / "file")


def test_processes_wait_until_they_see_the_same(tmp_path, monkeypatch):
  """Another process's view, which network file systems may show late."""
  checkpoint.Checkpoints(tmp_path).close()
  views = [["a", "b"], ["a", "b"], ["b", "b"]]
  monkeypatch.setattr(checkpoint, "digests_of_all", lambda digest: views.pop(0))
  monkeypatch.setattr(checkpoint.time, "sleep", lambda seconds: None)
  checkpoint.Checkpoints(tmp_path).close()
  assert not views
  monkeypatch.setattr(checkpoint, "digests_of_all", lambda digest: ["a", "b"])
  monkeypatch.setattr(checkpoint, "_SECONDS_TO_APPEAR", 0.05)
  with pytest.raises(ValueError, match="Processes see different checkpoints"):
    checkpoint.Checkpoints(tmp_path)


def test_scores_of_a_save_that_never_ended_are_nobodys(tmp_path):
  torn = tmp_path / checkpoint.DIRECTORY / "7.orbax-checkpoint-tmp" / "metrics"
  torn.mkdir(parents=True)
  (torn / "metrics").write_text("")
  checkpoint.Checkpoints(tmp_path, read_only=True).close()
  checkpoint.Checkpoints(tmp_path).close()
