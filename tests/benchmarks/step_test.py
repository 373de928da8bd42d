"""The pure parts of the step's benchmark: the overhead."""

import dataclasses

from benchmarks import step


def row(objective, seconds, batch=256):
  return step.Row("tiny", batch, objective, 1.0, seconds, 1e12, None, None)


def test_overhead_is_the_median_over_turns():
  clip, ranked = row("clip", [1.0, 2.0, 4.0]), row("rankclip", [1.1, 2.2, 40.0])
  other = row("clip", [9.0, 9.0, 9.0], batch=512)
  assert step.overhead(ranked, [other, clip, ranked]) == "+10.0 %"
  assert step.overhead(clip, [clip, ranked]) == "-"
  assert step.overhead(ranked, [other, ranked]) == "-"


def test_rows_survive_json():
  one = row("clip", [1.0, 2.0])
  assert step.Row(**dataclasses.asdict(one)) == one
