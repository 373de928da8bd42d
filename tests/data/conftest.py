"""Fixtures of tests of data."""

import uuid

import fsspec
import pytest


@pytest.fixture
def remote():
  """A folder of fsspec's memory file system, removed in the end."""
  system, path = fsspec.filesystem("memory"), f"memory://{uuid.uuid4().hex}"
  system.mkdir(path)
  yield path
  system.rm(path, recursive=True)
