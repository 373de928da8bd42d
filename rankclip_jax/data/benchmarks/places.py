"""Where evaluation sets lie that TFDS does not prepare, and what has to be there.

Beside TFDS's own folder there is one for all others, `folder_dir`. In it a data set has
the name that CLIP_benchmark's documentation gives to its exports.
"""

import dataclasses
import pathlib
from typing import Literal

from rankclip_jax.data.benchmarks import tar_layout
from rankclip_jax.data.benchmarks.table import Benchmark

DEFAULT = "~/clip_benchmark"
_LAYOUT = (
  "the folder in CLIP_benchmark's webdataset layout (its clip_benchmark_export_wds "
  "writes it, and https://huggingface.co/clip-benchmark has most)"
)


def tars(benchmark: Benchmark, folder_dir: str = "") -> pathlib.Path:
  """The folder in CLIP_benchmark's webdataset layout, there or not."""
  return _root(folder_dir) / f"wds_{_plain(benchmark)}"


def class_folders(benchmark: Benchmark, folder_dir: str = "") -> pathlib.Path:
  """The folder of class folders, there or not."""
  return _root(folder_dir) / _plain(benchmark)


@dataclasses.dataclass(frozen=True)
class Place:
  """What is known of a data set beside TFDS.

  Attributes:
    state: "manual files" are those that the user has to put there.
    folder: that has it, or should; "" for the built-in one.
    todo: what to do; "" where it is ready.
  """

  state: Literal["ready", "damaged", "manual files"]
  folder: str = ""
  todo: str = ""


def look(benchmark: Benchmark, folder_dir: str = "") -> Place:
  """Whether one of both has the test split; opens no tar."""
  if benchmark.built_in:
    return Place("ready")
  first, second = tars(benchmark, folder_dir), class_folders(benchmark, folder_dir)
  if (first / "test").is_dir():
    try:
      tar_layout.TarLayout(first, benchmark.task, benchmark.duplicates)
      tar_layout.shards(first / "test")
    except ValueError as error:
      return Place("damaged", str(first), str(error))
    return Place("ready", str(first))
  if benchmark.task == "classification" and (second / "test").is_dir():
    return Place("ready", str(second))
  return Place("manual files", str(first), needed(benchmark, folder_dir))


def needed(benchmark: Benchmark, folder_dir: str = "") -> str:
  """Which files to put where."""
  place = tars(benchmark, folder_dir)
  files = "test/nshards.txt, test/0.tar, ..."
  if benchmark.task == "retrieval":
    return f"Put {_LAYOUT} at {place}: dataset_type.txt, {files}"
  return (
    f"Put {_LAYOUT} at {place}: classnames.txt, "
    f"zeroshot_classification_templates.txt, {files} (train/ likewise, "
    f"for probes); or class folders at {class_folders(benchmark, folder_dir)}/test/CLASS/"
  )


def _root(folder_dir: str) -> pathlib.Path:
  return pathlib.Path(folder_dir or DEFAULT).expanduser()


def _plain(benchmark: Benchmark) -> str:
  return benchmark.name.replace("/", "-")
