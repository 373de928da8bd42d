"""Reading metrics.jsonl: what is tolerated, what is refused, and in which words."""

import math
from pathlib import Path

import numpy as np
import pytest

from rankclip_jax.report import logged as logs


def _write_metrics(folder: Path, content: bytes) -> Path:
  path = folder / "metrics.jsonl"
  path.write_bytes(content)
  return path


@pytest.mark.parametrize(
  "tail",
  [
    b"",
    b'{"step": 3, "lo',
    b'{"step": 3, "lo\n',
    '{"step": 3, "é'.encode()[:-1],
    b"\n\n",
  ],
)
def test_metrics_end_may_be_torn(tmp_path, tail):
  whole = b'{"step": 1, "time": 10, "loss": 5}\n{"step": 2, "time": 12.5, "loss": 4}\n'
  curves, logged = logs.read_metrics(_write_metrics(tmp_path, whole + tail))
  assert list(curves) == ["loss"]
  assert curves["loss"].steps.tolist() == [1, 2]
  assert curves["loss"].values.tolist() == [5.0, 4.0]
  assert logged == (10, 12.5)


@pytest.mark.parametrize(
  "broken", [b'{"step": 2, "lo', b"", b"[1]", b'{"loss": 1}', b'{"step": 2, "a": "b"}']
)
def test_broken_line_in_the_middle_is_named(tmp_path, broken):
  content = b'{"step": 1, "loss": 5}\n' + broken + b'\n{"step": 3, "loss": 4}\n'
  path = _write_metrics(tmp_path, content)
  with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2: "):
    logs.read_metrics(path)


def test_step_logged_twice_keeps_its_last_value_and_null_is_a_gap(tmp_path):
  content = (
    b'{"step": 1, "a": 1}\n{"step": 4, "a": 2}\n'
    b'{"step": 2, "a": null, "b": 7}\n{"step": 4, "a": 3}\n'
  )
  curves, logged = logs.read_metrics(_write_metrics(tmp_path, content))
  assert curves["a"].steps.tolist() == [1, 2, 4]
  np.testing.assert_array_equal(curves["a"].values, [1, math.nan, 3])
  assert curves["b"].steps.tolist() == [2]
  assert logged is None
