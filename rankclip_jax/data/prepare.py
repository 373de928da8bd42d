"""What has to be done for data sets of TFDS to be read here, and doing it.

Looking needs neither a network nor TensorFlow. Preparing needs both, but for data that is
there as TFRecords, which is written again as ArrayRecord.
"""

import argparse
import contextlib
import dataclasses
import importlib.util
import io
import json
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import rich
import tensorflow_datasets as tfds
from rich import box, markup
from rich.table import Table
from tensorflow_datasets.core import registered

from rankclip_jax.data import files, tfds_sets, tfrecords
from rankclip_jax.data.benchmarks import places, table
from rankclip_jax.data.tfds_sets import FORMAT, Name

State = Literal[
  "ready",
  "other format",  # prepared, but not for reading at random
  "damaged",  # half prepared, or changed since
  "downloads",  # by itself, when it is prepared
  "manual files",  # which the user has to put into a folder
  "needs TensorFlow",  # only to say more
  "not in TFDS",
]

# The sets of the evaluation: by TFDS's names where it has them, else by CLIP_benchmark's.
EVALUATION = tuple(
  benchmark.tfds or benchmark.name
  for benchmark in table.BENCHMARKS.values()
  if not benchmark.built_in
)
_INSTALL = "pip install tensorflow-cpu"


@dataclasses.dataclass(frozen=True)
class Status:
  """What is known of a data set without a network.

  Attributes:
    name: as it was asked for.
    state: see `State`.
    version: that is prepared, or would be.
    folder: where it is, or would be.
    formats: of the files, where it is prepared.
    splits: examples of each, where it is prepared.
    download_bytes: of the files to download, at most: several configs may share a list of
      them. None where TFDS does not say.
    todo: what to do; "" where there is nothing.
  """

  name: str
  state: State
  version: str = ""
  folder: str = ""
  formats: tuple[str, ...] = ()
  splits: Mapping[str, int] = dataclasses.field(default_factory=dict)
  download_bytes: int | None = None
  todo: str = ""


def look(
  names: Sequence[str] = (),
  *,
  data_dir: str = "",
  manual_dir: str = "",
  folder_dir: str = "",
) -> list[Status]:
  """What is ready and what is to be done, in the order of the names.

  Args:
    names: `NAME[/CONFIG][:VERSION]`, or what the evaluation calls a data set; by default,
      all sets of the evaluation.
    data_dir: where TFDS keeps data sets; "" is its default.
    manual_dir: where files are that the user has to get; "" is TFDS's default.
    folder_dir: where the sets of the evaluation are that TFDS lacks; "" is
      `places.DEFAULT`.

  Raises:
    ValueError: if a name is malformed, or `data_dir` is not local.
  """
  if files.is_remote(data_dir):
    raise ValueError(f"data_dir must be local, got {data_dir}; prepare it here, copy it.")
  found, data_dir = [], os.path.expanduser(data_dir)
  for text in names or EVALUATION:
    benchmark = _benchmark(text)
    place = places.look(benchmark, folder_dir) if benchmark is not None else None
    in_place = place and Status(text, place.state, folder=place.folder, todo=place.todo)
    if in_place and benchmark is not None and not benchmark.tfds:
      found.append(in_place)
      continue
    name = Name.parse(text if benchmark is None else benchmark.tfds)
    status = dataclasses.replace(_look(name, data_dir, manual_dir), name=text)
    # The evaluation reads what TFDS prepared first, and takes the other layouts as well.
    other = in_place and in_place.state == "ready" and status.state != "ready"
    found.append(in_place if in_place and other else status)
  return found


def run(status: Status, *, data_dir: str = "", manual_dir: str = "") -> Status:
  """Prepares a data set as ArrayRecord: converts it, or downloads and prepares it.

  Args:
    status: from `look`.
    data_dir: as there.
    manual_dir: as there.

  Returns:
    What `look` says then.

  Raises:
    ValueError: if that cannot be done, with what is missing.
  """
  if status.state in ("not in TFDS", "damaged"):
    raise ValueError(f"{status.name}: {status.todo}")
  benchmark, data_dir = _benchmark(status.name), os.path.expanduser(data_dir)
  if benchmark is not None and not benchmark.tfds:
    if status.state == "ready":
      return status
    raise ValueError(f"{status.name}: TFDS lacks it. {status.todo}")
  name = Name.parse(status.name if benchmark is None else benchmark.tfds)
  if status.state == "other format":
    if "tfrecord" not in status.formats:
      raise ValueError(f"{name}: {status.todo}")
    tfrecords.convert(pathlib.Path(status.folder))
  elif status.state != "ready":
    _prepare(status, name, data_dir, manual_dir)
  return dataclasses.replace(_look(name, data_dir, manual_dir), name=status.name)


def main(argv: Sequence[str]) -> int:
  """The command `prepare`.

  Args:
    argv: its arguments.

  Returns:
    0, or 1 if a set that was named is unknown, or not ready after --run.

  Raises:
    ValueError: as `look` and `run`.
  """
  parser = argparse.ArgumentParser(
    prog="python -m rankclip_jax.data prepare",
    description="Says which TFDS data sets are ready to be read, which download by "
    "themselves and which need files that you have to get, and prepares them.",
  )
  parser.add_argument(
    "names",
    nargs="*",
    metavar="NAME[/CONFIG][:VERSION]",
    help="data sets of TFDS or of the evaluation; by default, all of the evaluation",
  )
  parser.add_argument("--run", action="store_true", help="prepare those that are named")
  parser.add_argument(
    "--data_dir", default="", help="where TFDS keeps data sets (~/tensorflow_datasets)"
  )
  parser.add_argument(
    "--manual_dir", default="", help="where your files are (DATA_DIR/downloads/manual)"
  )
  parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
  parser.add_argument(
    "--folder_dir",
    default="",
    help=f"where evaluation sets are that TFDS lacks ({places.DEFAULT})",
  )
  flags = parser.parse_args(argv)
  where = {"data_dir": flags.data_dir, "manual_dir": flags.manual_dir}
  if flags.run and not flags.names:
    raise ValueError("--run: name the data sets to prepare; all of them are over 200 GB.")
  found = look(flags.names, **where, folder_dir=flags.folder_dir)
  if flags.run:
    found = [run(status, **where) for status in found]
  if flags.json:
    print(json.dumps([dataclasses.asdict(status) for status in found], indent=2))
  else:
    show(found)
  bad = [
    s for s in found if s.state == "not in TFDS" or (flags.run and s.state != "ready")
  ]
  return int(bool(flags.names and bad))


def show(found: Sequence[Status]) -> None:
  """Prints a table, and below it where sets are and what to do for others."""
  table = Table(box=box.SIMPLE)
  for column in ("data set", "state", "version", "download", "splits"):
    table.add_column(column, no_wrap=column != "splits")
  notes: dict[str, list[str]] = {}
  for status in found:
    splits = ", ".join(f"{name} {count:,}" for name, count in status.splits.items())
    size = status.download_bytes
    shown = "" if size is None else f"at most {size / 1e9:.2f} GB"
    cells = (status.name, status.state, status.version, shown, splits)
    table.add_row(*map(markup.escape, cells))
    is_there = f"is in {status.folder} ({', '.join(status.formats)})"
    note = ". ".join(filter(None, (is_there if status.formats else "", status.todo)))
    notes.setdefault(note, []).append(status.name)
  console = rich.get_console()
  console.print(table)
  for note, names in notes.items():
    console.print(f"[bold]{markup.escape(', '.join(names))}[/bold]", soft_wrap=True)
    console.print(f"  {markup.escape(note)}", soft_wrap=True, highlight=False)


def _benchmark(text: str) -> table.Benchmark | None:
  """The set of the evaluation that a name means, if any."""
  try:
    return table.find(text)
  except ValueError:
    return None


def _look(name: Name, data_dir: str, manual_dir: str) -> Status:
  else_prepared = ""
  if tfds_sets.prepared(name.name, data_dir):
    try:
      folder = tfds_sets.locate(name, data_dir, None)
    except ValueError as error:  # Other configs or versions; this one may come.
      else_prepared = str(error)
    else:
      return _prepared(name, folder)
  elif folder := _half_prepared(name, data_dir):
    todo = f"{folder} has no features.json; remove it, and prepare it again"
    return Status(str(name), "damaged", folder=str(folder), todo=todo)
  try:
    builder = _builder(name, data_dir)
  except registered.DatasetNotFoundError:
    todo = f"TFDS has no {name.name!r}{tfds_sets.nearest(name.name, data_dir)}"
    return Status(str(name), "not in TFDS", todo=else_prepared or todo)
  except ModuleNotFoundError as error:
    if not (error.name or "").startswith("tensorflow"):
      raise
    todo = f"Its code needs TensorFlow to say more: {_INSTALL}"
    return Status(str(name), "needs TensorFlow", todo=todo)
  except (AssertionError, ValueError) as error:  # A config or version that is not there.
    return Status(str(name), "not in TFDS", todo=str(error))
  infos = builder.url_infos or {}
  status = Status(
    str(name),
    "downloads",
    version=str(builder.version),
    folder=str(builder.data_dir),
    download_bytes=sum(info.size for info in infos.values()) if infos else None,
    todo=f"--run downloads and prepares it (with TensorFlow: {_INSTALL})",
  )
  manual = builder.MANUAL_DOWNLOAD_INSTRUCTIONS
  if not manual:
    return status
  folder = _manual_folder(builder, manual_dir)
  there = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
  todo = (
    f"Put the files into {folder} (there now: {', '.join(there) or 'nothing'}); then "
    f"--run prepares it (with TensorFlow: {_INSTALL}). What TFDS says of them: "
    + " ".join(manual.split())
  )
  return dataclasses.replace(status, state="manual files", todo=todo)


def _half_prepared(name: Name, data_dir: str) -> pathlib.Path | None:
  """A folder of a version that TFDS does not take for one."""
  for root in tfds_sets.roots(data_dir):
    parent = pathlib.Path(root) / name.name / name.config
    for folder in sorted(parent.iterdir()) if parent.is_dir() else ():
      if re.fullmatch(r"\d+\.\d+\.\d+", folder.name):
        return folder
  return None


def _prepared(name: Name, folder: pathlib.Path) -> Status:
  try:
    info = tfds.builder_from_directory(folder).info
    formats = tuple(sorted(found.value for found in info.available_file_formats()))
  except Exception as error:  # A dozen kinds.
    todo = f"{folder} cannot be read ({error}); remove it, and prepare it again"
    return Status(str(name), "damaged", folder=str(folder), todo=todo)
  splits = {key: split.num_examples for key, split in info.splits.items()}
  todo = ""
  if FORMAT not in formats:
    todo = (
      "--run writes it again as ArrayRecord, beside the TFRecords: as much space again, "
      "no download and no TensorFlow"
      if "tfrecord" in formats
      else f"prepare it in another --data_dir; {FORMAT} alone is read at random"
    )
  return Status(
    str(name),
    "other format" if todo else "ready",
    str(info.version),
    str(folder),
    formats,
    splits,
    todo=todo,
  )


def _builder(name: Name, data_dir: str) -> Any:
  """TFDS's code for a data set; what it prints of TensorFlow stays unsaid."""
  options = {"config": name.config or None, "version": name.version or None}
  quiet = io.StringIO()
  with contextlib.redirect_stderr(quiet), contextlib.redirect_stdout(quiet):
    builder_class = tfds.builder_cls(name.name)
    configs = list(builder_class.builder_configs)
    if name.config and name.config not in configs:
      raise ValueError(
        f"{name.name} has no config {name.config!r}, but {', '.join(configs) or 'none'}."
      )
    return builder_class(data_dir=data_dir or None, **options)


def _manual_folder(builder: Any, manual_dir: str) -> pathlib.Path:
  default = pathlib.Path(builder.data_dir_root) / "downloads" / "manual"
  return pathlib.Path(manual_dir).expanduser() if manual_dir else default


def _prepare(status: Status, name: Name, data_dir: str, manual_dir: str) -> None:
  missing = importlib.util.find_spec("tensorflow") is None
  if status.state == "needs TensorFlow":
    raise ValueError(f"{name}: {status.todo}")
  builder = _builder(name, data_dir)
  if missing and type(builder).__module__.startswith("tensorflow_datasets."):
    raise ValueError(
      f"{name}: preparing it needs TensorFlow, which is not installed: {_INSTALL}. "
      "Reading it does not, so another machine can prepare it."
    )
  if status.state == "manual files":
    folder = _manual_folder(builder, manual_dir)
    if not (folder.is_dir() and os.listdir(folder)):
      raise ValueError(f"{name}: {status.todo}")
  config = tfds.download.DownloadConfig(
    manual_dir=manual_dir or None, try_download_gcs=False
  )
  try:
    builder.download_and_prepare(download_config=config, file_format=FORMAT)
  except Exception as error:  # Of networks, disks, archives and every builder's own.
    raise ValueError(
      f"{name} could not be prepared ({type(error).__name__}: {error})."
    ) from error
