"""The list-wise loss as a small C++ kernel, for CPUs that have a C++ compiler. Optional.

XLA's CPU sort compares one element at a time, so the loss would take longer than the
PyTorch original. `listwise.cc` is compiled once, in about 5 s, into the user's cache.
"""

import ctypes
import functools
import hashlib
import logging
import os
import pathlib
import platform
import shutil
import subprocess
import tempfile
from typing import Literal

import jax
import jax.numpy as jnp
import jaxlib
from jaxtyping import Array, Bool, Float

from rankclip_jax.losses import manual

Backend = Literal["native"]

_SOURCE = pathlib.Path(__file__).with_name("listwise.cc")
_TARGET = "rankclip_listwise"
# Fast-math lets exp and log be vectorised; nothing in the kernel is infinite by design.
# It is kept from the linker, which would make denormals zero in the whole process.
_COMPILE = ("-O3", "-march=native", "-ffast-math", "-std=c++17", "-fPIC", "-c")
_LINK = ("-shared",)

log = logging.getLogger(__name__)


@functools.cache
def available() -> bool:
  """Whether the kernel is registered with XLA; compiles it the first time."""
  compiler = os.environ.get("CXX") or shutil.which("c++")
  if not compiler:
    log.info("No C++ compiler found: the ranking loss uses XLA's sort, about 3x slower.")
    return False
  try:
    library = ctypes.CDLL(str(_build(compiler)))
  except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
    reason = getattr(error, "stderr", None) or error
    log.warning("listwise.cc did not compile, so XLA's sort is used: %s", reason)
    return False
  capsule = jax.ffi.pycapsule(library.RankclipListwise)
  jax.ffi.register_ffi_target(_TARGET, capsule, platform="cpu")
  return True


def nll_and_gradient(
  scores: Float[Array, "rows length"],
  reference: Float[Array, "rows length"],
  mu: Float[Array, " length"],
  where: Bool[Array, "rows length"] | None = None,
) -> tuple[Float[Array, " rows"], Float[Array, "rows length"]]:
  """As `listwise.nll_and_gradient`, by the exact float32 order, for any length."""
  if not available():
    raise ValueError(
      'order="native" needs a C++ compiler (c++ on the path, or $CXX), and found none '
      'that compiles listwise.cc; use order="auto".'
    )
  rows, length = scores.shape
  count = jnp.full(rows, length, jnp.int32)
  if where is not None:
    count = where.sum(-1, dtype=jnp.int32)
    reference = jnp.where(where, reference, -jnp.inf)
  mu, count = manual.varying((mu, count), manual.axes_of(scores))
  call = jax.ffi.ffi_call(_TARGET, (jax.typeof(scores[:, 0]), jax.typeof(scores)))
  nll, gradient = call(scores, reference, mu, count)
  return nll, gradient


def _build(compiler: str) -> pathlib.Path:
  """The compiled library, named by everything that it depends on."""
  include = jax.ffi.include_dir()
  made_of = (_SOURCE.read_text(), _COMPILE, _LINK, compiler, jaxlib.__version__, _cpu())
  name = hashlib.sha256(repr(made_of).encode()).hexdigest()[:16]
  cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
  path = cache / "rankclip_jax" / f"listwise-{name}.so"
  if not path.exists():
    path.parent.mkdir(parents=True, exist_ok=True)
    log.info("Compiling %s into %s (once).", _SOURCE.name, path)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
      parts, made = (str(pathlib.Path(folder, f"listwise.{x}")) for x in ("o", "so"))
      for command in (
        [compiler, *_COMPILE, f"-I{include}", str(_SOURCE), "-o", parts],
        [compiler, *_LINK, parts, "-o", made],
      ):
        subprocess.run(command, check=True, capture_output=True, text=True)
      # Several processes may build at once; the last one wins.
      pathlib.Path(made).replace(path)
  return path


def _cpu() -> str:
  """-march=native binds a library to a kind of CPU, and a cache may be shared by many."""
  try:
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    return next(x for x in lines if x.startswith(("flags", "Features")))
  except (OSError, StopIteration):
    return platform.processor()
