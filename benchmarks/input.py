"""Pictures and captions to batches, beside open_clip's loaders and PyTorch's own.

    pip install -r requirements-dev.txt && pip install --no-deps -r requirements-peers.txt
    pip install 'webdataset<=0.2.86' pandas   # what open_clip's loaders need
    python benchmarks/input.py --plot docs/input.png

Makes JPEGs of scikit-image's photographs, 256 and 512 pixels wide, as files with a TSV
and as tars, and has every loader make training batches of them: a random crop of 90 to
100 % of the picture at 224 pixels (open_clip's default) and 77 tokens. Every contender
runs in a process of its own with `--readers` threads or worker processes, in turns; the
files are in the page cache. "Bare decoding" is what so many processes decode, crop and
scale at the same time if they do nothing else. PyTorch's loaders give normalised floats,
ours bytes that are normalised on the device, as each does in training.

The pictures are listed 25 times over. `--index` times the index of a tar of 10,000
examples; `--steps=20000` watches the memory of so many small batches; `--resume` times
the first batch in the middle of 10,000,000 examples.
"""

import argparse
import contextlib
import dataclasses
import io
import itertools
import json
import multiprocessing
import os
import signal
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
import types
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from benchmarks import figures, machine  # noqa: E402

SIZE, TOKENS, CROP = 224, 77, (0.9, 1.0)
SHARDS = 4
LISTED = 25  # times: what people train on is longer than what is made here
WARM_UP = 3.0  # seconds, while processes start and shuffle buffers fill


def make(folder: Path, width: int, count: int) -> None:
  """Photographs of a width and their captions: `pairs.tsv` with files, and tars."""
  from skimage import data

  rng = np.random.default_rng(width)
  photographs = [data.astronaut(), data.chelsea(), data.coffee(), data.rocket()]
  photographs = [Image.fromarray(p) for p in photographs]
  folder.mkdir(parents=True)
  head, lines = "filepath\ttitle", []
  shards: list[list[tuple[str, bytes]]] = [[] for _ in range(SHARDS)]
  for i in range(count):
    whole = photographs[i % len(photographs)]
    side = int(rng.integers(200, min(whole.size) + 1))
    left, top = (int(rng.integers(0, extent - side + 1)) for extent in whole.size)
    height = int(width * rng.uniform(0.67, 1.0))
    cut = whole.crop((left, top, left + side, top + side * height // width))
    out = io.BytesIO()
    cut.resize((width, height), Image.Resampling.BICUBIC).save(out, "JPEG", quality=90)
    caption = f"A photograph, number {i}, of someone or something in front of a camera"
    (folder / f"{i:05}.jpg").write_bytes(out.getvalue())
    lines.append(f"{folder / f'{i:05}.jpg'}\t{caption}")
    members = [(f"{i:09}.jpg", out.getvalue()), (f"{i:09}.txt", caption.encode())]
    shards[i * SHARDS // count] += members
  for number, members in enumerate(shards):
    _write_tar(folder / f"{number:05}.tar", members)
  (folder / "pairs.tsv").write_text("\n".join([head, *lines * LISTED, ""]))


def _write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
  with tarfile.open(path, "w") as tar:
    for name, content in members:
      info = tarfile.TarInfo(name)
      info.size = len(content)
      tar.addfile(info, io.BytesIO(content))


# Contenders: from a folder, a batch size and a number of readers to sizes of batches.


def _ours(kind: str, workers: bool = False) -> Callable[..., Iterator[int]]:
  def run(folder: Path, batch: int, readers: int) -> Iterator[int]:
    from rankclip_jax.data import opening, pipeline
    from rankclip_jax.data.tokenizer import Tokenizer

    spec = str(folder / {"tar": "*.tar", "csv": "pairs.tsv"}[kind])
    spec = "::".join([spec] * LISTED) if kind == "tar" else spec
    source = opening.open_source(kind, spec, opening.Options())  # pyright: ignore
    batches = pipeline.train_batches(
      source,
      image_size=SIZE,
      tokenizer=Tokenizer(TOKENS),
      augment_scale=CROP,
      global_batch=batch,
      num_steps=2**31,
      seed=0,
      num_threads=1 if workers else readers,
      num_workers=readers if workers else 0,
    )
    return (len(b["image"]) for b in batches)

  return run


def _bare(folder: Path, batch: int, readers: int) -> Iterator[int]:
  """As many processes as readers that decode and crop bytes in memory and no more."""
  counts = multiprocessing.get_context("spawn").Queue(2 * readers)
  for _ in range(readers):
    worker = multiprocessing.get_context("spawn").Process(
      target=_decode, args=(folder, batch, counts), daemon=True
    )
    worker.start()
  while True:
    yield counts.get()


def _decode(folder: Path, batch: int, counts: Any) -> None:
  """Puts `batch` on the queue whenever so many were decoded."""
  from rankclip_jax.data import opening
  from rankclip_jax.data.views import View

  source = opening.open_source("csv", str(folder / "pairs.tsv"), opening.Options())
  examples = [source[i] for i in range(min(len(source), 1000))]
  view, rng = View(SIZE, CROP), np.random.default_rng(0)
  out = np.empty((SIZE, SIZE, 3), np.uint8)
  for start in itertools.count(0, batch):
    for i in range(start, start + batch):
      view.fill(out, examples[i % len(examples)], rng)
    counts.put(batch)


def _open_clip(kind: str) -> Callable[..., Iterator[int]]:
  def run(folder: Path, batch: int, readers: int) -> Iterator[int]:
    import peers
    from open_clip_train import data

    tars = "::".join([str(path) for path in sorted(folder.glob("*.tar"))] * LISTED)
    args = types.SimpleNamespace(
      train_data=tars if kind == "tar" else str(folder / "pairs.tsv"),
      train_num_samples=10**6,
      train_data_upsampling_factors=None,
      dataset_resampled=kind == "tar",
      csv_img_key="filepath",
      csv_caption_key="title",
      csv_separator="\t",
      batch_size=batch,
      workers=readers,
      world_size=1,
      seed=0,
      distributed=False,
    )
    get = data.get_wds_dataset if kind == "tar" else data.get_csv_dataset
    transform = peers.open_clip.image_transform(SIZE, is_train=True)
    info = get(args, transform, True, tokenizer=peers.open_clip.get_tokenizer("ViT-B-32"))
    while True:
      yield from (len(images) for images, _ in info.dataloader)

  return run


def _torch(folder: Path, batch: int, readers: int) -> Iterator[int]:
  """A map-style data set as people write it, in PyTorch's DataLoader."""
  import peers
  from torchvision import transforms

  rows = [x.split("\t") for x in (folder / "pairs.tsv").read_text().splitlines()[1:]]
  tokenize = peers.open_clip.get_tokenizer("ViT-B-32")
  view = transforms.Compose(
    [
      transforms.RandomResizedCrop(
        SIZE, CROP, interpolation=transforms.InterpolationMode.BICUBIC
      ),
      transforms.ToTensor(),
      transforms.Normalize((0.48, 0.46, 0.41), (0.27, 0.26, 0.28)),
    ]
  )
  loader = peers.torch.utils.data.DataLoader(
    _Pairs(rows, view, tokenize),  # pyright: ignore
    batch,
    shuffle=True,
    num_workers=readers,
    persistent_workers=True,
    drop_last=True,
  )
  while True:
    yield from (len(images) for images, _ in loader)


class _Pairs:
  def __init__(self, rows, view, tokenize):
    self.rows, self.view, self.tokenize = rows, view, tokenize

  def __len__(self):
    return len(self.rows)

  def __getitem__(self, index):
    path, caption = self.rows[index]
    return self.view(Image.open(path).convert("RGB")), self.tokenize([caption])[0]


CONTENDERS: dict[str, Callable[..., Iterator[int]]] = {
  "rankclip_jax tar": _ours("tar"),
  "rankclip_jax csv": _ours("csv"),
  "rankclip_jax csv, processes": _ours("csv", workers=True),
  "bare decoding": _bare,
  "open_clip tar": _open_clip("tar"),
  "open_clip csv": _open_clip("csv"),
  "PyTorch csv": _torch,
}


def child(args: argparse.Namespace) -> None:
  """Prints the examples a second of one contender."""
  from absl import flags

  flags.FLAGS.mark_as_parsed()  # grain's threads read them
  sizes = CONTENDERS[args.child](Path(args.folder), args.batch, args.readers)
  began = time.perf_counter()
  while time.perf_counter() - began < WARM_UP:
    next(sizes)
  began, count = time.perf_counter(), 0
  while (now := time.perf_counter()) - began < args.seconds:
    count += next(sizes)
  print(json.dumps(count / (now - began)), flush=True)
  os._exit(0)  # no waiting for other people's workers


def measured(name: str, folder: Path, args: argparse.Namespace) -> float:
  """Examples a second, by a process of its own."""
  command = [sys.executable, "-W", "ignore", __file__, f"--child={name}"]
  command += [f"--folder={folder}", f"--batch={args.batch}"]
  command += [f"--readers={args.readers}", f"--seconds={args.seconds}"]
  # A session of its own, so that its workers end with it whatever they wait for.
  process = subprocess.Popen(
    command,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    start_new_session=True,
  )
  try:
    process.wait(timeout=10 * args.seconds + 120)
  finally:
    with contextlib.suppress(ProcessLookupError):
      os.killpg(process.pid, signal.SIGKILL)
  printed, complaint = process.communicate()
  if process.returncode:
    raise RuntimeError(f"{name} failed:\n{complaint[-3000:]}")
  return float(printed.splitlines()[-1])


@dataclasses.dataclass(frozen=True)
class Row:
  """Examples a second of one contender on pictures of one width."""

  width: int
  name: str
  rates: tuple[float, ...]

  @property
  def median(self) -> float:
    return statistics.median(self.rates)


def compare(args: argparse.Namespace) -> list[Row]:
  """All contenders in turns, on pictures of every width."""
  rows = []
  with tempfile.TemporaryDirectory() as root:
    for width in args.widths:
      folder = Path(root) / str(width)
      make(folder, width, args.count)
      rates: dict[str, list[float]] = {name: [] for name in args.contenders}
      for turn in range(args.turns):
        for name in args.contenders:
          rates[name].append(measured(name, folder, args))
          print(
            f"{width} px, turn {turn + 1}: {name} {rates[name][-1]:,.0f}", file=sys.stderr
          )
      rows += [Row(width, name, tuple(found)) for name, found in rates.items()]
  return rows


def table(rows: list[Row]) -> str:
  """Markdown, with every contender over each of open_clip's."""
  of = {(r.width, r.name): r.median for r in rows}
  head = (
    "| width | contender | images/s (lowest to highest) | over open_clip, same files |"
  )
  lines = [f"{head} of bare decoding |", "|---:|---|---:|---:|---:|"]
  for r in rows:
    kind = "tar" if " tar" in r.name else "csv"
    peer, bare = (
      of.get((r.width, f"open_clip {kind}")),
      of.get((r.width, "bare decoding")),
    )
    over = f"{r.median / peer:.2f} x" if peer and r.name != "bare decoding" else "-"
    share = f"{r.median / bare:.0%}" if bare else "-"
    spread = f"{r.median:,.0f} ({min(r.rates):,.0f} to {max(r.rates):,.0f})"
    lines.append(f"| {r.width} | {r.name} | {spread} | {over} | {share} |")
  return "\n".join(lines)


def draw(rows: list[Row], path: Path) -> None:
  """A group of bars for every width."""
  groups = []
  for width in sorted({r.width for r in rows}):
    here = [r for r in rows if r.width == width]
    bars = {
      r.name.replace(" ", "\n"): (r.median, min(r.rates), max(r.rates)) for r in here
    }
    groups.append(figures.Bars(f"{width} pixels wide", bars))
  figures.bars(path, groups, y_label="images a second")


def index_time(count: int = 10_000) -> str:
  """How long the index of a tar takes, beside reading the tar."""
  from rankclip_jax.data.tar_source import TarSource

  with tempfile.TemporaryDirectory() as root:
    picture = np.random.default_rng(0).bytes(22_000)
    path = Path(root) / "00000.tar"
    contents = (("jpg", picture), ("txt", b"a caption"), ("json", b"{}"))
    _write_tar(path, ((f"{i:09}.{e}", c) for i in range(count) for e, c in contents))
    began = time.perf_counter()
    path.read_bytes()
    read = time.perf_counter() - began
    began = time.perf_counter()
    source = TarSource(str(path))
    built = time.perf_counter() - began
    began = time.perf_counter()
    again = len(TarSource(str(path)))
    cached = time.perf_counter() - began
    assert len(source) == again == count
    mib = path.stat().st_size / machine.MIB
  return (
    f"A tar of {count:,} examples, {mib:.0f} MiB: indexed in {built:.2f} s, opened by "
    f"its index in {1e3 * cached:.0f} ms; reading all of it from the page cache takes "
    f"{read:.2f} s ({mib / built:,.0f} and {mib / read:,.0f} MiB/s)."
  )


def memory(steps: int, args: argparse.Namespace) -> str:
  """Resident memory of the loader over many small batches."""
  from absl import flags

  flags.FLAGS.mark_as_parsed()
  with tempfile.TemporaryDirectory() as root:
    folder = Path(root) / "256"
    make(folder, 256, 500)
    sizes = _ours("tar")(folder, 8, args.readers)
    held = []
    for step in range(steps):
      next(sizes)
      if (step + 1) % (steps // 10) == 0:
        held.append(_resident() / machine.MIB)
  shown = " ".join(f"{mib:.0f}" for mib in held)
  return f"{steps:,} batches of 8, resident MiB after every tenth of them: {shown}"


def resume_time(rows: int = 10_000_000) -> str:
  """How long it takes to go on in the middle of an epoch, in a process that just began.

  A TSV and a parquet file that name one picture; their indices were made before.
  """
  lines = [
    "| format | index made | opened | first batch | together |",
    "|---|" + 4 * "---:|",
  ]
  with tempfile.TemporaryDirectory() as root:
    folder = Path(root)
    make(folder / "256", 256, 1)
    picture = folder / "256" / "00000.jpg"
    _many_rows(folder, picture, rows)
    for kind, name in (("csv", "pairs.tsv"), ("parquet", "pairs.parquet")):
      command = [
        sys.executable,
        __file__,
        f"--resumed={kind}",
        f"--folder={folder / name}",
      ]
      made, (opened, first) = (
        json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        for _ in range(2)
      )
      lines.append(
        f"| {kind} | {made[0]:.1f} s | {opened:.2f} s | {first:.2f} s | "
        f"{opened + first:.2f} s |"
      )
  return f"{rows:,} examples, batches of 256\n\n" + "\n".join(lines)


def _many_rows(folder: Path, picture: Path, rows: int) -> None:
  import pyarrow as pa
  import pyarrow.parquet as pq

  with (folder / "pairs.tsv").open("w") as file:
    file.write("filepath\ttitle\n")
    for start in range(0, rows, 100_000):
      numbers = range(start, start + 100_000)
      file.write("".join(f"{picture}\ta photograph, number {i}\n" for i in numbers))
  schema = pa.schema([("filepath", pa.string()), ("caption", pa.string())])
  with pq.ParquetWriter(folder / "pairs.parquet", schema) as writer:
    for start in range(0, rows, 100_000):
      numbers = range(start, start + 100_000)
      captions = [f"a photograph, number {i}" for i in numbers]
      columns = [[str(picture)] * len(numbers), captions]
      writer.write_table(pa.table(columns, schema=schema), row_group_size=10_000)


def resumed(args: argparse.Namespace) -> None:
  """Prints seconds to open a source and for a batch from its middle."""
  from absl import flags

  from rankclip_jax.data import opening, pipeline
  from rankclip_jax.data.tokenizer import Tokenizer

  flags.FLAGS.mark_as_parsed()
  began = time.perf_counter()
  source = opening.open_source(args.resumed, args.folder, opening.Options())
  opened = time.perf_counter()
  steps = len(source) // 256
  batches = pipeline.train_batches(
    source,
    image_size=SIZE,
    tokenizer=Tokenizer(TOKENS),
    augment_scale=CROP,
    global_batch=256,
    num_steps=steps,
    seed=0,
    start_step=steps // 2,
    num_threads=args.readers,
  )
  next(batches)
  print(json.dumps((opened - began, time.perf_counter() - opened)), flush=True)
  os._exit(0)


def _resident() -> int:
  pages = int(Path("/proc/self/statm").read_text().split()[1])
  return pages * os.sysconf("SC_PAGE_SIZE")


def arguments() -> argparse.Namespace:
  names = list(CONTENDERS)
  parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
  add = parser.add_argument
  add("--widths", type=int, nargs="+", default=[256, 512])
  add("--contenders", nargs="+", choices=names, default=names)
  add("--count", type=int, default=4000, help="pictures of each width")
  add("--batch", type=int, default=256)
  add("--readers", type=int, default=len(os.sched_getaffinity(0)))
  add("--seconds", type=float, default=8.0, help="of every run, after the warm-up")
  add("--turns", type=int, default=3)
  add("--plot", type=Path, help="where to draw them (PNG)")
  add("--index", action="store_true", help="time the index of a tar instead")
  add("--steps", type=int, help="watch the memory of so many batches instead")
  add("--resume", action="store_true", help="time the start amid 10 M examples instead")
  add("--resumed", choices=("csv", "parquet"), help=argparse.SUPPRESS)
  add("--child", choices=names, help=argparse.SUPPRESS)
  add("--folder", help=argparse.SUPPRESS)
  return parser.parse_args()


def main() -> None:
  args = arguments()
  if args.child or args.resumed:
    child(args) if args.child else resumed(args)
  where = machine.describe(
    ("grain", "simplejpeg", "opencv-python-headless", "pillow", "torch", "torchvision",
     "open_clip_torch", "webdataset"), args.readers
  )  # fmt: skip
  if args.resume:
    print(resume_time())
  elif args.index or args.steps:
    print(index_time() if args.index else memory(args.steps, args))
  else:
    rows = compare(args)
    print(table(rows))
    if args.plot:
      draw(rows, args.plot)
  print(f"\n{where}")


if __name__ == "__main__":
  main()
