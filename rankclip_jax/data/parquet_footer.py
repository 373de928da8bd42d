"""What the footer of a parquet file says: which columns are meant, and how large."""

from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

_BYTES_COLUMNS = ("image", "jpg", "image_bytes")
_PATH_COLUMNS = ("filepath", "image_path", "path", "image")
_CAPTION_COLUMNS = ("caption", "title", "text")


class Footer(NamedTuple):
  """A footer, and what is read by it.

  Attributes:
    metadata: as pyarrow has it.
    picture: the column of pictures.
    kind: whether it holds their bytes, structs of bytes and path, or paths.
    caption: the column of captions.
  """

  metadata: Any
  picture: str
  kind: Literal["bytes", "struct", "path"]
  caption: str

  def columns(self) -> list[str]:
    """What is to be read of a row group."""
    if self.kind == "struct":
      return [f"{self.picture}.bytes", f"{self.picture}.path", self.caption]
    return [self.picture, self.caption]

  def row_groups(self) -> np.ndarray:
    """Rows of each, then bytes of the columns that are read: uint64 [2 groups]."""
    metadata, read = self.metadata, self.columns()
    leaves = [metadata.schema.column(i).path for i in range(metadata.num_columns)]
    wanted = [
      i for i, p in enumerate(leaves) if any(f"{p}.".startswith(f"{c}.") for c in read)
    ]
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    rows = [group.num_rows for group in groups]
    sizes = [sum(g.column(i).total_uncompressed_size for i in wanted) for g in groups]
    return np.array([*rows, *sizes], np.uint64)

  def null_pictures(self, number: int) -> bool:
    """Whether it says that a row group has rows without a picture's bytes."""
    metadata = self.metadata
    for i in range(metadata.num_columns):
      if metadata.schema.column(i).path in (self.picture, f"{self.picture}.bytes"):
        facts = metadata.row_group(number).column(i).statistics
        return facts is not None and facts.has_null_count and facts.null_count > 0
    return False


def read_footer(
  file: pq.ParquetFile, path: str, *, image_key: str = "", caption_key: str = ""
) -> Footer:
  """The footer of an open file.

  Args:
    file: the file.
    path: what errors call it.
    image_key: the column of pictures, of any kind; "" for a known name.
    caption_key: the column of captions; "" for a known name.

  Raises:
    ValueError: if it has not these columns, each once.
  """
  schema = file.schema_arrow
  types = {f.name: f.type for f in schema if schema.names.count(f.name) == 1}
  kinds = {name: _kind(types[name]) for name in types}
  as_bytes = (image_key,) if image_key else _BYTES_COLUMNS
  as_paths = (image_key,) if image_key else _PATH_COLUMNS
  names = (caption_key,) if caption_key else _CAPTION_COLUMNS
  pictures = [(name, kinds.get(name)) for name in as_bytes]
  found: list[tuple[str, Any]] = [
    (name, kind) for name, kind in pictures if kind in ("bytes", "struct")
  ]
  found += [(name, "path") for name in as_paths if kinds.get(name) == "text"]
  captions = [n for n in names if kinds.get(n) in ("text", "bytes", "texts")]
  if found and captions:
    return Footer(file.metadata, *found[0], captions[0])
  columns = ", ".join(f"{field.name}: {field.type}" for field in schema)
  raise ValueError(
    f"{path}: expected pictures as bytes in a column {', '.join(as_bytes)} or as "
    f"paths in {', '.join(as_paths)}, and captions in {' or '.join(names)}, got "
    f"{columns[:300]}; rename the columns, or say which they are (image_key, "
    "caption_key)."
  )


def _kind(kind: Any) -> str:
  """Text, texts, bytes, struct (with bytes), or other."""
  types = pa.types
  if types.is_dictionary(kind):
    kind = kind.value_type
  if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
    return "text"
  if types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind):
    return "bytes"
  if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
    return "texts" if _kind(kind.value_type) in ("text", "bytes") else "other"
  if types.is_struct(kind):
    fields = {field.name: _kind(field.type) for field in kind}
    return "struct" if fields.get("bytes") == "bytes" else "other"
  return "other"
