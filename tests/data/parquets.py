"""Parquet files for tests."""

import io

import pyarrow as pa
import pyarrow.parquet as pq

from tests.data import examples
from tests.data.examples import put

PICTURES = [b"picture %d" % i for i in range(5)]
TEXTS = [f"caption {i}" for i in range(5)]
STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def outcome(source, index):
  return examples.outcome(source, index, "image", "captions")


def outcomes(source):
  return examples.outcomes(source, "image", "captions")


def write(path, columns, *, group: int = 2, **options) -> str:
  """Writes a table, here or in memory, and returns the path."""
  table = columns if isinstance(columns, pa.Table) else pa.table(columns)
  pq.write_table(table, out := io.BytesIO(), row_group_size=group, **options)
  return put(path, out.getvalue())


def pairs(count: int, start: int = 0) -> dict[str, list]:
  numbers = range(start, start + count)
  return {
    "image": [b"picture %d" % i for i in numbers],
    "caption": [f"caption {i}" for i in numbers],
  }
