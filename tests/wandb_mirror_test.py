"""Weights & Biases as its client is called; a stand-in, for the real one needs a server.

The real client (0.31.0) was tried by hand, offline: a run that goes on keeps its id.
"""

import json
import sys
import types

import pytest

from rankclip_jax import wandb_mirror
from rankclip_jax.wandb_mirror import WandbMirror


class Client(types.ModuleType):
  """Remembers what it is told; `fails` makes every later call raise."""

  def __init__(self):
    super().__init__("wandb")
    self.begun, self.logged, self.fails = [], [], False
    self.id = "abc"

  def init(self, **options):
    if self.fails:
      raise RuntimeError("no\nnetwork")
    self.begun.append(options)
    return self

  def define_metric(self, name, step_metric):
    assert (name, step_metric) == ("*", "step")

  def log(self, values):
    if self.fails:
      raise RuntimeError("gone")
    self.logged.append(values)

  def finish(self):
    self.log("finished")


@pytest.fixture
def client(monkeypatch):
  found = Client()
  monkeypatch.setitem(sys.modules, "wandb", found)
  return found


def test_one_run_there_however_often_it_goes_on(tmp_path, client):
  mirror = WandbMirror(tmp_path, "emoji", {"seed": 3})
  mirror.write(4, {"train/loss": 2.0, "eval/none": None})
  mirror.close()
  assert client.logged == [{"step": 4, "train/loss": 2.0}, "finished"]
  assert client.begun[0]["id"] is None
  assert client.begun[0]["project"] == "emoji"
  assert client.begun[0]["config"] == {"seed": 3}
  WandbMirror(tmp_path, "emoji", {})
  assert client.begun[1]["id"] == "abc"
  assert client.begun[1]["resume"] == "allow"
  for _ in range(2):  # it stays where it began
    WandbMirror(tmp_path, "other", {})
    assert (client.begun[-1]["id"], client.begun[-1]["project"]) == ("abc", "emoji")


def test_a_mirror_that_breaks_later_ends_alone(tmp_path, client, caplog):
  mirror = WandbMirror(tmp_path, "emoji", {})
  client.fails = True
  mirror.write(1, {"a": 1.0})
  mirror.write(2, {"a": 1.0})
  mirror.close()
  assert caplog.text.count("gets no more numbers: gone") == 1


def test_a_mirror_that_cannot_begin_is_one_line(tmp_path, client, monkeypatch):
  client.fails = True
  with pytest.raises(ValueError, match=r"did not begin the run: no network .*offline"):
    WandbMirror(tmp_path, "emoji", {})
  monkeypatch.setitem(sys.modules, "wandb", None)
  with pytest.raises(ValueError, match=r"'emoji' needs .*: pip install wandb"):
    WandbMirror(tmp_path, "emoji", {})
  assert not (tmp_path / wandb_mirror.FILE).exists()


def test_its_name_is_kept_in_the_workdir(tmp_path, client):
  WandbMirror(tmp_path, "emoji", {})
  assert json.loads((tmp_path / wandb_mirror.FILE).read_text()) == {
    "project": "emoji", "id": "abc"
  }  # fmt: skip


def test_damage_names_the_file(tmp_path, client):
  (tmp_path / wandb_mirror.FILE).write_text('{"project": "em')
  with pytest.raises(ValueError, match=f"{wandb_mirror.FILE}.*remove it"):
    WandbMirror(tmp_path, "emoji", {})
  assert not client.begun
