"""Code, versions and config of processes, compared."""

import dataclasses

from rankclip_jax.config import Config, DataConfig, DistributedConfig, OptimConfig
from rankclip_jax.processes import alike
from rankclip_jax.processes.roll_call import Present


def everyone(*facts):
  return [Present(i, len(facts), "a", i, {"same": f}) for i, f in enumerate(facts)]


def test_the_same_command_on_every_host():
  own = lambda i: Config(
    distributed=DistributedConfig("explicit", "a:1", 2, i),
    data=DataConfig(train=f"/disk{i}/train.csv", num_threads=2 + i),
  )
  facts = [alike.facts_of(own(i)) for i in range(2)]
  assert alike.problem_of(everyone(*facts)) == ""


def test_a_config_that_differs_is_named_with_its_processes():
  one = alike.facts_of(Config())
  two = alike.facts_of(Config(optim=OptimConfig(learning_rate=0.1)))
  problem = alike.problem_of(everyone(one, two, one, two))
  assert "Processes 1, 3 has" not in problem
  assert "Processes 1, 3 have config.optim.learning_rate 0.1, process 0 0.0005" in problem


def test_versions_code_and_fields_that_one_lacks_are_named():
  one = alike.facts_of(Config())
  assert one.keys() >= {"jax version", "jaxlib version", "rankclip_jax code"}
  other = {**one, "jax version": "0.0.1", "rankclip_jax code": "abc"}
  del other["config.seed"]
  problem = alike.problem_of(everyone(one, other))
  assert "Process 1 has rankclip_jax code abc" in problem
  assert "Process 1 has jax version 0.0.1" in problem
  assert "Process 1 has config.seed None" in problem


def test_many_differences_stay_one_line():
  one = alike.facts_of(Config())
  other = alike.facts_of(
    Config(seed=7, optim=OptimConfig(epochs=1, b1=0.5, b2=0.6, weight_decay=0.3))
  )
  problem = alike.problem_of(everyone(one, other))
  assert problem.count("has config") == 3
  assert "and 2 more" in problem
  assert "\n" not in problem


def test_the_code_is_that_of_the_files(tmp_path, monkeypatch):
  first = alike.code_digest()
  assert first == alike.code_digest()
  package = tmp_path / "rankclip_jax"
  (package / "processes").mkdir(parents=True)
  monkeypatch.setattr(alike, "__file__", str(package / "processes" / "alike.py"))
  (package / "a.py").write_text("1")
  one = alike.code_digest()
  (package / "a.py").write_text("2")
  assert len({first, one, alike.code_digest()}) == 3


def test_fields_of_a_host_are_fields():
  names = {k for k, _ in alike.leaves(dataclasses.asdict(Config()))}
  assert set(alike._OF_A_HOST) <= names
