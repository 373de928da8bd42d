"""Runs on any number of devices and processes are one run: its numbers, its checkpoints.

Real processes on loopback.
"""

import itertools
import json
import re
import shutil
import signal
import zlib

import pytest
from running import (
  assert_close,
  final_params,
  finish,
  lines,
  losses,
  start,
  start_several,
  wait_until,
)  # fmt: skip

from rankclip_jax import launcher, plan
from rankclip_jax.config import from_config_dict

# Adam divides gradients by their own size: those that are nothing but rounding, which
# devices do differently, must not count.
SMOOTH = "--config.optim.eps=1e-3"


def whole(workdir, *flags, devices):
  finish(start(workdir, SMOOTH, *flags, devices=devices))
  return workdir


@pytest.fixture(scope="module")
def on_four(tmp_path_factory):
  return whole(tmp_path_factory.mktemp("four"), "--config.mesh.fsdp=4", devices=4)


@pytest.fixture(scope="module")
def on_eight(tmp_path_factory):
  return whole(tmp_path_factory.mktemp("eight"), devices=8)


def go_on(workdir, *flags, processes=1, **options):
  """The run until its next steps are written, stopped by SIGTERM; all that was said."""
  before = len(lines(workdir))
  running = start_several(processes, workdir, SMOOTH, *flags, **options)
  wait_until(lambda: len(lines(workdir)) >= before + 2, running[0])
  for process in running:
    process.send_signal(signal.SIGTERM)
  return [finish(p, code=launcher.EXIT_STOPPED) for p in running]


def assert_same_losses(found, expected, rel):
  """Of as many steps as were taken; returns how many those are."""
  steps = [line for line in lines(found) if "train/loss" in line]
  assert [line["step"] for line in steps] == list(range(1, len(steps) + 1))
  for line in steps:
    wanted = losses(expected)[line["step"]]
    assert line["train/loss"] == pytest.approx(wanted, rel=rel), line["step"]
  return len(steps)


def assert_same_params(found, expected):
  assert_close(final_params(found)[0], final_params(expected)[0], atol=1e-5)


def assert_rows_in_their_places(workdir, output):
  """Of the batches that `interleaved` recorded, beside those of one process."""
  cfg = from_config_dict(json.loads((workdir / "config.json").read_text()))
  p = plan.make(cfg)
  start = int(re.search(r"from step (\d+)", output)[1])
  found = [
    json.loads(line)
    for path in workdir.glob("rows.*.jsonl")
    for line in path.read_text().splitlines()
  ]
  count = max(rows["batch"] for rows in found) + 1
  each = cfg.data.batch_size // 4
  batches = [b["tokens"] for b in itertools.islice(plan.batches_of(cfg, p, start), count)]
  expected = {
    (i, first): zlib.crc32(batches[i][first : first + each].tobytes())
    for i in range(count)
    for first in range(0, cfg.data.batch_size, each)
  }
  assert {(rows["batch"], rows["first"]): rows["tokens"] for rows in found} == expected
  assert len(set(expected.values())) == len(expected) == len(found)


def results(workdir):
  """Every metric of the results on disk."""
  found = [json.loads(p.read_text()) for p in (workdir / "results").glob("*.json")]
  return {
    (r["dataset"], r["task"], name): value
    for r in found
    for name, value in r["metrics"].items()
  }


def test_two_processes_give_the_numbers_of_one_with_as_many_devices(on_four, tmp_path):
  running = start_several(2, tmp_path, SMOOTH, "--config.mesh.fsdp=4", devices=2)
  outputs = [finish(p) for p in running]
  assert "4 cpu device(s)" in outputs[0]
  assert "Mesh: data 1 x fsdp 4." in outputs[0]
  assert "step 12" not in outputs[1]  # only process 0 speaks
  assert "Mesh:" not in outputs[1]
  assert assert_same_losses(tmp_path, on_four, rel=1e-6) == 12
  assert_same_params(tmp_path, on_four)


def test_two_processes_measure_what_one_with_as_many_devices_does(on_four, tmp_path):
  """Of the same weights: two trainings' differ in the last bits, and so do some ranks."""
  workdir = tmp_path / "copy"
  shutil.copytree(on_four, workdir)
  shutil.rmtree(workdir / "results")
  flags = (SMOOTH, "--config.mode=eval", "--config.mesh.fsdp=2")
  running = start_several(2, workdir, *flags, devices=2, script="tests/interleaved.py")
  outputs = [finish(p) for p in running]
  assert "recall@1" in outputs[0]
  assert results(workdir).keys() == results(on_four).keys()
  for name, value in results(on_four).items():
    assert results(workdir)[name] == pytest.approx(value, abs=1e-6), name


def test_four_processes_then_half_the_devices_then_all(on_eight, tmp_path):
  outputs = go_on(tmp_path, processes=4, devices=2)
  assert "8 cpu device(s)" in outputs[0]
  assert assert_same_losses(tmp_path, on_eight, rel=1e-6) >= 2
  go_on(tmp_path, "--config.mesh.fsdp=4", devices=4)
  whole(tmp_path, devices=8)
  assert assert_same_losses(tmp_path, on_eight, rel=1e-5) == 12
  assert_same_params(tmp_path, on_eight)


def test_eight_devices_then_four_of_two_processes_then_sixteen(on_eight, tmp_path):
  """Neighbours of the mesh belong to different processes, see `interleaved`."""
  go_on(tmp_path, "--config.mesh.fsdp=8", devices=8)
  outputs = go_on(
    tmp_path, "--config.mesh.fsdp=2",
    processes=2, devices=2, script="tests/interleaved.py",
  )  # fmt: skip
  assert "Mesh: data 2 x fsdp 2." in outputs[0]
  assert_rows_in_their_places(tmp_path, outputs[0])
  output = finish(start(tmp_path, SMOOTH, "--config.mesh.fsdp=4", devices=16))
  assert "Mesh: data 4 x fsdp 4." in output
  assert assert_same_losses(tmp_path, on_eight, rel=1e-5) == 12
  assert_same_params(tmp_path, on_eight)
