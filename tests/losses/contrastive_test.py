"""InfoNCE, sigmoid and cyclic terms against their formulas."""

from math import exp, log

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rankclip_jax.losses import contrastive

ROWS, LENGTH = 3, 5
# A device that holds rows 1..3 of a batch of 5.
POSITIVE = jnp.array([1, 2, 3])


@pytest.fixture
def logits():
  return np.random.default_rng(0).normal(scale=3.0, size=(ROWS, LENGTH)).astype("float32")


def test_info_nce_spelled_out():
  value = contrastive.info_nce(jnp.array([[1.0, 2.0, 0.0]]), jnp.array([1]))
  np.testing.assert_allclose(value, [log(exp(1) + exp(2) + exp(0)) - 2], rtol=1e-6)


def test_sigmoid_spelled_out():
  value = contrastive.sigmoid(jnp.array([[1.0, 2.0, -3.0]]), jnp.array([1]))
  expected = log(1 + exp(1)) + log(1 + exp(-2)) + log(1 + exp(-3))
  np.testing.assert_allclose(value, [expected], rtol=1e-6)


def test_cyclic_spelled_out():
  value = contrastive.cyclic(jnp.array([[1.0, 2.0, 3.0]]), jnp.array([[0.0, 4.0, 3.5]]))
  np.testing.assert_allclose(value, [1 + 4 + 0.25], rtol=1e-6)


def test_info_nce_equals_loops(logits):
  expected = []
  for row, positive in zip(logits.astype(float), POSITIVE, strict=True):
    expected.append(log(sum(exp(x) for x in row)) - row[positive])
  value = contrastive.info_nce(logits, POSITIVE)
  np.testing.assert_allclose(value, expected, rtol=1e-6)


def test_sigmoid_equals_loops(logits):
  expected = []
  for row, positive in zip(logits.astype(float), POSITIVE, strict=True):
    signed = [x if j == positive else -x for j, x in enumerate(row)]
    expected.append(sum(log(1 + exp(-x)) for x in signed))
  value = contrastive.sigmoid(logits, POSITIVE)
  np.testing.assert_allclose(value, expected, rtol=1e-6)


def test_cyclic_equals_loops(logits):
  other = logits[::-1]
  expected = [
    sum((float(x) - float(y)) ** 2 for x, y in zip(a, b, strict=True))
    for a, b in zip(logits, other, strict=True)
  ]
  np.testing.assert_allclose(contrastive.cyclic(logits, other), expected, rtol=1e-6)


def test_gradients_have_their_closed_forms(logits):
  x = logits.astype(float)
  matched = np.eye(LENGTH)[POSITIVE]
  softmax = np.exp(x) / np.exp(x).sum(1, keepdims=True)
  probability = 1 / (1 + np.exp(-x))

  total = lambda loss: lambda *args: jnp.sum(loss(*args))
  grad = jax.grad(total(contrastive.info_nce))(logits, POSITIVE)
  np.testing.assert_allclose(grad, softmax - matched, atol=1e-6)
  grad = jax.grad(total(contrastive.sigmoid))(logits, POSITIVE)
  np.testing.assert_allclose(grad, probability - matched, atol=1e-6)
  a, b = jax.grad(total(contrastive.cyclic), argnums=(0, 1))(logits, logits[::-1])
  np.testing.assert_allclose(a, 2 * (x - x[::-1]), rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(b, -a, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_arithmetic_is_float32(logits, dtype):
  half = jnp.asarray(logits, dtype)
  same = lambda x: x.astype(jnp.float32)
  for value, expected in [
    (contrastive.info_nce(half, POSITIVE), contrastive.info_nce(same(half), POSITIVE)),
    (contrastive.sigmoid(half, POSITIVE), contrastive.sigmoid(same(half), POSITIVE)),
    (
      contrastive.cyclic(half, half[::-1]),
      contrastive.cyclic(same(half), same(half)[::-1]),
    ),
  ]:
    assert value.dtype == jnp.float32
    np.testing.assert_array_equal(value, expected)


@pytest.mark.parametrize("loss", [contrastive.info_nce, contrastive.sigmoid])
def test_huge_logits_stay_finite(loss):
  logits = jnp.array([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4]])
  value, grad = jax.value_and_grad(lambda x: loss(x, jnp.array([1, 0])).sum())(logits)
  # InfoNCE: 2e4 and 2e4 + log 2. Sigmoid: 1e4 + 1e4 + log 2 and three times 1e4.
  expected = 4e4 + log(2) if loss is contrastive.info_nce else 5e4 + log(2)
  np.testing.assert_allclose(value, expected, rtol=1e-6)
  assert np.isfinite(grad).all()


def test_equal_logits_cost_log_of_their_number():
  value = contrastive.info_nce(jnp.full((2, LENGTH), 100.0), jnp.array([0, 4]))
  np.testing.assert_allclose(value, [log(LENGTH)] * 2, rtol=1e-5)


@hypothesis.given(
  hnp.arrays(np.float32, (2, 4), elements=st.floats(-30, 30, width=32)),
  st.floats(-100, 100, width=32),
)
@hypothesis.settings(max_examples=30, deadline=None)
def test_info_nce_ignores_a_shift_and_is_not_negative(logits, shift):
  positive = jnp.array([0, 3])
  value = contrastive.info_nce(logits, positive)
  assert (np.asarray(value) >= 0).all()
  np.testing.assert_allclose(
    contrastive.info_nce(logits + shift, positive), value, rtol=1e-5, atol=1e-4
  )
