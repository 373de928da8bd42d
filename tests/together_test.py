"""Processes that end common work alike; what others say is simulated."""

import numpy as np
import pytest

from rankclip_jax import together
from rankclip_jax.stopping import Stopped


def fails():
  raise OSError("here")


def stops():
  raise Stopped


@pytest.mark.parametrize(
  "work, other, expected, message",
  [
    (fails, together._FINE, OSError, "here"),
    (fails, together._STOPPED, OSError, "here"),
    (fails, together._FAILED, OSError, "here"),
    (stops, together._FINE, Stopped, "^$"),
    (stops, together._STOPPED, Stopped, "^$"),
    (stops, together._FAILED, ValueError, "Process 1 failed"),
    (int, together._STOPPED, Stopped, "^$"),
    (int, together._FAILED, ValueError, "Process 1 failed"),
  ],
)
def test_all_end_alike(monkeypatch, work, other, expected, message):
  monkeypatch.setattr(together, "of_all", lambda own: np.array([own, other]))
  with pytest.raises(expected, match=message):
    together.together(work)
  monkeypatch.setattr(together, "of_all", lambda own: np.array([own, together._FINE]))
  assert together.together(lambda: 7) == 7
