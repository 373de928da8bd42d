"""Time and peak memory of the ranking loss, forward and backward, against its peers.

    python benchmarks/loss.py --sizes 1024 2048 --repeats 5

One batch of N pairs of 512-dimensional embeddings: cross-modal and in-modal consistency,
both directions, and the gradients of both embeddings. Every contender runs in a process
of its own, on the same cores, and must find the same loss. Linux only: peak memory is
the high-water mark of the process above what it held just before the first run, with
libraries loaded, inputs made and programs compiled.
"""

import argparse
import ctypes
import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

DIM = 512
SCALE = 1 / 0.07  # where training starts, and every contender is still accurate
MIB = 2**20


def embeddings(size: int) -> list[np.ndarray]:
  """Image and text [size, 512], unit rows, cosine 1/2 between the two of a pair."""
  rng = np.random.default_rng(0)
  common, *noise = rng.standard_normal((3, size, DIM), dtype=np.float32)
  both = [common + x for x in noise]
  return [x / np.linalg.norm(x, axis=1, keepdims=True) for x in both]


def rankclip_jax(size: int) -> Callable[[], float]:
  """This project's loss, ties at random as in its presets."""
  import jax

  from rankclip_jax.losses import ranking

  tie_key = jax.random.key(0)
  return _compiled(size, lambda a, b: ranking.consistency(a, b, tie_key=tie_key).mean())


def rax_listmle(size: int) -> Callable[[], float]:
  """google/rax, ties by index, which is its faster way."""
  import jax.numpy as jnp
  import rax

  def consistency(a, b):
    both = rax.listmle_loss(a, b, reduce_fn=jnp.mean)
    both += rax.listmle_loss(b, a, reduce_fn=jnp.mean)
    return both / 2 / size

  return _compiled(size, consistency)


def _compiled(size, consistency) -> Callable[[], float]:
  import jax

  def loss(image, text):
    cross_modal = SCALE * image @ text.T
    in_modal = SCALE * image @ image.T, SCALE * text @ text.T
    return consistency(cross_modal, cross_modal.T) + consistency(*in_modal)

  inputs = jax.device_put(embeddings(size))
  step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(*inputs).compile()
  return lambda: float(jax.block_until_ready(step(*inputs))[0])


def pytorch_released(size: int) -> Callable[[], float]:
  """ListMLE as RankCLIP's released code has it: shuffle, sort, gather, exp, cumsum."""
  import torch

  torch.set_num_threads(len(os.sched_getaffinity(0)))

  def list_mle(scored, reference):
    shuffle = torch.randperm(scored.shape[1])
    scored, reference = scored[:, shuffle], reference[:, shuffle]
    order = reference.sort(descending=True, dim=-1).indices
    p = torch.gather(scored, 1, order)
    p = p - p.max(dim=1, keepdim=True).values
    mass = torch.cumsum(p.exp().flip(1), dim=1).flip(1)
    return (torch.log(mass + 1e-10) - p).sum(dim=1).mean()

  def step(image, text):
    a = SCALE * image @ text.T
    c, d = SCALE * image @ image.T, SCALE * text @ text.T
    both = list_mle(a, a.T) + list_mle(a.T, a) + list_mle(c, d) + list_mle(d, c)
    loss = both / 2 / len(image)
    torch.autograd.grad(loss, (image, text))
    return loss.item()

  tensors = lambda n: [torch.from_numpy(x).requires_grad_() for x in embeddings(n)]
  step(*tensors(64))  # wakes the thread pool
  inputs = tensors(size)
  return lambda: step(*inputs)


CONTENDERS = {f.__name__: f for f in (rankclip_jax, pytorch_released, rax_listmle)}
BASELINE = pytorch_released.__name__


def measure(contender: str, size: int, repeats: int, cores: int) -> dict[str, float]:
  """Runs in a child: the loss, best time in seconds, peak memory in bytes."""
  os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
  run = CONTENDERS[contender](size)
  ctypes.CDLL(None).malloc_trim(0)  # what compiling freed must not hide what runs
  Path("/proc/self/clear_refs").write_text("5")  # restarts the high-water mark
  before = _status("VmRSS")
  times, loss = [], 0.0
  for _ in range(repeats):
    start = time.perf_counter()
    loss = run()
    times.append(time.perf_counter() - start)
  return {"loss": loss, "seconds": min(times), "peak": _status("VmHWM") - before}


def _status(field: str) -> int:
  """Bytes, from this process's /proc/self/status."""
  for line in Path("/proc/self/status").read_text().splitlines():
    if line.startswith(field):
      return 1024 * int(line.split()[1])
  raise RuntimeError(f"/proc/self/status has no {field}; this benchmark needs Linux.")


def compare(size: int, repeats: int, cores: int) -> dict[str, dict[str, float]]:
  results = {}
  for name in CONTENDERS:
    options = ["--child", name, f"--sizes={size}", f"--repeats={repeats}"]
    command = [sys.executable, __file__, *options, f"--cores={cores}"]
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    out = subprocess.run(command, env=env, stdout=subprocess.PIPE, check=True).stdout
    results[name] = json.loads(out.splitlines()[-1])
  losses = [result["loss"] for result in results.values()]
  if not np.allclose(losses, losses[0], rtol=1e-4):
    raise RuntimeError(
      f"The contenders of size {size} compute different losses: {losses}"
    )
  return results


def table(results: dict[int, dict[str, dict[str, float]]], *, markdown: bool) -> str:
  rows = [("N", "contender", "ms", "x time", "peak MiB", "x memory")]
  for size, of_size in results.items():
    base = of_size[BASELINE]
    for name, result in of_size.items():
      seconds, peak = result["seconds"], result["peak"]
      ratios = f"{seconds / base['seconds']:.2f}", f"{peak / base['peak']:.2f}"
      ms, mib = f"{1e3 * seconds:.0f}", f"{peak / MIB:.0f}"
      rows.append((str(size), name, ms, ratios[0], mib, ratios[1]))
  lines = ["  ".join(cell.rjust(16) for cell in row) for row in rows]
  if markdown:
    rows.insert(1, ("---:", "---:", "---:", "---:", "---:", "---:"))
    lines = [f"| {' | '.join(row)} |" for row in rows]
  return "\n".join(lines)


def machine(cores: int) -> str:
  info = Path("/proc/cpuinfo").read_text().splitlines()
  cpu = next((x.split(":")[1].strip() for x in info if x.startswith("model name")), "?")
  versions = [f"{p} {importlib.metadata.version(p)}" for p in ("jax", "torch", "rax")]
  python = f"Python {platform.python_version()}"
  return (
    f"{cpu}, {cores} cores; {', '.join([python, *versions])}; {datetime.date.today()}"
  )


def main() -> None:
  parser = argparse.ArgumentParser(
    description="Times the ranking loss against its peers."
  )
  parser.add_argument("--sizes", type=int, nargs="+", default=[1024, 2048])
  parser.add_argument("--repeats", type=int, default=5, help="the best one counts")
  parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
  parser.add_argument("--markdown", action="store_true", help="a table for docs")
  parser.add_argument("--child", choices=CONTENDERS, help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.child:
    print(json.dumps(measure(args.child, args.sizes[0], args.repeats, args.cores)))
    return
  results = {size: compare(size, args.repeats, args.cores) for size in args.sizes}
  print(table(results, markdown=args.markdown))
  print(f"\nBest of {args.repeats}. {machine(args.cores)}")


if __name__ == "__main__":
  main()
