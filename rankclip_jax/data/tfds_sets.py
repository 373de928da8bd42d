"""Which data sets tensorflow_datasets has prepared here, and where."""

import dataclasses
import difflib
import hashlib
import os
import pathlib
import re
import uuid
from typing import Any

import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core import dataset_builder
from tensorflow_datasets.core.utils import file_utils, version

from rankclip_jax.data import files

FORMAT = "array_record"
_SPEC = re.compile(r"(?P<name>\w+)(/(?P<config>[^/:@]+))?(:(?P<version>[\d.*]+))?")


@dataclasses.dataclass(frozen=True)
class Name:
  """A data set's name, as in `NAME[/CONFIG][:VERSION]`; "" is what is not said."""

  name: str
  config: str = ""
  version: str = ""

  @classmethod
  def parse(cls, text: str) -> "Name":
    """Reads it.

    Raises:
      ValueError: if it is none.
    """
    match = _SPEC.fullmatch(text)
    if match is None:
      raise ValueError(f"expected NAME[/CONFIG][:VERSION][@SPLIT] of TFDS, got {text!r}")
    return cls(**{part: value or "" for part, value in match.groupdict().items()})

  def __str__(self) -> str:
    config = self.config and f"/{self.config}"
    return self.name + config + (self.version and f":{self.version}")


def prepared(name: str, data_dir: str = "") -> list[Any]:
  """TFDS's references to what is prepared of a data set: configs and versions."""
  return [
    variant
    for root in roots(data_dir)
    for variant in file_utils.list_dataset_variants(root / name)
  ]


def roots(data_dir: str = "") -> list[epath.Path]:
  """Folders in which TFDS keeps data sets."""
  found = file_utils.list_data_dirs(data_dir or None)
  return [epath.Path(root).expanduser() for root in found]


def default_config(name: str, data_dir: str = "") -> str:
  """The config that is meant where none is said, as noted beside the data."""
  noted = (dataset_builder.load_default_config_name(r / name) for r in roots(data_dir))
  return next((config for config in noted if config), "")


def nearest(name: str, data_dir: str = "") -> str:
  """Ends a sentence with the known names that are nearest to one that is not known."""
  known = set(tfds.list_builders(with_community_datasets=False))
  for root in roots(data_dir):
    if root.is_dir():
      known.update(
        folder.name for folder in root.iterdir() if prepared(folder.name, str(root))
      )
  close = difflib.get_close_matches(name, sorted(known), n=3)
  return f"; did you mean {' or '.join(close)}?" if close else "."


def locate(name: Name, data_dir: str, cache: pathlib.Path | None) -> pathlib.Path:
  """The folder of a data set's config and version.

  Raises:
    ValueError: if that is not prepared; says what is.
  """
  where = data_dir
  if files.is_remote(data_dir):
    where = _mirror(name.name, data_dir, cache)
  variants = prepared(name.name, where)
  shown = data_dir or ", ".join(map(str, roots()))
  if not variants:
    raise ValueError(_not_prepared(name, shown, where, data_dir))
  configs = sorted({variant.config or "" for variant in variants})
  config = name.config or default_config(name.name, where)
  if not name.config and (configs == [""] or (not config and len(configs) == 1)):
    config = configs[0]
  if config not in configs:
    raise ValueError(
      f"{name}: expected one of the configs that are prepared in {shown}, "
      f"{', '.join(c or 'none' for c in configs)}, got {config or 'none'}; "
      f"{_how(Name(name.name, config), data_dir)}"
    )
  versions = {
    version.Version(v.version): v for v in variants if (v.config or "") == config
  }
  fitting = [v for v in versions if not name.version or v.match(name.version)]
  if not fitting:
    raise ValueError(
      f"{name}: expected one of the versions that are prepared in {shown}, "
      f"{', '.join(map(str, sorted(versions)))}, got {name.version}."
    )
  return pathlib.Path(versions[max(fitting)].dataset_dir())


def _mirror(name: str, data_dir: str, cache: pathlib.Path | None) -> str:
  """A local folder with what a data set elsewhere says of itself, without the data."""
  if cache is None:
    raise ValueError(f"{data_dir}: give a folder for copies (cache), or copy the data.")
  local = cache / hashlib.sha256(data_dir.encode()).hexdigest()[:16]
  system, root = files.filesystem(data_dir.rstrip("/"))
  for path in system.find(f"{root}/{name}"):
    if not re.search(r"-\d+-of-\d+", path):
      copy = local / os.path.relpath(path, root)
      copy.parent.mkdir(parents=True, exist_ok=True)
      temporary = copy.with_name(f"{copy.name}.{uuid.uuid4().hex}.tmp")
      temporary.write_bytes(system.cat_file(path))
      os.replace(temporary, copy)  # Other processes may read it now.
  return str(local)


def _not_prepared(name: Name, shown: str, where: str, data_dir: str) -> str:
  if name.name not in tfds.list_builders(with_community_datasets=False):
    close = nearest(name.name, where)
    return f"TFDS knows no data set {name.name!r}, and none is in {shown}{close}"
  return f"{name} is not prepared in {shown}; {_how(name, data_dir)}"


def _how(name: Name, data_dir: str) -> str:
  where = f" --data_dir={data_dir}" if data_dir else ""
  return (
    f"`python -m rankclip_jax.data prepare {name}{where}` says what that needs, and with "
    "--run does it (with TensorFlow: pip install tensorflow-cpu)."
  )


def open_builder(folder: pathlib.Path, name: Name, data_dir: str) -> Any:
  """TFDS's view of a prepared data set.

  Raises:
    ValueError: if it is damaged, or in another format.
  """
  try:
    builder = tfds.builder_from_directory(folder)
    formats = {found.value for found in builder.info.available_file_formats()}
    if FORMAT in formats:
      # Asking for the format at once fails where it was added to another.
      builder.info.set_file_format(FORMAT, override=True, override_if_initialized=True)
      return builder
  except Exception as error:  # A dozen kinds.
    raise ValueError(f"{folder} cannot be read ({error}); prepare it again.") from error
  where = f" --data_dir={data_dir}" if data_dir else ""
  raise ValueError(
    f"{folder} holds {', '.join(sorted(formats))}, and only {FORMAT} can be read at "
    f"random. `python -m rankclip_jax.data prepare {name}{where} --run` "
    "writes TFRecords again as ArrayRecord, beside them; or prepare it in another "
    f"data_dir with download_and_prepare(file_format={FORMAT!r})."
  )
