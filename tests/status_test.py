"""What the status command reads from workdirs that run, ended, died, or are none."""

import datetime
import json
import os
import pathlib
import socket
import subprocess
import sys
import time

import pytest

from rankclip_jax import checkpoint, lock, metrics, status

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture
def workdir(tmp_path):
  """A run of 100 steps in 5 epochs that has logged 30 and evaluated at 20."""
  now = time.time()
  write(tmp_path / "config.json", {"optim": {"epochs": 5}, "checkpoint": {}})
  write(tmp_path / "environment.json", {"plan": {"num_steps": 100}})
  lines = []
  for step in range(1, 31):
    lines.append(
      {
        "step": step,
        "time": now - 2 * (30 - step) - 12,
        "train/loss": 6.0 - step / 10,
        "train/rank_loss": None,
        "data_wait_seconds": 0.5,
        "step_seconds": 60.0 if step == 1 else 2.0,
        "examples_per_second": 128.0,
        "examples_per_second_per_device": 32.0,
      }
    )
    if step == 20:
      values = {"image_retrieval_recall@1": 0.25, "text_retrieval_recall@1": 0.5}
      scores = {f"eval/openmoji/zeroshot_retrieval/{k}": v for k, v in values.items()}
      lines.append({"step": 20, "time": now - 32, **scores})
  text = "".join(json.dumps(x) + "\n" for x in lines)
  (tmp_path / "metrics.jsonl").write_text(text + '{"step": 31, "ti')
  for step in (10, 20):
    (tmp_path / "checkpoints" / str(step)).mkdir(parents=True)
  (tmp_path / "checkpoints" / "30.orbax-checkpoint-tmp").mkdir()
  os.utime(tmp_path / "checkpoints" / "20", (now - 120, now - 120))
  return tmp_path


def write(path, value):
  path.write_text(json.dumps(value))


def shown(workdir) -> dict[str, str]:
  """Lines of the description by label."""
  rows = [x[2:].split(maxsplit=1) for x in status.describe(workdir).splitlines()[1:]]
  return {row[0]: row[1] for row in rows}


def test_a_run_that_goes_on(workdir):
  with lock.held(workdir / lock.TRAINING, "Training", "wait."):
    lines = shown(workdir)
  assert lines["training"].startswith(f"on host {socket.gethostname()} as process")
  assert lines["step"] == "30 of 100 (30.0%), epoch 2 of 5, logged 12 s ago"
  assert lines["loss"] == "loss 3.000  rank not finite"
  assert lines["speed"] == "128 examples/second, 32 examples/second/device, 2 s a step"
  assert lines["input"].startswith("12.7% of the time")  # 15 of 118 s
  assert lines["left"].startswith("70 steps, about 2.3 min")
  assert lines["checkpoint"] == "step 20, 2.0 min ago (10, 20)"
  assert lines["evaluation"] == (
    "step 20, 32 s ago: openmoji/zeroshot_retrieval/image_retrieval_recall@1 0.250, "
    "openmoji/zeroshot_retrieval/text_retrieval_recall@1 0.500"
  )
  assert not {"examples", "error", "damaged"} & lines.keys()


def test_runs_that_do_not_go_on(workdir):
  assert shown(workdir)["training"] == "not running; the same command goes on"
  process = subprocess.Popen([sys.executable, "-c", ""])
  process.wait()
  owner = {"host": socket.gethostname(), "pid": process.pid, "since": "yesterday"}
  write(workdir / lock.TRAINING, owner)
  assert "it was killed on host" in shown(workdir)["training"]
  write(workdir / lock.TRAINING, {**owner, "host": "elsewhere"})
  os.utime(workdir / lock.TRAINING, (0, time.time() - 600))
  assert "no sign of life for 10.0 min" in shown(workdir)["training"]
  checkpoint.mark_complete(workdir, 100)
  assert shown(workdir)["training"] == "ended at step 100"


def test_what_went_wrong(workdir):
  error = workdir / "error.log"
  error.write_text("Traceback:\n  File\nValueError: no data; give some.\nMore of it.\n")
  lines = [{"shard": "0.tar", "key": str(i), "reason": "decode"} for i in range(3)]
  text = "".join(json.dumps(x) + "\n" for x in lines)
  (workdir / "bad_examples.jsonl").write_text(text)
  write(workdir / "nonfinite.0.json", {"step": 17})
  assert shown(workdir)["error"] == "0 s ago: ValueError: no data; give some."
  assert shown(workdir)["examples"].startswith("3 were bad (of the last: 3 decode)")
  assert shown(workdir)["diverged"] == "0 s ago: step 17, see nonfinite.0.json"
  hour = time.time() - 3600
  os.utime(error, (hour, hour))
  since = datetime.datetime.now().astimezone().isoformat()
  owner = {"host": socket.gethostname(), "pid": os.getpid(), "since": since}
  write(workdir / lock.TRAINING, owner)
  assert shown(workdir)["error"].startswith("60.0 min ago, before this run: ValueError")


def test_older_workdirs_have_the_number_of_steps_in_their_checkpoints(workdir):
  write(workdir / "environment.json", {"jax": "0.10.2"})
  assert shown(workdir)["step"].startswith("30, logged")
  (workdir / "checkpoints" / "20" / "facts").mkdir()
  write(workdir / "checkpoints" / "20" / "facts" / "metadata", {"num_steps": 60})
  assert shown(workdir)["step"].startswith("30 of 60 (50.0%), epoch 3 of 5")


def test_a_run_that_has_only_begun(tmp_path):
  with lock.held(tmp_path / lock.TRAINING, "Training", "wait."):
    lines = shown(tmp_path)
  assert (lines["step"], lines["checkpoint"]) == ("none logged yet", "none yet")


def test_the_command_is_fast_and_without_jax(workdir):
  begun = time.monotonic()
  code = (
    "import sys; from rankclip_jax import status; code = status.main(sys.argv[1:]); "
    "assert not {'jax', 'numpy', 'orbax'} & set(sys.modules); sys.exit(code)"
  )
  printed = subprocess.run(
    [sys.executable, "-c", code, str(workdir)], cwd=ROOT, capture_output=True, text=True
  )
  assert printed.returncode == 0, printed.stderr
  assert "30 of 100" in printed.stdout
  assert time.monotonic() - begun < 5


def test_no_workdir_is_one_clear_line(tmp_path, capsys):
  assert status.main([str(tmp_path / "none")]) == 1
  assert "none is no folder" in capsys.readouterr().err
  assert status.main([str(tmp_path)]) == 1
  assert "holds none of config.json, metrics.jsonl" in capsys.readouterr().err


def test_one_that_is_no_workdir_hides_no_other(workdir, capsys):
  assert status.main([str(workdir / "none"), str(workdir)]) == 1
  printed = capsys.readouterr()
  assert "30 of 100" in printed.out
  assert "Error: " in printed.err


@pytest.mark.parametrize(
  "name, content",
  [
    (lock.TRAINING, "[]"),
    (lock.TRAINING, '{"host": "HOST", "pid": 99999999999999999999, "since": "now"}'),
    ("config.json", '{"optim": null}'),
    ("environment.json", '{"plan": null}'),
    ("checkpoints/007", ""),
    ("save_failures.jsonl", '{"step": "x"}\n'),
    ("error.log/file", ""),
    ("metrics.jsonl", '{"step_seconds": 0.5}\n{"step": 1}\n'),
    ("metrics.jsonl", '{"step": 1, "time": 1, "step_seconds": "x"}\n'),
    ("metrics.jsonl", '{"step": 1, "time": 1, "step_seconds": NaN}\n'),
  ],
)  # fmt: skip
def test_damage_hides_nothing_else(workdir, name, content):
  (workdir / name).parent.mkdir(exist_ok=True)
  (workdir / name).write_text(content.replace("HOST", socket.gethostname()))
  lines = shown(workdir)
  assert "nan" not in lines.get("speed", "")
  assert {"training", "step"} <= lines.keys() or "damaged" in lines
  if name != "checkpoints/007":
    assert lines["checkpoint"].startswith("step 20")


def test_a_torn_evaluation_does_not_hide_the_one_before(workdir):
  with (workdir / "metrics.jsonl").open("a") as file:
    file.write('\n{"step": 40, "time": 1, "eval/openmoji/zeroshot_retr')
  assert shown(workdir)["evaluation"].startswith("step 20")


def test_names_are_those_that_training_writes():
  assert status._METRICS == metrics.FILE
  assert status._CHECKPOINTS == checkpoint.DIRECTORY
  assert status._COMPLETE == checkpoint.COMPLETE
