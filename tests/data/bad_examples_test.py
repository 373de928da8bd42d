import concurrent.futures
import json
import pickle
import resource

import pytest

from rankclip_jax.data.bad_examples import Allowance, BadExamples, check_lost, count_lost
from rankclip_jax.data.source import BadExample, Loss, Shard


def bad(key, reason="undecodable picture", shard="a.tar"):
  return BadExample(f"{key} is damaged", key=key, reason=reason, shard=shard)


def lines(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_bad_example_has_one_line(tmp_path):
  note = BadExamples(tmp_path / "bad.jsonl")
  assert note.summary() == ""
  for key in ("1", "2", "1", "1"):
    note(bad(key))
  note(bad("1", shard="b.tar"))
  found = [(line["shard"], line["key"]) for line in lines(note.path)]
  assert found == [("a.tar", "1"), ("a.tar", "2"), ("b.tar", "1")]
  assert lines(note.path)[0] == {
    "shard": "a.tar",
    "key": "1",
    "reason": "undecodable picture",
    "detail": "1 is damaged",
  }


def test_a_run_that_goes_on_notes_nothing_twice(tmp_path):
  path = tmp_path / "bad.jsonl"
  BadExamples(path)(bad("1"))
  with path.open("a") as file:
    file.write('{"shard": "a.ta')  # a crash
  path.write_bytes(path.read_bytes() + "\u732b".encode()[:1])  # within a character
  again = BadExamples(path)
  again(bad("1"))
  again(bad("2"))
  assert [line["key"] for line in again.lines()] == ["1", "2"]
  copy = pickle.loads(pickle.dumps(again))
  copy(bad("2"))
  assert len(list(copy.lines())) == 2


def test_the_summary_is_of_all_processes(tmp_path):
  for name, keys in (("bad_examples.jsonl", "12"), ("bad_examples.1.jsonl", "23")):
    for key in keys:
      BadExamples(tmp_path / name)(bad(key))
  summary = BadExamples(tmp_path / "bad_examples.jsonl").summary()
  assert summary.startswith("3 bad examples or shards were met (3 undecodable picture")
  assert summary.endswith("all are in bad_examples.1.jsonl, bad_examples.jsonl.")


def test_a_run_that_goes_on_counts_on():
  first = Allowance(0.01, "bad.jsonl")
  first.count(990, 10)
  assert first.so_far == {"read": 1000, "bad": 10}
  again = Allowance(0.01, "bad.jsonl", first.so_far)
  with pytest.raises(ValueError, match=r"11 of 1001 examples .* allows 1.0%"):
    again.count(0, 1)


def test_threads_share_the_file(tmp_path):
  note = BadExamples(tmp_path / "bad.jsonl")
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    list(pool.map(note, [bad(str(i % 50)) for i in range(400)]))
  assert sorted(int(line["key"]) for line in lines(note.path)) == list(range(50))


def test_processes_share_the_file(tmp_path):
  note = BadExamples(tmp_path / "bad.jsonl")
  copies = [pickle.loads(pickle.dumps(note)) for _ in range(3)]
  for key in ("1", "2", "1"):
    for copy in (note, *copies):
      copy(bad(key))
  copies[0](bad("3"))
  note(bad("3"))
  assert [line["key"] for line in lines(note.path)] == ["1", "2", "3"]


def test_the_summary_counts_by_reason_and_shard(tmp_path):
  note = BadExamples(tmp_path / "bad.jsonl")
  note.lost([Loss("b.tar", "truncated shard", "ends at byte 700", 12)])
  for key in "123":
    note(bad(key))
  note(bad("4", "missing picture", "b.tar"))
  text = note.summary()
  assert "3 undecodable picture" in text
  assert "1 missing picture" in text
  assert "1 truncated shard" in text
  assert "3 in a.tar, 2 in b.tar" in text
  assert lines(note.path)[0]["count"] == 12


def test_odd_keys_are_written(tmp_path):
  note = BadExamples(tmp_path / "bad.jsonl")
  note(bad('caf\udce9/\u732b "quoted"\n'))
  (line,) = note.lines()
  assert line["key"] == 'caf\udce9/\u732b "quoted"\n'


def test_a_few_bad_examples_stop_nothing():
  allowance = Allowance(0.01, "bad.jsonl")
  allowance.count(4, 4)
  allowance.count(4, 6)
  with pytest.raises(ValueError, match=r"11 of 23 .* bad\.jsonl"):
    allowance.count(4, 1)


def test_the_share_is_of_all_that_was_read():
  allowance = Allowance(0.01, "bad.jsonl")
  for _ in range(100):
    allowance.count(99, 1)
  with pytest.raises(ValueError, match="allows 1.0%"):
    allowance.count(98, 2)


def test_none_may_mean_none():
  with pytest.raises(ValueError, match="1 of 5"):
    Allowance(0.0, "bad.jsonl").count(4, 1)


class Shards:
  """Files by their examples; `losses` name some of them."""

  def __init__(self, losses, **examples):
    self.losses = losses
    self.shards = [Shard(name, count, 0) for name, count in examples.items()]

  def __len__(self):
    return sum(shard.examples for shard in self.shards)


def test_shards_that_lost_too_much_are_refused():
  losses = [Loss("b", "truncated shard", "ends at byte 0", 20)]
  check_lost(Shards(losses, a=5000, b=0), 0.01)
  check_lost(Shards([], a=5000), 0.0)
  with pytest.raises(ValueError, match=r"^20 examples .* 40 are there, .*b: ends"):
    check_lost(Shards(losses, a=40, b=0), 0.01)


def test_shards_of_another_kind_say_nothing_of_what_was_lost():
  data = Shards([Loss("b.tar", "truncated shard", "cut")])
  data.shards = [Shard("a.tar", 100, 0), Shard("b.tar", 63, 0), Shard("c.tsv", 20000, 0)]
  assert count_lost(data) == 37
  check_lost(data, 0.01)


@pytest.mark.parametrize(
  "there, damaged, guess",
  [
    ({"a": 100, "b": 102, "c": 30}, "c", 71),
    ({"a": 100, "b": 102, "c": 101}, "c", 1),
    ({"a": 100, "b": 60}, "ab", 1 + 40),  # none is whole
  ],
)
def test_what_a_shard_lost_is_guessed_from_the_whole_ones(there, damaged, guess):
  data = Shards([Loss(name, "truncated shard", "cut") for name in damaged], **there)
  with pytest.raises(ValueError, match=f"About {guess} examples were lost"):
    check_lost(data, 0.0)


def test_a_full_disk_stops_nothing(tmp_path, caplog):
  """A limit on the size of files stands for it."""
  note = BadExamples(tmp_path / "bad.jsonl")
  note(bad("1"))
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (note.path.stat().st_size, before[1]))
  try:
    note(bad("2"))
    note(bad("3"))
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
  note(bad("4"))
  assert [line["key"] for line in lines(note.path)] == ["1", "4"]
  assert caplog.text.count("cannot be written to: File too large") == 1
