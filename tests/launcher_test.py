"""What the launcher makes of settings before a mode runs."""

import json

import pytest

from rankclip_jax import config, launcher


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
