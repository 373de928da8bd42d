"""The kernel's compilation and what surrounds it; listwise_test.py has its numbers."""

import logging
import os
import pathlib
import re
import shutil
import stat
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from rankclip_jax.losses import blocked, native, ranking
from rankclip_jax.losses.objective import PRESETS
from tests.losses import oracle

ROOT = pathlib.Path(__file__).parents[2]
# Ranks one list with the kernel, and then halves the smallest numbers.
CHILD = """
import jax.numpy as jnp, numpy as np
from rankclip_jax.losses import native
assert native.available()
x = jnp.arange(3.0)[None]
nll, _ = native.nll_and_gradient(x, x, jnp.ones(3))
half = np.full(64, 1e-40, np.float32) * np.float32(0.5)
print(round(float(nll[0]), 4), (half > 0).all(), np.float32(1e-40) * np.float32(1) > 0)
"""


def script(path, text):
  path.write_text(f"#!/bin/sh\n{text}\n")
  path.chmod(path.stat().st_mode | stat.S_IXUSR)
  return str(path)


def test_it_is_built_once_and_leaves_denormals_alone(tmp_path):
  """The linker's part of -ffast-math would flush them to zero in the whole process."""
  calls = tmp_path / "calls"
  compiler = script(
    tmp_path / "c++", f'echo "$@" >> {calls}\nexec {shutil.which("c++")} "$@"'
  )
  environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache"), "CXX": compiler}
  for _ in range(2):
    child = subprocess.run(
      [sys.executable, "-c", CHILD],
      cwd=ROOT,
      env=environment,
      capture_output=True,
      text=True,
      timeout=120,
      check=False,
    )
    assert child.returncode == 0, child.stderr
    # ln(e^2 + e + 1) - 2 + ln(e + 1) - 1
    assert child.stdout.split() == ["0.7209", "True", "True"]
    compile_call, link_call = calls.read_text().splitlines()
    assert "-ffast-math" in compile_call
    assert "-ffast-math" not in link_call
  (built,) = (tmp_path / "cache" / "rankclip_jax").iterdir()
  assert built.suffix == ".so"


@pytest.fixture
def fresh(monkeypatch, tmp_path):
  """As if nothing had been built or looked for yet."""
  monkeypatch.setattr(native, "available", native.available.__wrapped__)
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  return monkeypatch


def choose():
  return blocked.choose(
    blocked.AUTOMATIC,
    PRESETS["rankclip"],
    rows=2048,
    length=2048,
    dim=8,
    platform="cpu",
  ).order


def test_without_a_compiler_xla_sorts(fresh, tmp_path, caplog):
  fresh.delenv("CXX", raising=False)
  fresh.setenv("PATH", str(tmp_path))
  with caplog.at_level(logging.INFO, logger=native.__name__):
    assert not native.available()
  assert "No C++ compiler found" in caplog.text
  assert choose() == "packed"
  x = jnp.ones((2, 8))
  with pytest.raises(ValueError, match=r'needs a C\+\+ compiler .*; use order="auto"'):
    blocked.evaluate(
      PRESETS["rankclip"],
      x,
      x,
      log_scale=jnp.float32(0.0),
      tie_key=jax.random.key(0),
      blocking=blocked.Blocking(order="native"),
    )


@pytest.mark.parametrize(
  "name, text, reason",
  [
    ("cc", "echo 'listwise.cc:7: no such header' >&2; exit 1", "7: no such header"),
    ("missing", None, "No such file or directory: .*missing"),
    ("lazy", "for last; do :; done; echo nothing > $last", "file too short|invalid ELF"),
  ],
)
def test_a_compiler_that_fails_says_why(fresh, tmp_path, caplog, name, text, reason):
  path = tmp_path / name
  fresh.setenv("CXX", str(path) if text is None else script(path, text))
  assert not native.available()
  (record,) = caplog.records
  assert record.levelno == logging.WARNING
  message = record.getMessage()
  assert message.startswith("listwise.cc did not compile, so XLA's sort is used: ")
  assert re.search(reason, message)
  assert choose() == "packed"
  left = [x for x in (tmp_path / "cache").rglob("*") if x.suffix != ".so" and x.is_file()]
  assert not left


def test_a_user_without_a_home_gets_xlas_sort(fresh, caplog):
  """As in containers that run as a user that the image does not know."""
  fresh.delenv("XDG_CACHE_HOME")
  fresh.setattr(pathlib.Path, "home", raises(RuntimeError("Could not determine home")))
  assert not native.available()
  assert "so XLA's sort is used: Could not determine home" in caplog.text


def raises(error):
  def call(*_):
    raise error

  return call


@pytest.mark.parametrize("rows", [1, 7, 8, 9, 300])
def test_any_number_of_rows(rows):
  """Threads take 8 rows at a time."""
  rng = np.random.default_rng(rows)
  scores, reference = rng.normal(scale=3.0, size=(2, rows, 5)).astype(np.float32)
  mu = ranking.position_weights(5, decay="log")
  nll, gradient = native.nll_and_gradient(jnp.array(scores), jnp.array(reference), mu)
  for i in range(rows):
    expected = oracle.nll_and_gradient(scores[i], reference[i], decay="log")
    np.testing.assert_allclose(nll[i], expected[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradient[i], expected[1], atol=1e-6)


def test_negative_zero_and_zero_are_tied():
  """Fast-math let the compiler take one for the other, and then forget to do so."""
  scores = jnp.arange(4.0)[None]
  zeros = jnp.array([[0.0, -0.0, 0.0, -0.0]])
  nll, gradient = native.nll_and_gradient(scores, zeros, jnp.ones(4))
  expected = oracle.nll_and_gradient(scores[0], np.zeros(4))
  np.testing.assert_allclose(nll[0], expected[0], rtol=1e-6)
  np.testing.assert_allclose(gradient[0], expected[1], atol=1e-6)


def test_equal_lists_cost_the_same_on_every_thread():
  """Scratch memory that a thread uses again holds nothing of the list before."""
  rng = np.random.default_rng(0)
  lists = rng.normal(size=(2, 3, 50)).astype(np.float32)
  scores, reference = (jnp.array(np.tile(x, (100, 1))) for x in lists)
  nll, gradient = native.nll_and_gradient(scores, reference, jnp.ones(50))
  np.testing.assert_array_equal(nll, np.tile(nll[:3], 100))
  np.testing.assert_array_equal(gradient, np.tile(gradient[:3], (100, 1)))


def test_eight_devices_at_once():
  """More calls at a time than the pool has threads, and again after a collective."""
  mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

  def ranked(scores, reference):
    mu = jnp.ones(scores.shape[1])
    total = jnp.float32(0.0)
    for _ in range(3):
      nll, gradient = native.nll_and_gradient(scores, reference, mu)
      total += jax.lax.psum(jnp.sum(nll), "data")
      scores = scores - 0.1 * gradient
    return total, scores

  rows = P("data")
  run = jax.jit(
    jax.shard_map(ranked, mesh=mesh, in_specs=(rows, rows), out_specs=(P(), rows))
  )
  rng = np.random.default_rng(0)
  scores, reference = rng.normal(size=(2, 8 * 40, 64)).astype(np.float32)
  total, moved = [run(scores, reference) for _ in range(5)][-1]
  expected = 0.0
  for p, q, last in zip(scores.astype(float), reference, moved, strict=True):
    for _ in range(3):
      nll, gradient = oracle.nll_and_gradient(p, q)
      expected += nll
      p -= 0.1 * gradient
    np.testing.assert_allclose(last, p, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(total, expected, rtol=1e-5)
