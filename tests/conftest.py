"""Test set-up: eight simulated CPU devices, strict rank promotion, parsed absl flags."""

import os

# Must be set before jax is imported anywhere.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
# Small arrays, many programs: compiling is most of what these tests wait for. The
# processes that tests start inherit this.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import logging

import absl.logging
import jax
import pytest
from absl import flags

jax.config.update("jax_numpy_rank_promotion", "raise")
# grain's worker threads read absl flags, which raise unless they have been parsed.
flags.FLAGS.mark_as_parsed()


@pytest.fixture(autouse=True)
def _log_levels():
  """What one test makes audible, as `launcher.run` does, is not heard in the next."""
  ours, theirs = logging.getLogger("rankclip_jax"), absl.logging.get_verbosity()
  level = ours.level
  yield
  ours.setLevel(level)
  absl.logging.set_verbosity(theirs)
