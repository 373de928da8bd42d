"""metrics.jsonl is the truth; TensorBoard mirrors it."""

import contextlib
import json
import resource

from tensorboardX.proto import event_pb2

from rankclip_jax import metrics


def lines(workdir):
  text = (workdir / metrics.FILE).read_text()
  return [json.loads(line) for line in text.splitlines()]


def scalars(folder) -> dict[tuple[str, int], float]:
  """What TensorBoard's files of a folder hold, by name and step."""
  found = {}
  for path in folder.iterdir():
    data, at = path.read_bytes(), 0
    while at < len(data):  # TFRecord: length, its checksum, the event, its checksum
      length = int.from_bytes(data[at : at + 8], "little")
      event = event_pb2.Event.FromString(data[at + 12 : at + 12 + length])
      at += 16 + length
      found |= {(v.tag, event.step): v.simple_value for v in event.summary.value}
  return found


def test_a_line_a_step_and_null_for_what_is_not_finite(tmp_path):
  log = metrics.MetricsLog(tmp_path)
  log.write(1, {"train/loss": 2.5, "bad": float("nan"), "none": None})
  assert [{k: v for k, v in line.items() if k != "time"} for line in lines(tmp_path)] == [
    {"step": 1, "train/loss": 2.5, "bad": None, "none": None}
  ]
  log.close()


def test_resuming_drops_what_lies_beyond_and_a_torn_line(tmp_path):
  log = metrics.MetricsLog(tmp_path)
  for step in range(1, 6):
    log.write(step, {"train/loss": float(step)})
  log.close()
  with (tmp_path / metrics.FILE).open("a") as file:
    file.write('{"step": 6, "train/lo')
  log = metrics.MetricsLog(tmp_path, step=3)
  log.write(4, {"train/loss": 40.0})
  log.close()
  assert [(x["step"], x["train/loss"]) for x in lines(tmp_path)] == [
    (1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0),
  ]  # fmt: skip


def test_damaged_lines_cost_none_of_the_others(tmp_path):
  log = metrics.MetricsLog(tmp_path)
  for step in range(1, 5):
    log.write(step, {"train/loss": float(step)})
  log.close()
  path = tmp_path / metrics.FILE
  first, second, *rest = path.read_bytes().splitlines(keepends=True)
  torn = [second[:20], b"\n", b'{"a": 1}\n', b"[]\n", b"\xff\xfe\n"]
  path.write_bytes(b"".join([first, *torn, *rest]))
  metrics.MetricsLog(tmp_path, step=4).close()
  assert [x["step"] for x in lines(tmp_path)] == [1, 3, 4]


def test_a_new_run_in_an_old_folder_starts_empty(tmp_path):
  first = metrics.MetricsLog(tmp_path)
  first.write(1, {"a": 1.0})
  first.close()
  metrics.MetricsLog(tmp_path, step=0).close()
  assert lines(tmp_path) == []


def test_tensorboard_holds_the_same_values(tmp_path):
  log = metrics.MetricsLog(tmp_path)
  log.write(7, {"eval/recall@1": 0.25})
  log.close()
  assert scalars(tmp_path / "tensorboard") == {("eval/recall_at_1", 7): 0.25}


def test_a_board_alone_is_made_when_it_is_written_to(tmp_path):
  with metrics.Board(tmp_path / "board") as board:
    assert not (tmp_path / "board").exists()
    board.write(3, {"a@5": 0.5, "none": None, "bad": float("inf")})
  assert scalars(tmp_path / "board") == {("a_at_5", 3): 0.5}


@contextlib.contextmanager
def full(size):
  """A limit on the size of files stands for a full disk."""
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_loses_no_line_and_stops_nobody(tmp_path, caplog):
  log = metrics.MetricsLog(tmp_path)
  log.write(1, {"a": 1.0})
  path = tmp_path / metrics.FILE
  with full(path.stat().st_size + 7):  # a part of a line still fits
    for step in range(2, 50):
      log.write(step, {"a": float(step)})
  log.write(50, {"a": 50.0})
  log.close()
  assert [(x["step"], x["a"]) for x in lines(tmp_path)] == [
    (step, float(step)) for step in range(1, 51)
  ]
  assert caplog.text.count("cannot be written to (File too large)") == 1
  assert caplog.text.count("TensorBoard gets no more numbers: File too large.") == 1


def test_lines_that_are_lost_are_counted(tmp_path, caplog):
  log = metrics.MetricsLog(tmp_path)
  with full(0):
    log.write(1, {"a": 1.0})
    log.write(2, {"a": 2.0})
    log.close()
  assert "2 lines of metrics could not be written" in caplog.text


def test_mirrors_are_told_what_the_file_says(tmp_path):
  class Told(list):
    def write(self, step, values):
      self.append((step, values))

    def close(self):
      self.append("closed")

  told = Told()
  log = metrics.MetricsLog(tmp_path, mirrors=[told])
  log.write(3, {"a": 1.0, "b": float("nan")})
  log.close()
  assert told == [(3, {"a": 1.0, "b": None}), "closed"]
