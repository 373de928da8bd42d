"""Test set-up: eight simulated CPU devices, strict rank promotion, parsed absl flags."""

import atexit
import importlib.metadata
import logging
import os
import shutil
import tempfile

# Must be set before jax is imported anywhere.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
# Small arrays, many programs: compiling is most of what these tests wait for. The
# processes that tests start inherit this.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
# jax 0.10 has an older way to emit fusions beside its own, and it takes half of the time.
if importlib.metadata.version("jax").startswith("0.10."):
  os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false")
# The same small models are trained in many tests and processes: each is compiled once.
# pytest-xdist's workers inherit the folder.
if "PYTEST_XDIST_WORKER" not in os.environ:
  _CACHE = tempfile.mkdtemp(prefix="jax_cache_")
  atexit.register(shutil.rmtree, _CACHE, True)
  os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import absl.logging
import jax
import pytest
from absl import flags

jax.config.update("jax_numpy_rank_promotion", "raise")
# grain's worker threads read absl flags, which raise unless they have been parsed.
flags.FLAGS.mark_as_parsed()

_VERBOSITY = absl.logging.get_verbosity()


@pytest.fixture(autouse=True)
def _log_levels():
  """What others made audible, as `launcher.run` does, is not heard in this test.

  Fixtures of a module run before this one, so that what it finds is no measure.
  """
  logging.getLogger("rankclip_jax").setLevel(logging.NOTSET)
  absl.logging.set_verbosity(_VERBOSITY)
