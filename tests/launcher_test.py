"""What the launcher makes of settings before a mode runs."""

import json
import os

import pytest

from rankclip_jax import config, launcher, lock


def test_compared_workdirs_may_have_spaces_around_them_and_lie_at_home(
  tmp_path, monkeypatch
):
  monkeypatch.setenv("HOME", str(tmp_path))
  for name in ("mine", "first", "second"):
    (tmp_path / name).mkdir()
    (tmp_path / name / "config.json").write_text(json.dumps({"seed": 1}))
  compare = f" ~/first , {tmp_path / 'second'} ,"
  cfg = config.Config(mode="report", report=config.ReportConfig(compare))
  assert launcher.run(cfg, tmp_path / "mine") == 0
  page = (tmp_path / "mine" / "report" / "index.html").read_text()
  assert "<h1>mine, first and second</h1>" in page
  cfg = config.Config(mode="report", report=config.ReportConfig("~/third"))
  with pytest.raises(ValueError, match=f"{tmp_path}/third, which does not exist"):
    launcher.run(cfg, tmp_path / "mine")


@pytest.mark.parametrize("lives", [True, False])
def test_an_early_error_is_not_noted_where_another_run_is_at_home(tmp_path, lives):
  path = tmp_path / lock.TRAINING
  owner = {"host": "elsewhere", "pid": 1, "since": "now"}
  path.write_text(json.dumps(owner))
  if not lives:
    os.utime(path, (0, 0))
  where = config.DistributedConfig(
    mode="explicit", coordinator="127.0.0.1:1", num_processes=2, process_id=2
  )
  with pytest.raises(ValueError, match="Process 2 of 2 cannot be"):
    launcher.run(config.Config(distributed=where), tmp_path)
  assert (tmp_path / "error.log").exists() != lives
