"""A whole evaluation on named data sets: how long, and what of it is not the encoder.

    apt-get install dataset-fashion-mnist   # Debian's; the files that TFDS would download
    pip install tensorflow-cpu              # TFDS prepares with it; reading does without
    python benchmarks/evaluation.py --data-dir=/tmp/fashion

Prepares Fashion-MNIST through TFDS without a network, unless `--data-dir` has it, and
runs `main.py --config.mode=eval` once in a process of its own, from nothing: zero-shot
classification, retrieval, geometry and the probe of 97 strengths on the built-in data and
Fashion-MNIST, of a model that was never trained. Then, in this process: pictures of
Fashion-MNIST's test split a second through the evaluation, beside those that the same
compiled encoder embeds when they lie in memory, and those that are read, decoded and
scaled without an encoder. Last, ranks of 5,000 pictures and 25,000 captions.
"""

import argparse
import concurrent.futures
import dataclasses
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import jax
import numpy as np
from flax import nnx

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from benchmarks import machine  # noqa: E402
from rankclip_jax import inference, interop  # noqa: E402
from rankclip_jax.data import decoding, transforms  # noqa: E402
from rankclip_jax.data.benchmarks import items, opening  # noqa: E402
from rankclip_jax.evals import retrieval  # noqa: E402
from rankclip_jax.models import sizes, two_tower  # noqa: E402
from rankclip_jax.suite import features  # noqa: E402

DEBIAN = pathlib.Path("/usr/share/datasets/fashion-mnist")
DATASETS = "openmoji,openmoji/skin_tone,openmoji/gender,openmoji/kind,tfds/fashion_mnist"
BATCH = 256
IMAGES, CAPTIONS, DIM = 5_000, 25_000, 512


def prepare(data_dir: pathlib.Path) -> None:
  """Fashion-MNIST as TFDS prepares it, of Debian's files.

  Raises:
    SystemExit: with what to install.
  """
  if (data_dir / "fashion_mnist").is_dir():
    return
  if not DEBIAN.is_dir():
    sys.exit(f"{DEBIAN} is not there: apt-get install dataset-fashion-mnist")
  try:
    import tensorflow  # noqa: F401  # pyright: ignore[reportMissingImports, reportMissingModuleSource]
  except ImportError:
    sys.exit(
      "TFDS prepares data with TensorFlow: pip install tensorflow-cpu, here or where "
      f"this is run with --prepare-only and the same --data-dir={data_dir}"
    )
  import tensorflow_datasets as tfds
  from tensorflow_datasets.core.download import checksums

  builder = tfds.builder("fashion_mnist", data_dir=data_dir)
  type(builder).url_infos = {  # Debian packed them anew
    url: checksums.compute_url_info(DEBIAN / os.path.basename(url))
    for url in builder.url_infos or {}
  }
  config = tfds.download.DownloadConfig(manual_dir=DEBIAN)
  builder.download_and_prepare(download_config=config, file_format="array_record")


def export(folder: pathlib.Path, name: str) -> None:
  """A model with fresh weights, as other tools would leave one."""
  size = sizes.changed(sizes.SIZES[name], activation="gelu")
  init = jax.jit(lambda key: two_tower.init(key, size, initial_scale=14.3))
  params = jax.tree.map(np.asarray, init(jax.random.key(0)))
  card = interop.Card(name=name, licence="other", data="none", objective="none")
  interop.write_open_clip(folder, params, size, card)


def whole(
  model: pathlib.Path, data_dir: pathlib.Path, workdir: pathlib.Path
) -> tuple[float, float]:
  """Seconds of the command, from its start to its end, and of processors."""
  began, used = time.perf_counter(), _of_processors()
  subprocess.run(
    [
      sys.executable, "main.py", "--config=configs/openmoji.py", f"--workdir={workdir}",
      "--config.mode=eval", f"--config.init.weights={model}",
      "--config.model.name=loaded", f"--config.data.tfds_dir={data_dir}",
      f"--config.eval.datasets={DATASETS}", "--config.eval.probe=sweep",
      f"--config.eval.batch_size={BATCH}",
    ],
    cwd=ROOT, check=True,
  )  # fmt: skip
  return time.perf_counter() - began, _of_processors() - used


def _of_processors() -> float:
  used = resource.getrusage(resource.RUSAGE_CHILDREN)
  return used.ru_utime + used.ru_stime


@dataclasses.dataclass(frozen=True)
class Speeds:
  """Pictures a second, each the median of its turns."""

  evaluation: float
  encoder: float
  reading: float


def speeds(path: pathlib.Path, data_dir: pathlib.Path, count: int, turns: int) -> Speeds:
  """The first pictures of Fashion-MNIST's test split, in turns."""
  batch = min(BATCH, count // 4)
  model = inference.load(path, dtype="float32", batch_size=batch)
  opened = opening.open_benchmark(
    "tfds/fashion_mnist", "test", opening.Options(data_dir=str(data_dir))
  )
  first = items.Selected(opened.source, range(count))
  opened = dataclasses.replace(opened, source=first)
  size = model.size.image_size

  def read(place: int) -> np.ndarray:
    return transforms.resize_center_crop(decoding.exact(opened.source[place]), size)

  def reading() -> list[np.ndarray]:
    with concurrent.futures.ThreadPoolExecutor() as pool:
      return list(pool.map(read, range(count)))

  pictures = np.stack(reading())
  weights = interop.read(path)
  graph, _ = two_tower.abstract(model.size)
  params = jax.device_put(weights.params)
  encode = jax.jit(lambda params, x: nnx.merge(graph, params).encode_image(x))

  def encoder() -> None:
    running = [encode(params, pictures[i : i + batch]) for i in range(0, count, batch)]
    jax.block_until_ready(running)

  def evaluation() -> None:
    with tempfile.TemporaryDirectory() as folder:
      features.of_split(model, opened, pathlib.Path(folder), check=lambda: None)

  tasks: list[Callable] = [evaluation, encoder, reading]
  seconds: list[list[float]] = [[], [], []]
  for turn in range(turns + 1):
    for task, taken in zip(tasks, seconds, strict=True):
      began = time.perf_counter()
      task()
      if turn:  # the first compiles
        taken.append(time.perf_counter() - began)
  return Speeds(*(count / statistics.median(taken) for taken in seconds))


def ranks(turns: int) -> tuple[float, float]:
  """Seconds of retrieval, the median, and its peak MiB beyond the embeddings."""
  rng = np.random.default_rng(0)
  unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
  image, text = (
    unit(rng.standard_normal((n, DIM), np.float32)) for n in (IMAGES, CAPTIONS)
  )
  owner = np.repeat(np.arange(IMAGES), CAPTIONS // IMAGES)
  memory, seconds = machine.PeakMemory("cpu"), []
  for _ in range(turns):
    began = time.perf_counter()
    retrieval.ranks(image, text, owner)
    seconds.append(time.perf_counter() - began)
  return statistics.median(seconds), memory.bytes() / machine.MIB


def main() -> None:
  parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
  parser.add_argument("--data-dir", type=pathlib.Path, required=True)
  parser.add_argument("--prepare-only", action="store_true")
  parser.add_argument(
    "--models",
    default="tiny:10000,ViT-B-32:128",
    help="of models.sizes, with the number of pictures that are timed",
  )
  parser.add_argument("--turns", type=int, default=3)
  flags = parser.parse_args()
  data_dir = flags.data_dir.expanduser().absolute()
  prepare(data_dir)
  if flags.prepare_only:
    return
  packages = ("jax", "numpy", "pillow", "tensorflow-datasets")
  print(machine.describe(packages, len(os.sched_getaffinity(0))), "\n")
  seconds, mebibytes = ranks(flags.turns)
  lines = [f"| {IMAGES:,} x {CAPTIONS:,} x {DIM} ranks | {seconds:.2f} s |"]
  lines += [f"| beyond the embeddings, at most | {mebibytes:.0f} MiB |"]
  for place, text in enumerate(flags.models.split(",")):
    name, _, count = text.partition(":")
    with tempfile.TemporaryDirectory() as folder:
      model = pathlib.Path(folder) / name
      export(model, name)
      if place == 0:
        seconds, busy = whole(model, data_dir, pathlib.Path(folder) / "run")
        lines += [f"| {name}: whole evaluation, from nothing | {seconds:.0f} s |"]
        lines += [f"| {name}: its seconds of processors | {busy:.0f} s |"]
      found = speeds(model, data_dir, int(count), flags.turns)
    ratio = found.evaluation / found.encoder
    lines += [
      f"| {name}: images/s, evaluation | {found.evaluation:,.0f} |",
      f"| {name}: images/s, encoder alone, in memory | {found.encoder:,.0f} |",
      f"| {name}: images/s, reading alone | {found.reading:,.0f} |",
      f"| {name}: evaluation over encoder | {ratio:.2f} |",
      f"| {name}: share of time bound by input | {max(0.0, 1 - ratio):.0%} |",
    ]
  print("\n".join(["| what | measured |", "|---|---:|", *lines]))


if __name__ == "__main__":
  main()
