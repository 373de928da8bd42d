"""Lists of thousands against float64, where float32's own rounding begins to tell."""

import dataclasses
import functools
import math
from typing import Any

import jax
import numpy as np
import pytest

from rankclip_jax.losses import blocked
from rankclip_jax.losses.objective import PRESETS
from tests.losses import oracle

N = 2047  # no power of two, and no multiple of a chunk
OBJECTIVE = dataclasses.replace(PRESETS["rankclip_paper"], ties="index")


def test_the_oracle_of_long_lists_is_the_loop():
  rng = np.random.default_rng(0)
  place = rng.permutation(40)
  for decay in ("none", "log"):
    scores, reference = 100.0 * rng.uniform(-1, 1, 40), rng.integers(0, 9, 40)
    options: dict[str, Any] = dict(decay=decay, place=place)
    expected = oracle.nll_and_gradient(scores, reference, **options)
    actual = oracle.nll_and_gradient_of_long(scores, reference, **options)
    oracle.assert_close(actual, expected, 1e-12)


@functools.cache
def batch(scale):
  """Embeddings, a temperature, and the loss, terms and gradients in float64."""
  image, text = oracle.embeddings(np.random.default_rng(0), N, 64, noise=1.2)
  params = {"image": image, "text": text, "log_scale": np.float32(math.log(scale))}
  return params, oracle.objective(OBJECTIVE, params, long=True)


@pytest.mark.parametrize("order", ["exact", "native", "packed"])
@pytest.mark.parametrize("scale", [14.3, 100.0])
def test_equals_float64(order, scale):
  params, (loss, terms, gradients) = batch(scale)
  blocking = blocked.Blocking(chunk_rows=256, order=order)

  @jax.jit
  @functools.partial(jax.value_and_grad, has_aux=True)
  def run(params):
    return blocked.evaluate(OBJECTIVE, **params, blocking=blocking)

  actual, of_params = run(params)
  oracle.assert_close(actual, (loss, terms))
  for name, expected in gradients.items():
    off = np.linalg.norm(of_params[name] - expected)
    assert off <= 1e-5 * np.linalg.norm(expected), name
