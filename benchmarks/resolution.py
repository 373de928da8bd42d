"""What the resolution of an order does to the gradient, by how narrow the cosines are.

    python benchmarks/resolution.py

The `rankclip` preset at the highest temperature, a scale of 100, against the exact order
of the same embeddings. At N = 65,536 `packed` has the resolution that `short` has here.
"""

import argparse
import datetime
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from rankclip_jax.losses import blocked, blocking, objective

PRESET = objective.PRESETS["rankclip"]
SCALE = 100.0
# Length of what all embeddings have in common, beside noise of length 1.
COMMON = (0.0, 1.0, 3.0, 10.0)


def main() -> None:
  parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
  parser.add_argument("--size", type=int, default=2048)
  parser.add_argument("--dim", type=int, default=512)
  parser.add_argument("--orders", default="packed,short,payload")
  args = parser.parse_args()
  print("| mean cosine | order | off by, of the norm | largest element, of the largest |")
  print("|---:|---|---:|---:|")
  for common in COMMON:
    pairs = embeddings(args.size, args.dim, common)
    exact = gradient(pairs, "exact")
    for order in args.orders.split(","):
      off = gradient(pairs, order) - exact
      norm = np.linalg.norm(off) / np.linalg.norm(exact)
      largest = np.abs(off).max() / np.abs(exact).max()
      cosine = float(np.mean(pairs[0] @ pairs[1].T))
      print(f"| {cosine:.3f} | {order} | {norm:.1e} | {largest:.1e} |", flush=True)
  device = jax.devices()[0].device_kind
  print(f"\nN = {args.size}, {device}, jax {jax.__version__}; {datetime.date.today()}.")


def embeddings(size: int, dim: int, common: float) -> list[np.ndarray]:
  """Image and text [size, dim], unit rows: noise of length 1 around one direction."""
  rng = np.random.default_rng(0)
  noise = rng.standard_normal((2, size, dim)) / np.sqrt(dim)
  noise[..., 0] += common
  return [
    (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32) for x in noise
  ]


def gradient(pairs: list[np.ndarray], order: blocking.Order) -> np.ndarray:
  """By both embeddings, [2, size, dim]."""

  @jax.jit
  @jax.grad
  def of(pairs):
    loss, _ = blocked.evaluate(
      PRESET,
      *pairs,
      log_scale=jnp.log(SCALE),
      tie_key=jax.random.key(0),
      blocking=blocked.Blocking(order=order),
    )
    return loss

  return np.stack(of(pairs)).astype(float)


if __name__ == "__main__":
  main()
