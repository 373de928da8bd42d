"""The preset `rankclip_released` against the released PyTorch code, in its float32."""

import functools
import math
import sys

import jax
import numpy as np
import pytest

from rankclip_jax.losses import objective as objectives
from rankclip_jax.losses import plain
from rankclip_jax.losses.objective import PRESETS
from tests.losses import oracle
from tests.losses.oracle import assert_close


def torch_list_mle(torch, scored, reference, eps):
  shuffle = torch.randperm(scored.shape[1])
  scored, reference = scored[:, shuffle], reference[:, shuffle]
  _, order = reference.sort(descending=True, dim=-1)
  p = torch.gather(scored, 1, order)
  p = p - p.max(dim=1, keepdim=True).values
  if eps is None:
    log_mass = torch.logcumsumexp(p.flip(1), dim=1).flip(1)
  else:
    log_mass = torch.log(torch.cumsum(p.exp().flip(1), dim=1).flip(1) + eps)
  return (log_mass - p).sum(dim=1).mean()


def torch_released(params, *, epoch, epochs, dtype="float32", eps: float | None = 1e-10):
  """L_CLIP + w(e) (L_cross + L_in) / N, and its gradients."""
  if sys.version_info >= (3, 12):  # where the peers are not pinned
    pytest.importorskip("torch")
  import torch

  torch.manual_seed(0)
  leaves = {
    key: torch.tensor(value, dtype=getattr(torch, dtype), requires_grad=True)
    for key, value in params.items()
  }
  image, text, s = leaves["image"], leaves["text"], leaves["log_scale"].exp()
  a, c, d = s * image @ text.T, s * image @ image.T, s * text @ text.T
  list_mle = functools.partial(torch_list_mle, torch, eps=eps)
  in_modal = (list_mle(c, d) + list_mle(d, c)) / 32
  cross_modal = (list_mle(a, a.T) + list_mle(a.T, a)) / 32
  label = torch.arange(len(image))
  cross_entropy = torch.nn.functional.cross_entropy
  clip = (cross_entropy(a, label) + cross_entropy(a.T, label)) / 2
  w = min(max(3 * (epoch - 1) / (epochs - 1), 0), 2)
  loss = clip + w * (cross_modal + in_modal) / len(image)
  grads = torch.autograd.grad(loss, list(leaves.values()))
  grads = {key: grad.numpy() for key, grad in zip(leaves, grads, strict=True)}
  return loss.item(), grads


EPOCHS, EPOCH_STEPS = 64, 10


@functools.cache
def _compiled(name):
  def loss(params, w):
    log_scale, key = params["log_scale"], jax.random.key(0)
    return plain.evaluate(
      PRESETS[name],
      params["image"],
      params["text"],
      log_scale=log_scale,
      rank_weight=w,
      tie_key=key,
    )

  return jax.jit(jax.value_and_grad(loss, has_aux=True))


def as_released(params, epoch, name="rankclip_released"):
  w = objectives.rank_weight(
    PRESETS["rankclip_released"],
    (epoch - 1) * EPOCH_STEPS + 3,
    num_steps=EPOCHS * EPOCH_STEPS,
    epoch_steps=EPOCH_STEPS,
  )
  (loss, _), grads = _compiled(name)(params, w)
  return float(loss), grads


@pytest.mark.parametrize("case", range(20))
def test_released_equals_pytorch_where_float32_is_sound(case):
  """Scales of 1 to 10 (20 cases, 6 of them to 1/0.07, where training starts).

  On such data eps costs the loss less than 1e-5 up to 10; at 1/0.07 it can be 2e-3.
  """
  rng = np.random.default_rng(case)
  rows, dim = [(3, 4), (8, 5), (12, 32), (12, 8)][case % 4]
  scale = float(np.exp(rng.uniform(0, math.log(10.0 if case < 14 else 1 / 0.07))))
  params = oracle.tie_free(case, rows, dim, scale, noise=rng.uniform(0.3, 2.0))
  epoch = int(rng.integers(2, EPOCHS + 1))
  loss, grads = as_released(params, epoch)
  expected, expected_grads = torch_released(params, epoch=epoch, epochs=EPOCHS)
  assert_close(loss, expected, rtol=1e-6)
  assert_close(grads, expected_grads)


@pytest.mark.parametrize("scale", [50.0, 100.0])
def test_released_equals_pytorch_where_its_form_is_wrong(scale):
  params = oracle.tie_free(5, 12, 32, scale)
  loss, grads = as_released(params, EPOCHS)
  expected, expected_grads = torch_released(params, epoch=EPOCHS, epochs=EPOCHS)
  assert_close(loss, expected, rtol=1e-5)
  assert_close(grads, expected_grads, rtol=1e-4)
  exact, exact_grads = torch_released(
    params, epoch=EPOCHS, epochs=EPOCHS, dtype="float64", eps=None
  )
  assert loss > 1.2 * exact  # wrong it is ...
  loss, grads = as_released(params, EPOCHS, "rankclip")
  assert_close(loss, exact)  # ... and the log-space form is not
  assert_close(grads, exact_grads)


@pytest.mark.parametrize(
  "scale, loss_off, gradient_off",
  [
    (10.0, (0, 1e-5), (0, 1e-5)),
    (50.0, (0.4, 0.9), (0.2, 0.5)),
    (100.0, (1.2, 1.7), (0.3, 0.6)),
  ],
)
def test_how_wrong_the_released_form_is(scale, loss_off, gradient_off):
  """64 pairs of 64 dimensions, cosine 1/2, w = 1: 72 % and 31 % off at scale 50, 146 %
  and 43 % at 100. Others measured 43 % and 42 %, 144 % and 53 %, on data of their own.
  """
  params = oracle.tie_free(0, 64, 64, scale)
  form = functools.partial(torch_released, params, epoch=22, epochs=64)
  loss, grads = form()
  exact, exact_grads = form(dtype="float64", eps=None)
  off = np.linalg.norm(grads["image"] - exact_grads["image"])
  assert loss_off[0] <= loss / exact - 1 + 1e-7 <= loss_off[1]
  assert gradient_off[0] <= off / np.linalg.norm(exact_grads["image"]) <= gradient_off[1]
