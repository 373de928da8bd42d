"""`python main.py` as users run it: train, kill, resume, evaluate, report.

Real processes on the shrunken run of `running`; several of them in topology_test.
"""

import json
import signal

import pytest
from running import (
  STEPS,
  assert_close,
  final_params,
  finish,
  lines,
  losses,
  start,
  wait_until,
)  # fmt: skip

from rankclip_jax import checkpoint, launcher


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("undisturbed")
  output = finish(start(workdir))
  assert f"Report: {workdir}/report/index.html" in output
  assert "\nLoss of 512 x 512 pairs: 128 rows at once, order by native" in output
  assert "image_retrieval_recall@1" in output
  return workdir


def test_a_run_leaves_everything_it_promises(undisturbed):
  assert json.loads((undisturbed / "config.json").read_text())["model"]["name"] == "nano"
  environment = json.loads((undisturbed / "environment.json").read_text())
  assert environment["devices"] == 1
  assert environment["jax"]
  tasks = {
    json.loads(p.read_text())["task"] for p in (undisturbed / "results").glob("*.json")
  }
  assert tasks == {
    "zeroshot_retrieval",
    "zeroshot_retrieval_main_caption",
    "zeroshot_classification",
    "geometry",
  }
  page = (undisturbed / "report" / "index.html").read_text(encoding="utf-8")
  assert "CC BY-SA 4.0" in page
  first, *_, last = lines(undisturbed)
  assert {"train/loss", "train/cross_modal_loss", "train/in_modal_loss"} <= first.keys()
  assert {"lr", "grad_norm", "logit_scale", "data_wait_seconds"} <= first.keys()
  assert last["eval/openmoji/zeroshot_retrieval/image_retrieval_recall@1"] is not None
  losses(undisturbed)
  marker = json.loads((undisturbed / checkpoint.COMPLETE).read_text())
  assert marker == {"step": STEPS}


def test_killed_in_a_save_and_in_an_epoch_it_ends_bit_equal(undisturbed, tmp_path):
  folder = tmp_path / "checkpoints"
  saving = lambda: folder.exists() and any("tmp" in p.name for p in folder.iterdir())
  first = start(tmp_path)
  wait_until(saving, first)
  first.kill()
  first.communicate()

  second = start(tmp_path)
  wait_until(lambda: any(line["step"] >= 4 for line in lines(tmp_path)), second)
  second.kill()
  second.communicate()
  assert max(line["step"] for line in lines(tmp_path)) < STEPS

  finish(start(tmp_path))
  assert losses(tmp_path) == losses(undisturbed)
  params, fingerprint = final_params(tmp_path)
  expected, expected_fingerprint = final_params(undisturbed)
  assert fingerprint == expected_fingerprint  # optimizer, step and RNG too
  assert_close(params, expected, atol=0)


def test_sigterm_saves_and_more_devices_go_on(undisturbed, tmp_path):
  process = start(tmp_path)
  wait_until(lambda: len(lines(tmp_path)) >= 3, process)
  process.send_signal(signal.SIGTERM)
  output = finish(process, code=launcher.EXIT_STOPPED)
  assert "the same command goes on" in output
  stopped_at = max(
    int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()
  )
  assert f"at step {stopped_at};" in output
  assert 3 <= stopped_at < STEPS
  assert not checkpoint.is_complete(tmp_path)

  output = finish(start(tmp_path, "--config.mesh.fsdp=2", devices=4))
  assert f"from step {stopped_at}" in output
  for step, loss in losses(undisturbed).items():
    assert losses(tmp_path)[step] == pytest.approx(loss, rel=1e-5), step
  assert_close(final_params(tmp_path)[0], final_params(undisturbed)[0], atol=1e-5)


def test_evaluating_and_reporting_again_change_nothing(undisturbed):
  read = lambda: {
    p.name: p.read_bytes() for p in (undisturbed / "results").glob("*.json")
  }
  page = undisturbed / "report" / "index.html"
  before, page_before = read(), page.read_bytes()
  (undisturbed / "results" / "openmoji_geometry.json").unlink()
  page.unlink()
  output = finish(
    start(undisturbed, "--config.mode=eval", "--config.eval.checkpoint=best")
  )
  assert read() == before
  assert "recall@1" in output
  page.unlink()
  finish(start(undisturbed, "--config.mode=report"))
  assert page.read_bytes() == page_before


@pytest.mark.parametrize(
  "flags, message",
  [
    (
      ["--config.optim.learning_rate=0.5"],
      "optim.learning_rate: the checkpoint has 0.001",
    ),
    (["--config.optim.learning_rte=1"], "Did you mean optim.learning_rate?"),
    (["--config.data.batch_size=3"], "does not divide by the 2 devices; the nearest"),
    (["--config.mode=trian"], "Did you mean train?"),
  ],
)
def test_what_cannot_be_is_one_clear_line(undisturbed, flags, message):
  output = finish(start(undisturbed, *flags, devices=2), code=1)
  assert message in output
  assert "Traceback" not in output


def test_a_workdir_that_cannot_be_is_one_clear_line(tmp_path):
  (tmp_path / "file").write_text("")
  output = finish(start(tmp_path / "file" / "below"), code=1)
  assert "cannot be written to (Not a directory)" in output
  output = finish(start(tmp_path / "none", "--config.mode=eval"), code=1)
  assert "does not exist" in output
