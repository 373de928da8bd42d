"""RankCLIP's objective by this project and by its peers, ready to be timed.

    InfoNCE + 1/16 cross-modal + 1/16 in-modal consistency, every term in both directions,

the `rankclip` preset at a rank weight of 1, with the gradients of both embeddings and of
the temperature, from one batch of N pairs of 512-dimensional embeddings.
"""

import functools
import math
import os
import time
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np

DIM = 512
SCALE = 1 / 0.07  # where training starts, and every contender is still accurate
# `objective.RANK_WEIGHT`; the process that runs PyTorch does not load JAX to ask for it.
RANK_WEIGHT = 1 / 16
Order = Literal["auto", "packed"]


class Prepared(NamedTuple):
  """A contender with its inputs made and its program compiled.

  Attributes:
    run: one forward and backward pass; returns the loss when both are done.
    device: "cpu", or for memory's sake "gpu" (JAX's) or "cuda" (PyTorch's).
    compile_seconds: tracing and compiling, where there is such a thing.
    planned_bytes: what `blocked.choose` says that it will take.
  """

  run: Callable[[], float]
  device: str
  compile_seconds: float | None = None
  planned_bytes: int | None = None


def embeddings(size: int) -> list[np.ndarray]:
  """Image and text [size, 512], unit rows, cosine 1/2 between the two of a pair."""
  rng = np.random.default_rng(0)
  common, *noise = rng.standard_normal((3, size, DIM), dtype=np.float32)
  both = [common + x for x in noise]
  return [x / np.linalg.norm(x, axis=1, keepdims=True) for x in both]


def rankclip_jax(size: int, memory_mib: int, order: Order = "auto") -> Prepared:
  """`blocked.evaluate` as training calls it: with the C++ kernel on CPUs that can."""
  import jax

  from rankclip_jax.losses import blocked, native, objective

  preset = objective.PRESETS["rankclip"]
  blocking = blocked.Blocking(memory_mib=memory_mib, order=order)
  platform = jax.default_backend()
  if order == "auto" and platform == "cpu":
    native.available()  # builds the kernel, once a machine and not once a program

  def loss(image, text, log_scale, tie_key):
    evaluate = functools.partial(blocked.evaluate, preset, image, text)
    return evaluate(log_scale=log_scale, tie_key=tie_key, blocking=blocking)[0]

  blocks = blocked.choose(
    blocking, preset, rows=size, length=size, dim=DIM, platform=platform
  )
  return _compiled(size, loss)._replace(planned_bytes=blocks.predicted_bytes)


def rankclip_jax_xla(size: int, memory_mib: int) -> Prepared:
  """The same without the C++ kernel: what XLA makes of it."""
  return rankclip_jax(size, memory_mib, order="packed")


def rankclip_plain(size: int, memory_mib: int) -> Prepared:
  """`plain.evaluate`, the readable form, differentiated by JAX: naive JAX."""
  from rankclip_jax.losses import objective, plain

  preset = objective.PRESETS["rankclip"]

  def loss(image, text, log_scale, tie_key):
    return plain.evaluate(preset, image, text, log_scale=log_scale, tie_key=tie_key)[0]

  return _compiled(size, loss)


def rax_listmle(size: int, memory_mib: int) -> Prepared:
  """google/rax for the rankings, ties by index, its faster way; optax for InfoNCE."""
  import jax.numpy as jnp
  import optax
  import rax

  from rankclip_jax.losses import terms

  def consistency(a, b):
    both = rax.listmle_loss(a, b, reduce_fn=jnp.mean)
    both += rax.listmle_loss(b, a, reduce_fn=jnp.mean)
    return both / 2 / size

  def loss(image, text, log_scale, _):
    scale, own = jnp.exp(log_scale), jnp.arange(size)
    a = scale * terms.cosines(image, text)
    c, d = (scale * terms.cosines(x, x) for x in (image, text))
    cross_entropy = optax.losses.softmax_cross_entropy_with_integer_labels
    contrastive = (cross_entropy(a, own) + cross_entropy(a.T, own)).mean() / 2
    return contrastive + RANK_WEIGHT * (consistency(a, a.T) + consistency(c, d))

  return _compiled(size, loss)


def _compiled(size: int, loss: Callable) -> Prepared:
  import jax

  scale = np.float32(math.log(SCALE))
  inputs = jax.device_put((*embeddings(size), scale, jax.random.key(0)))
  began = time.perf_counter()
  step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2))).lower(*inputs).compile()
  seconds = time.perf_counter() - began
  run = lambda: float(jax.block_until_ready(step(*inputs))[0])
  return Prepared(run, jax.default_backend(), seconds)


def pytorch_released(size: int, memory_mib: int) -> Prepared:
  """RankCLIP's released arithmetic: shuffle, sort, gather, exp, cumsum, and autograd."""
  import torch

  torch.set_num_threads(len(os.sched_getaffinity(0)))
  device = "cpu"
  # A GPU only where JAX has been sent to it as well.
  if os.environ.get("JAX_PLATFORMS") == "cuda" and torch.cuda.is_available():
    device = "cuda"

  def list_mle(scored, reference):
    shuffle = torch.randperm(scored.shape[1], device=device)
    scored, reference = scored[:, shuffle], reference[:, shuffle]
    order = reference.sort(descending=True, dim=-1).indices
    p = torch.gather(scored, 1, order)
    p = p - p.max(dim=1, keepdim=True).values
    mass = torch.cumsum(p.exp().flip(1), dim=1).flip(1)
    return (torch.log(mass + 1e-10) - p).sum(dim=1).mean()

  def step(image, text, log_scale):
    scale, own = log_scale.exp(), torch.arange(len(image), device=device)
    a = scale * image @ text.T
    c, d = scale * image @ image.T, scale * text @ text.T
    cross_entropy = torch.nn.functional.cross_entropy
    contrastive = (cross_entropy(a, own) + cross_entropy(a.T, own)) / 2
    in_modal = (list_mle(c, d) + list_mle(d, c)) * (RANK_WEIGHT / 2)
    cross_modal = (list_mle(a, a.T) + list_mle(a.T, a)) * (RANK_WEIGHT / 2)
    loss = contrastive + (cross_modal + in_modal) / len(image)
    torch.autograd.grad(loss, (image, text, log_scale))
    return loss.item()

  def tensors(n):
    arrays = (*embeddings(n), np.float32(math.log(SCALE)))
    return [torch.tensor(x, device=device, requires_grad=True) for x in arrays]

  step(*tensors(64))  # wakes the thread pool
  inputs = tensors(size)
  return Prepared(lambda: step(*inputs), device)


CONTENDERS: dict[str, Callable[[int, int], Prepared]] = {
  f.__name__: f
  for f in (rankclip_jax, rankclip_jax_xla, rankclip_plain, pytorch_released, rax_listmle)
}
BASELINE = pytorch_released.__name__
LABELS = {
  "rankclip_jax": "rankclip_jax",
  "rankclip_jax_xla": "rankclip_jax, XLA only",
  "rankclip_plain": "naive JAX",
  "pytorch_released": "released PyTorch",
  "rax_listmle": "rax (JAX)",
}
# Floats for each of N x N pairs that the naive ones took at N = 1024 on 2 cores, rounded
# up: an estimate for a size before which nothing smaller has been measured.
NAIVE_FLOATS = {"rankclip_plain": 65, "pytorch_released": 60, "rax_listmle": 90}
