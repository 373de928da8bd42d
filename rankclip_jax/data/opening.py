"""A data source by its format and path."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, Literal

from rankclip_jax.data import files
from rankclip_jax.data.order import Concatenated
from rankclip_jax.data.source import Source

Format = Literal["csv", "tar", "parquet", "tfds", "array_record"]

# How the parts of a mixture are told apart; TFDS names say so themselves.
_TFDS = "tfds:"
ENDINGS: Mapping[str, Format] = {
  ".csv": "csv",
  ".tsv": "csv",
  ".tar": "tar",
  ".parquet": "parquet",
  ".array_record": "array_record",
  ".arrayrecord": "array_record",
}


@dataclasses.dataclass(frozen=True)
class Options:
  """What opening a source may need besides its path.

  Attributes:
    split: of a TFDS data set, where its name does not say.
    strict: refuse at once whatever would be a bad example, as far as can be seen without
      opening pictures: for evaluation.
    caption_key: the column, JSON key or feature that holds captions; "" is a known name.
    image_key: the column or feature that holds pictures or their paths; "" is a known
      name. Tars tell pictures by their endings.
    data_dir: where TFDS data sets lie; "" is TFDS's own default.
    cache: a folder for indices that cannot be written beside the data, and for copies
      of remote files where only local ones can be read.
  """

  split: str = "train"
  strict: bool = False
  caption_key: str = ""
  image_key: str = ""
  data_dir: str = ""
  cache: pathlib.Path | None = None


def open_source(
  how: Format | Literal["mixture"], spec: str, options: Options, *, parts: bool = False
) -> Source:
  """The examples that `spec` names.

  Args:
    how: the format, or "mixture", whose parts are recognised by their endings and by
      `tfds:NAME`.
    spec: paths or patterns between `::`, or TFDS names.
    options: see there.
    parts: keep every part by itself in a `Concatenated`, as weights need it.

  Raises:
    ValueError: if there is no such file or data set, it cannot be read, or a part of a
      mixture is of no known format.
  """
  if how != "mixture" and not parts:
    return _OPENERS[how](spec, options)
  named = [(how, part) for part in files.parts(spec)]
  if how == "mixture":
    named = [(recognised(part), part.removeprefix(_TFDS)) for _, part in named]
  if not named:
    raise ValueError(f"{spec!r} names no data; give paths or patterns between '::'.")
  return Concatenated([_OPENERS[kind](part, options) for kind, part in named])


def recognised_all(spec: str) -> Format | Literal["mixture"] | None:
  """The format of all parts by their endings; None where one does not say."""
  try:
    kinds: set[Format] = {recognised(part) for part in files.parts(spec)}
  except ValueError:
    return None
  if len(kinds) > 1:
    return "mixture"
  return kinds.pop() if kinds else None


def without_format(spec: str) -> str:
  """TFDS names without the `tfds:` that says that they are such."""
  return "::".join(part.removeprefix(_TFDS) for part in files.parts(spec))


def recognised(part: str) -> Format:
  """The format of a part of a mixture.

  Raises:
    ValueError: if neither its ending nor `tfds:` says.
  """
  if part.startswith(_TFDS):
    return "tfds"
  for ending, how in ENDINGS.items():
    if part.rstrip("*}").lower().endswith(ending):
      return how
  raise ValueError(
    f"{part!r}: the ending says no format; known are {', '.join(ENDINGS)} and tfds:NAME. "
    "Name the format with data.source where all parts have the same."
  )


# The libraries of formats (pyarrow, tensorflow_datasets) take seconds to import, so only
# those that are needed are.


def _csv(spec: str, options: Options) -> Source:
  from rankclip_jax.data.csv_source import CsvSource

  return CsvSource(spec, **_common(options))


def _tar(spec: str, options: Options) -> Source:
  from rankclip_jax.data.tar_source import TarSource

  return TarSource(
    spec, strict=options.strict, caption_key=options.caption_key, cache=options.cache
  )


def _parquet(spec: str, options: Options) -> Source:
  from rankclip_jax.data.parquet_source import ParquetSource

  return ParquetSource(spec, **_common(options))


def _array_record(spec: str, options: Options) -> Source:
  from rankclip_jax.data.array_record_source import ArrayRecordSource

  return ArrayRecordSource(spec, **_common(options))


def _tfds(spec: str, options: Options) -> Source:
  from rankclip_jax.data.tfds_source import TfdsSource

  sets = [
    TfdsSource(
      name,
      split=options.split,
      data_dir=options.data_dir or None,
      **_common(options),
    )
    for name in files.parts(spec)
  ]
  return sets[0] if len(sets) == 1 else Concatenated(sets)


def _common(options: Options) -> dict[str, Any]:
  return {
    "strict": options.strict,
    "caption_key": options.caption_key,
    "image_key": options.image_key,
    "cache": options.cache,
  }


_OPENERS: Mapping[str, Callable[[str, Options], Source]] = {
  "csv": _csv,
  "tar": _tar,
  "parquet": _parquet,
  "array_record": _array_record,
  "tfds": _tfds,
}
