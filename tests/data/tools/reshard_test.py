import csv
import fcntl
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from rankclip_jax.data.array_record_source import ArrayRecordSource
from rankclip_jax.data.source import Example
from rankclip_jax.data.tar_source import TarSource
from rankclip_jax.data.tools import reshard, workers
from rankclip_jax.data.tools.shards import Plan
from tests.data.pictures import encoded, photograph
from tests.data.tools.stub import Slow, Stub, bad

ROOT = pathlib.Path(__file__).parents[3]
SMALL, LARGE = encoded(photograph(40, 50)), encoded(photograph(120, 90))


def pairs(count: int) -> list:
  """Examples of which every seventh is bad, every third is large, some have two captions,
  and neighbours share a key."""
  found = []
  for i in range(count):
    if i % 7 == 6:
      found.append(bad(f"bad {i}", "missing picture"))
      continue
    captions = (f"caption {i}", f"Wörter {i}") if i % 2 else (f"caption {i}",)
    found.append(Example(f"a/k{i // 2}.jpg", LARGE if i % 3 else SMALL, captions))
  return found


def plan(folder, kind="array_record", examples=23, per_shard=5, size=64):
  folder.mkdir(exist_ok=True)
  return Plan(folder, kind, size, 90, per_shard, examples)


def contents(folder: pathlib.Path) -> dict[str, bytes]:
  """Every file but the lock and indices of tars."""
  return {
    path.name: path.read_bytes()
    for path in sorted(folder.iterdir())
    if path.name != ".lock" and not path.name.endswith(".index")
  }


def test_examples_keep_their_order_captions_and_keys(tmp_path):
  source = Stub(pairs(23))
  workers.run(source, plan(tmp_path), 1)
  assert len(list(tmp_path.glob("*.array_record"))) == 5
  found = ArrayRecordSource(f"{tmp_path}/*.array_record")
  good = [e for e in source.outcomes if isinstance(e, Example)]
  assert len(found) == len(good)
  for index, wanted in enumerate(good):
    assert found[index].key == wanted.key
    assert found[index].captions == wanted.captions
    if wanted.image == SMALL:
      assert found[index].image == SMALL
    else:
      assert len(found[index].image) < len(LARGE)


def test_tars_are_laid_out_as_img2dataset_does(tmp_path):
  source = Stub(pairs(23))
  workers.run(source, plan(tmp_path, "tar"), 1)
  good = [e for e in source.outcomes if isinstance(e, Example)]
  first, every = (
    TarSource(f"{tmp_path}/{{00000..00004}}.tar", strict=True, caption_key=key)
    for key in ("", "caption")
  )
  assert len(first) == len(good)
  for index, wanted in enumerate(good):
    assert first[index].captions == wanted.captions[:1]
    assert every[index].captions == wanted.captions
  assert [first[i].key for i in (0, 5, 6)] == ["000000000", "000010000", "000010002"]
  stats = json.loads((tmp_path / "00001_stats.json").read_text())
  assert (stats["count"], stats["successes"]) == (5, 4)
  assert stats["status_dict"] == {"success": 4, "missing picture": 1}


@pytest.mark.parametrize("kind", ["array_record", "tar"])
def test_what_failed_in_the_middle_goes_on_to_the_same_end(tmp_path, kind):
  whole, parts = plan(tmp_path / "whole", kind), plan(tmp_path / "parts", kind)
  workers.run(Stub(pairs(23)), whole, 1)
  broken = Stub(pairs(23))
  broken.outcomes[12] = OSError("the disk is gone")
  with pytest.raises(OSError, match="the disk is gone"):
    workers.run(broken, parts, 1)
  complete = [parts.stats(shard) is not None for shard in range(len(parts))]
  assert complete == [True, True, False, False, False]
  assert not [name for name in contents(parts.output) if name.endswith(".tmp")]
  untouched = (parts.output / f"00000.{kind}").stat().st_mtime_ns
  workers.run(Stub(pairs(23)), parts, 1)
  assert contents(parts.output) == contents(whole.output)
  assert (parts.output / f"00000.{kind}").stat().st_mtime_ns == untouched


def test_complete_shards_are_not_read_again(tmp_path):
  workers.run(Stub(pairs(23)), plan(tmp_path), 1)
  workers.run(Stub([OSError("read again")] * 23), plan(tmp_path), 1)


@pytest.mark.parametrize("kind", ["array_record", "tar"])
def test_a_shard_that_was_cut_or_is_gone_is_written_again(tmp_path, kind):
  workers.run(Stub(pairs(23)), plan(tmp_path, kind), 1)
  wanted = contents(tmp_path)
  cut = tmp_path / f"00001.{kind}"
  cut.write_bytes(cut.read_bytes()[:-1000])
  (tmp_path / f"00002.{kind}").unlink()
  (tmp_path / "00003_stats.json").write_text("{")
  workers.run(Stub(pairs(23)), plan(tmp_path, kind), 1)
  assert contents(tmp_path) == wanted


def test_a_shard_of_bad_examples_has_no_file_and_is_complete(tmp_path):
  source = Stub([bad(str(i), "missing picture") for i in range(5)] + pairs(6))
  workers.run(source, plan(tmp_path, examples=11), 1)
  names = sorted(path.name for path in tmp_path.glob("*.array_record"))
  assert names == ["00001.array_record", "00002.array_record"]
  workers.run(Stub([OSError("read again")] * 11), plan(tmp_path, examples=11), 1)


def test_captions_that_are_empty_are_left_out(tmp_path):
  source = Stub(
    [
      Example("a", SMALL, ("", "a cat", "&nbsp;")),
      Example("b", SMALL, ("  ",)),
      Example("c", SMALL, ()),
      Example("d", SMALL, ("half \ud83d",)),
    ]
  )
  workers.run(source, plan(tmp_path, examples=4), 1)
  found = ArrayRecordSource(f"{tmp_path}/*.array_record")
  assert [found[i].captions for i in range(len(found))] == [("a cat",)]
  stats = json.loads((tmp_path / "00000_stats.json").read_text())
  reasons = [line["reason"] for line in stats["bad_examples"]]
  assert reasons == ["empty caption", "missing caption", "undecodable caption"]


def test_names_sort_as_shards_do(tmp_path):
  many = Plan(tmp_path, "tar", 64, 90, 100_000, 10**10 * 2)
  assert len(many) == 200_000
  assert (many.name(0), many.name(199_999)) == ("000000", "199999")
  assert many.key(100_001) == "00000100001"


def write_csv(folder: pathlib.Path, count: int, data: bytes = LARGE) -> str:
  """Rows that share a picture; every tenth names one that is missing."""
  folder.mkdir(exist_ok=True)
  (folder / "cat.jpg").write_bytes(data)
  with (folder / "pairs.csv").open("w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(["image", "caption", "other"])
    for i in range(count):
      name = "cat.jpg" if i % 10 else f"missing {i}.jpg"
      writer.writerow([name, f"caption {i}", f"other {i}"])
  return str(folder / "pairs.csv")


def command(spec: str, output: pathlib.Path, *options: str) -> list[str]:
  return [spec, f"--output={output}", "--per-shard=6", "--size=64", *options]


def test_the_command_lists_bad_examples_and_says_what_it_wrote(tmp_path, capsys):
  spec, out = write_csv(tmp_path / "in", 30), tmp_path / "out"
  for _ in range(2):  # the second time there is nothing to do
    assert reshard.main(command(spec, out, "--workers=1")) == 0
    lines = (out / "bad_examples.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    assert [line["index"] for line in found] == [0, 10, 20]
    assert {line["reason"] for line in found} == {"missing picture"}
    text = capsys.readouterr().out
    assert text.startswith("Wrote 27 of 30 examples (3 bad ones left out, listed in ")
    assert text.count("\n") == 1


@pytest.mark.parametrize(
  "options, words",
  [
    (["--size=32"], "size was 64, is now 32"),
    (["--quality=80"], "quality was 90, is now 80"),
    (["--to=tar"], "to was 'array_record', is now 'tar'"),
    (["--caption-key=other"], "source caption_key was '', is now 'other'"),
    (["--per-shard=7"], "per_shard was 6, is now 7"),
  ],
)
def test_other_options_are_refused(tmp_path, options, words):
  spec, out = write_csv(tmp_path / "in", 9), tmp_path / "out"
  reshard.main(command(spec, out, "--workers=1"))
  before = contents(out)
  with pytest.raises(ValueError, match=re.escape(words)):
    reshard.main(command(spec, out, "--workers=1", *options))
  assert contents(out) == before


def test_other_data_is_refused(tmp_path):
  spec, out = write_csv(tmp_path / "in", 9), tmp_path / "out"
  reshard.main(command(spec, out, "--workers=1"))
  other = write_csv(tmp_path / "other", 9)
  with pytest.raises(ValueError, match="spec was"):
    reshard.main(command(other, out, "--workers=1"))
  write_csv(tmp_path / "in", 10)
  with pytest.raises(ValueError, match="source examples was 9, is now 10"):
    reshard.main(command(spec, out, "--workers=1"))
  write_csv(tmp_path / "in", 9)
  os.utime(spec, (1, 1))
  with pytest.raises(ValueError, match="source version was"):
    reshard.main(command(spec, out, "--workers=1"))


def test_a_folder_of_other_things_is_left_alone(tmp_path):
  spec = write_csv(tmp_path / "in", 9)
  with pytest.raises(ValueError, match=r"is not of reshard, such as cat\.jpg"):
    reshard.main(command(spec, tmp_path / "in"))
  (tmp_path / "out").mkdir()
  (tmp_path / "out/manifest.json").write_text("{")
  with pytest.raises(ValueError, match="damaged"):
    reshard.main(command(spec, tmp_path / "out"))


def test_two_processes_do_not_write_to_one_folder(tmp_path):
  spec, out = write_csv(tmp_path / "in", 9), tmp_path / "out"
  out.mkdir()
  with (out / ".lock").open("w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    with pytest.raises(ValueError, match="Another process"):
      reshard.main(command(spec, out))
  assert reshard.main(command(spec, out, "--workers=1")) == 0


def test_nothing_but_bad_examples_is_an_error(tmp_path):
  spec = write_csv(tmp_path / "in", 1)
  with pytest.raises(ValueError, match="None of 1 examples"):
    reshard.main(command(spec, tmp_path / "out", "--workers=1"))


@pytest.mark.parametrize(
  "option", ["--size=0", "--quality=101", "--per-shard=0", "--workers=0"]
)
def test_impossible_numbers_are_refused(tmp_path, option):
  with pytest.raises(ValueError, match=r"must be from 1 to"):
    reshard.main(["a.csv", f"--output={tmp_path}", option])
  with pytest.raises(ValueError, match="of this machine"):
    reshard.main(["a.csv", "--output=gs://bucket/folder"])


def test_an_error_of_one_process_ends_the_others_soon(tmp_path):
  source = Slow(Example("k", SMALL, ("a cat",)), 600, str(tmp_path / "trace"))
  with pytest.raises(OSError, match="the disk is gone"):
    workers.run(source, plan(tmp_path / "out", examples=600, per_shard=300), 2)
  trace = tmp_path / "trace"
  assert not trace.exists() or trace.stat().st_size < 300
  assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
  "kind, sent", [("array_record", signal.SIGKILL), ("tar", signal.SIGINT)]
)
def test_a_run_ended_in_the_middle_goes_on_to_the_same_end(tmp_path, kind, sent):
  # So many shards that they are not all there before the signal is, on any machine.
  spec = write_csv(tmp_path / "in", 480, encoded(photograph(480, 640)))
  begun = command(spec, tmp_path / "out", f"--to={kind}", "--workers=2")
  process = subprocess.Popen(
    [sys.executable, "-m", "rankclip_jax.data", "reshard", *begun],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    start_new_session=True,
  )
  shards = lambda: list((tmp_path / "out").glob("*_stats.json"))
  while len(shards()) < 3 and process.poll() is None:
    time.sleep(0.002)
  process.send_signal(sent)
  # The output ends with the last process that holds it: no worker stays.
  output, _ = process.communicate(timeout=60)
  assert 3 <= len(shards()) < 80
  if sent == signal.SIGINT:
    assert process.returncode == 130
    assert b"the same command goes on" in output
    assert b"Traceback" not in output
  for folder in ("out", "whole"):
    argv = command(spec, tmp_path / folder, f"--to={kind}", "--workers=1")
    assert reshard.main(argv) == 0
  assert contents(tmp_path / "out") == contents(tmp_path / "whole")
