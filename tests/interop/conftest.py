"""Small models of the peers, for every test of what travels between them and us."""

import dataclasses
import pathlib
import shutil
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


@pytest.fixture(scope="session")
def open_clip_folder(tmp_path_factory, peer) -> pathlib.Path:
  import folders

  return folders.save_open_clip(tmp_path_factory.mktemp("x") / "vit", *peer.open_clip())


@pytest.fixture(scope="session")
def transformers_folder(tmp_path_factory, peer) -> pathlib.Path:
  folder = tmp_path_factory.mktemp("x") / "clip"
  peer.transformers().save_pretrained(folder)
  return folder


@pytest.fixture
def copy(tmp_path):
  """A folder that a test may damage."""
  return lambda folder: pathlib.Path(shutil.copytree(folder, tmp_path / "copy"))
