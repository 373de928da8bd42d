"""Tars for tests, member by member and as img2dataset writes them."""

import io
import json
import pathlib
import tarfile
from collections.abc import Iterable, Mapping, Sequence

import pyarrow
import pyarrow.parquet

BLOCK = 512
END_MARK = bytes(2 * BLOCK)


def member(
  name: str, data: bytes = b"", form: int = tarfile.USTAR_FORMAT, **attributes
) -> bytes:
  """Header, or headers, and data up to the next block.

  Raises:
    ValueError: if the format has no room for the name.
  """
  info = tarfile.TarInfo(name)
  info.size = len(data)
  for attribute, value in attributes.items():
    setattr(info, attribute, value)
  return info.tobuf(form, "utf-8", "surrogateescape") + data + bytes(-len(data) % BLOCK)


def tar(
  members: Mapping[str, bytes] | Iterable[tuple[str, bytes]], **attributes
) -> bytes:
  """A whole tar of one format."""
  pairs = members.items() if isinstance(members, Mapping) else members
  return b"".join(member(n, data, **attributes) for n, data in pairs) + END_MARK


def img2dataset(
  folder: pathlib.Path, shard: int, samples: Sequence[tuple[bytes, str]]
) -> pathlib.Path:
  """Writes 00000.tar of pictures and captions, with 00000_stats.json and 00000.parquet.

  Its members are sorted by kind; their times have fractions, so that each has an extended
  header.
  """
  path = folder / f"{shard:05}.tar"
  rows = []
  with path.open("wb") as file, tarfile.open(fileobj=file, mode="w|") as out:
    for number, (picture, caption) in enumerate(samples):
      key = f"{shard:05}{number:04}"
      facts = {
        "caption": caption,
        "url": f"https://example.org/{key}.jpg",
        "key": key,
        "status": "success",
        "error_message": None,
        "width": 256,
        "height": 256,
      }
      rows.append(facts)
      data = {"jpg": picture, "json": json.dumps(facts, indent=4).encode()}
      for kind, content in (data | {"txt": caption.encode()}).items():
        info = tarfile.TarInfo(f"{key}.{kind}")
        info.size, info.mtime, info.mode = len(content), 1_700_000_000.25, 0o444
        info.uname = info.gname = "bigdata"
        out.addfile(info, io.BytesIO(content))
  pyarrow.parquet.write_table(
    pyarrow.Table.from_pylist(rows), path.with_suffix(".parquet")
  )
  stats = {"count": len(rows) + 1, "successes": len(rows), "failed_to_download": 1}
  (folder / f"{shard:05}_stats.json").write_text(json.dumps(stats, indent=4))
  return path
