"""cuDNN's attention against XLA's, forward and backward, at the lengths of CLIP's towers.

    python benchmarks/attention.py

50 and 197 tokens are the image towers of ViT-B/32 and B/16 (12 heads), 77 the text tower
(8 heads, causal); head dimension 64, bfloat16. Needs a GPU: cuDNN has no other.
"""

import argparse
import datetime
import functools
import sys
import time
from typing import Literal

import jax
import jax.numpy as jnp

HEAD_DIM = 64
TOWERS = ((50, 12, False), (77, 8, True), (197, 12, False))  # tokens, heads, causal
PASSES = 20  # queued at once, so that starting them does not count

Implementation = Literal["xla", "cudnn"]


def main() -> None:
  parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
  parser.add_argument("--batch", type=int, default=512)
  parser.add_argument("--repeats", type=int, default=10, help="the best one counts")
  args = parser.parse_args()
  if jax.default_backend() != "gpu":
    sys.exit("This benchmark needs a GPU: cuDNN's attention runs on nothing else.")
  print("| tokens | heads | causal | XLA ms | cuDNN ms | cuDNN / XLA |")
  print("|---:|---:|---|---:|---:|---:|")
  for tokens, heads, causal in TOWERS:
    of = functools.partial(
      milliseconds, (args.batch, tokens, heads, HEAD_DIM), causal, args.repeats
    )
    xla, cudnn = of("xla"), of("cudnn")
    cells = f"{xla:.3f} | {cudnn:.3f} | {cudnn / xla:.2f}"
    print(f"| {tokens} | {heads} | {'yes' if causal else 'no'} | {cells} |", flush=True)
  device = jax.devices()[0].device_kind
  print(
    f"\n{device}, jax {jax.__version__}, batch {args.batch}; {datetime.date.today()}."
  )


def milliseconds(
  shape: tuple[int, ...], causal: bool, repeats: int, implementation: Implementation
) -> float:
  """One forward and backward pass of one layer, of shape [batch, length, heads, dim]."""

  def loss(q, k, v):
    y = jax.nn.dot_product_attention(
      q, k, v, is_causal=causal, implementation=implementation
    )
    return jnp.sum(jnp.square(y.astype(jnp.float32)))

  keys = jax.random.split(jax.random.key(0), 3)
  inputs = [jax.random.normal(key, shape, jnp.bfloat16) for key in keys]
  run = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
  jax.block_until_ready(run(*inputs))
  times = []
  for _ in range(repeats):
    began = time.perf_counter()
    results = [run(*inputs) for _ in range(PASSES)]
    jax.block_until_ready(results)
    times.append(time.perf_counter() - began)
  return 1e3 * min(times) / PASSES


if __name__ == "__main__":
  main()
