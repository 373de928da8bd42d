"""Tables of benchmarks/overhead.py from numbers whose answer is known."""

from benchmarks import overhead


def test_what_is_compiled_first_is_no_part_of_the_start():
  start = {
    "imports": (3.0, 2.0),
    overhead.BEFORE_COMPILING: (1.0, 0.5),
    "late": (9.0, 9.0),
  }
  slower = {name: (2 * wall, processors) for name, (wall, processors) in start.items()}
  table = overhead.table_of_starts([start, slower, start])
  assert "| imports | 3.00 | 3.00 | 6.00 | 2.00 |" in table
  assert "(asked for: 10) | 4.00 | 4.00 | 8.00 | 2.50 |" in table
  assert "| then: late | 9.00 | 9.00 | 18.00 | 9.00 |" in table


def test_the_loop_is_compared_within_a_turn():
  found = {
    "bare": [(1.0, 0.001), (2.0, 0.001), (1.0, 0.001)],
    "memory": [(1.25, 0.011), (2.5, 0.011), (1.25, 0.011)],
    "input": [(2.0, 0.021), (4.0, 0.021), (2.0, 0.021)],
  }
  table = overhead.table_of_loops(found)
  assert "| the compiled step alone | 1000.0 |  |  | 1.0 |  |" in table
  assert "| 1250.0 | +20.0% | +20.0% to +20.0% | 11.0 | +1.0% |" in table
  assert "| 2000.0 | +50.0% | +50.0% to +50.0% | 21.0 | +2.0% |" in table
