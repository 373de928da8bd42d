"""A compiler that takes long does not keep a run from stopping."""

import time

import pytest

from rankclip_jax import compiling
from rankclip_jax.stopping import Stopped


def test_a_signal_is_heard_while_it_compiles(monkeypatch):
  monkeypatch.setattr(compiling, "_compiled", lambda *_: time.sleep(20))
  began = time.monotonic()
  told = lambda: time.monotonic() - began > 0.3
  with pytest.raises(Stopped):
    compiling.compile_ahead(None, {}, told)  # pyright: ignore[reportArgumentType]
  assert time.monotonic() - began < 5


def test_what_goes_wrong_is_raised_here(monkeypatch):
  def breaking(*_):
    raise ArithmeticError("of the compiler")

  monkeypatch.setattr(compiling, "_compiled", breaking)
  with pytest.raises(ArithmeticError, match="of the compiler"):
    compiling.compile_ahead(None, {})  # pyright: ignore[reportArgumentType]
