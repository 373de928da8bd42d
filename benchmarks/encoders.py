"""Encoding and training with CLIP's encoders, beside open_clip, on this machine's CPU.

    pip install -r requirements-dev.txt && pip install --no-deps -r requirements-peers.txt
    python benchmarks/encoders.py --models=ViT-B-32,RN50 --batch=16

Both sides run in float32 in one process, in turns, on the same number of threads. A step
is towers, CLIP's loss, its gradient and AdamW. Ours takes 8-bit pictures and normalises
them itself; open_clip gets floats that are normalised already, which costs it nothing.
"""

import argparse
import dataclasses
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import peers  # noqa: E402
from flax import nnx  # noqa: E402

from benchmarks import machine  # noqa: E402
from rankclip_jax import config, plan, state, step  # noqa: E402
from rankclip_jax.models import two_tower  # noqa: E402

TASKS = ("encode images", "encode texts", "training step")


def ours(
  model: str, image: np.ndarray, tokens: np.ndarray, remat: Any
) -> Mapping[str, Callable]:
  """A function of no arguments for every task."""
  cfg = config.Config(
    model=config.ModelConfig(name=model, dtype="float32", remat=remat),
    objective=config.ObjectiveConfig(name="clip"),
    data=config.DataConfig(batch_size=len(image)),
  )
  p = plan.make(cfg)
  graph, _ = two_tower.abstract(p.size)
  # Made apart from the state, whose memory the steps give back.
  init = lambda key: two_tower.init(key, p.size, initial_scale=p.objective.initial_scale)
  params = jax.jit(init)(jax.random.key(0))
  encode_image = jax.jit(lambda params, x: nnx.merge(graph, params).encode_image(x))
  encode_text = jax.jit(lambda params, x: nnx.merge(graph, params).encode_text(x))
  batch = {"image": jnp.asarray(image), "tokens": jnp.asarray(tokens)}
  compiled = step.compile_step(p)
  held = [state.create(0, p.size, p.objective, p.optimizer, p.mesh)]

  def train() -> Any:
    held[0], numbers = compiled(held[0], batch)
    return numbers

  return {
    TASKS[0]: lambda: jax.block_until_ready(encode_image(params, batch["image"])),
    TASKS[1]: lambda: jax.block_until_ready(encode_text(params, batch["tokens"])),
    TASKS[2]: lambda: jax.block_until_ready(train()),
  }


def open_clips(model: str, image: np.ndarray, tokens: np.ndarray) -> Mapping[str, Any]:
  """The same for open_clip, with the arithmetic of OpenAI's models."""
  torch = peers.torch
  net: Any = peers.open_clip.create_model(f"{model}-quickgelu", pretrained=None)
  pixels = torch.from_numpy(image.transpose(0, 3, 1, 2).copy()).float() / 255.0
  mean, std = torch.tensor(net.visual.image_mean), torch.tensor(net.visual.image_std)
  pixels = (pixels - mean[:, None, None]) / std[:, None, None]
  words = torch.from_numpy(tokens).long()
  optimizer = torch.optim.AdamW(net.parameters(), lr=5e-4, weight_decay=0.1)
  loss_of = peers.open_clip.ClipLoss()

  def encode(how: Callable, x: Any) -> Callable:
    def run() -> None:
      net.eval()
      with torch.inference_mode():
        how(x, normalize=True)

    return run

  def train() -> None:
    net.train()
    optimizer.zero_grad()
    loss_of(*net(pixels, words)).backward()
    optimizer.step()

  return {
    TASKS[0]: encode(net.encode_image, pixels),
    TASKS[1]: encode(net.encode_text, words),
    TASKS[2]: train,
  }


@dataclasses.dataclass(frozen=True)
class Row:
  """Seconds of one task with one model: of both sides, turn by turn."""

  model: str
  task: str
  ours: list[float]
  theirs: list[float]

  @property
  def ratio(self) -> float:
    """open_clip's time over ours, the median over turns: above 1 ours is faster."""
    return statistics.median(t / o for o, t in zip(self.ours, self.theirs, strict=True))


def measure(model: str, batch: int, turns: int, remat: str) -> list[Row]:
  """All tasks, after one call of each that compiles and warms up."""
  rng = np.random.default_rng(0)
  size = plan.size_of(config.Config(model=config.ModelConfig(name=model)))
  shape = (batch, size.image_size, size.image_size, 3)
  image = rng.integers(0, 256, shape, np.uint8)
  tokens = rng.integers(1, 49406, (batch, size.context_length)).astype(np.int32)
  tokens[:, -1] = 49407
  contenders = ours(model, image, tokens, remat), open_clips(model, image, tokens)
  rows = []
  for task in TASKS:
    seconds: tuple[list[float], list[float]] = ([], [])
    for turn in range(turns + 1):
      for side, contender in zip(seconds, contenders, strict=True):
        began = time.perf_counter()
        contender[task]()
        if turn:
          side.append(time.perf_counter() - began)
    rows.append(Row(model, task, *seconds))
  return rows


def table(rows: list[Row], batch: int) -> str:
  """Markdown: medians and their ratio."""
  lines = [
    "| model | task | rankclip_jax ms | images/s | open_clip ms | images/s | faster by |",
    "|---|---|---:|---:|---:|---:|---:|",
  ]
  for row in rows:
    mine, theirs = statistics.median(row.ours), statistics.median(row.theirs)
    lines.append(
      f"| {row.model} | {row.task} | {1e3 * mine:,.0f} | {batch / mine:.1f} "
      f"| {1e3 * theirs:,.0f} | {batch / theirs:.1f} | {row.ratio:.2f} x |"
    )
  return "\n".join(lines)


def main() -> None:
  parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
  parser.add_argument("--models", default="ViT-B-32,RN50")
  parser.add_argument("--batch", type=int, default=16)
  parser.add_argument("--turns", type=int, default=7)
  parser.add_argument("--remat", choices=("none", "dots", "full"), default="none")
  args = parser.parse_args()
  rows = []
  for model in args.models.split(","):
    rows += measure(model, args.batch, args.turns, args.remat)
  print(table(rows, args.batch))
  packages = ("jax", "flax", "torch", "open_clip_torch")
  threads = peers.torch.get_num_threads()
  print(f"\nBatch {args.batch}, float32. {machine.describe(packages, threads)}")


if __name__ == "__main__":
  main()
