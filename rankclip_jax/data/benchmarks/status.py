"""Whether an evaluation set can be read, and if not, what has to be done for it."""

import dataclasses
from typing import Literal

from rankclip_jax.data import prepare
from rankclip_jax.data.benchmarks import places
from rankclip_jax.data.benchmarks.table import Benchmark

State = Literal[
  "ready",
  "downloads",  # by itself, when it is prepared
  "convert",  # prepared as TFRecords, which are written again without a download
  "needs files",  # which the user has to put into a folder
  "damaged",  # half prepared, or changed since
]


@dataclasses.dataclass(frozen=True)
class Status:
  """What is known of a data set without a network.

  Attributes:
    name: as CLIP_benchmark spells it.
    state: see `State`.
    where: the folder that has it or should have it; "" for the built-in one.
    todo: what to do; "" where it is ready.
  """

  name: str
  state: State
  where: str = ""
  todo: str = ""


def status(
  benchmark: Benchmark, *, data_dir: str = "", manual_dir: str = "", folder_dir: str = ""
) -> Status:
  """Says whether its test split can be read here; downloads nothing.

  Args:
    benchmark: of the table.
    data_dir: where TFDS keeps data sets; "" is its default.
    manual_dir: where files are that TFDS wants from the user; "" is TFDS's default.
    folder_dir: where the folders of `places` are; "" is `places.DEFAULT`.

  Raises:
    ValueError: if `data_dir` is not local.
  """
  place = places.look(benchmark, folder_dir)
  if benchmark.tfds:
    where = {"data_dir": data_dir, "manual_dir": manual_dir}
    (found,) = prepare.look([benchmark.tfds], **where)
    if found.state == "ready" or found.state == "damaged":
      return Status(benchmark.name, found.state, found.folder, found.todo)
    if place.state == "manual files":
      return _by_tfds(benchmark, found, place.todo, data_dir)
  state = "needs files" if place.state == "manual files" else place.state
  return Status(benchmark.name, state, place.folder, place.todo)


def _by_tfds(
  benchmark: Benchmark, found: prepare.Status, other: str, data_dir: str
) -> Status:
  """Of a data set that TFDS would prepare."""
  todo = f"{found.todo.rstrip('.')}. Or: {other}"
  if found.state == "manual files":
    return Status(benchmark.name, "needs files", found.folder, todo)
  options = f" --data_dir={data_dir}" if data_dir else ""
  command = f"`python -m rankclip_jax.data prepare {benchmark.tfds}{options} --run`"
  # Some say what --run does, others what it needs.
  says = todo.removeprefix("--run ")
  todo = f"{command}{':' if says == todo else ''} {says}"
  state = "convert" if found.state == "other format" else "downloads"
  return Status(benchmark.name, state, found.folder, todo)
