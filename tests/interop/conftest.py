"""Small models of the peers, for every test of what travels between them and us."""

import dataclasses
from collections.abc import Callable

import pytest


@dataclasses.dataclass(frozen=True)
class Peers:
  """Builds peers' models with random weights, and runs them and ours."""

  open_clip: Callable
  transformers: Callable
  ours: Callable
  theirs: Callable
  assert_same: Callable


@pytest.fixture(scope="session")
def peer() -> Peers:
  import parity

  return Peers(
    parity.small_open_clip,
    parity.small_transformers,
    parity.ours,
    parity.theirs,
    parity.assert_same,
  )
