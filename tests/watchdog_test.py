import time

from rankclip_jax.watchdog import Watchdog


def wait_for(condition):
  until = time.monotonic() + 20
  while not condition():
    assert time.monotonic() < until
    time.sleep(0.01)


def test_stacks_of_all_threads_are_written_while_nothing_moves(tmp_path):
  said, path = [], tmp_path / "stacks.0.txt"
  with Watchdog(path, 0.2, said.append) as watchdog:
    watchdog.doing("step 7")
    wait_for(lambda: len(said) >= 2)
  assert said[0].startswith("step 7 has taken ")
  assert str(path) in said[0]
  text = path.read_text()
  assert text.count("step 7 has taken") == len(said)
  assert "in wait_for" in text  # the thread that does not move
  assert "in _watch" in text


def test_progress_keeps_it_silent(tmp_path):
  said = []
  with Watchdog(tmp_path / "stacks.0.txt", 0.5, said.append) as watchdog:
    for i in range(50):
      watchdog.doing(f"step {i}")
      time.sleep(0.02)
  assert not said
  with Watchdog(tmp_path / "stacks.0.txt", 0, said.append):
    time.sleep(0.1)
  assert not list(tmp_path.iterdir())


def test_where_nothing_can_be_written_it_still_speaks(tmp_path):
  said = []
  with Watchdog(tmp_path / "none" / "stacks.txt", 0.1, said.append):
    wait_for(lambda: said)
  assert "stacks could not be written (No such file or directory)" in said[0]
