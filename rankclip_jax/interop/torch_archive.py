"""Reads what `torch.save` and `torch.jit.save` wrote, without PyTorch: tensors alone.

Such a file is a zip archive: a pickle that says how things hang together, which
`torch_pickle` reads, and one uncompressed record per storage, which tensors are views of.
"""

import mmap
import pathlib
import struct
import zipfile
import zlib
from typing import Any

from rankclip_jax.interop import torch_pickle
from rankclip_jax.interop.torch_pickle import AGAIN, RESAVE, Refused

_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_LOCAL_HEADER = 30  # bytes, before a record's name


def load(path: pathlib.Path) -> Any:
  """What is saved in an archive of PyTorch (1.6 and later), with arrays for tensors.

  Args:
    path: of the file.

  Returns:
    The dicts, lists, tuples, numbers and strings that were saved. Of a TorchScript
    archive, a flat dict of the tensors that its modules hold, by their dotted names.
    Arrays may be read-only views of the file.

  Raises:
    ValueError: if it is no such archive, damaged, or holds anything else, of which
      nothing has been executed then.
  """
  _refuse_other_formats(path)
  try:
    records = _Records(path)
    is_script = "constants.pkl" in records
    value = torch_pickle.load(records.read("data.pkl"), records.read, is_script)
    if not is_script:
      return value
    if not isinstance(value, torch_pickle.Module):
      raise Refused(f"is a TorchScript archive that holds no module; {AGAIN}.")
    return value.tensors()
  except Refused as error:
    raise ValueError(f"{path} {error}") from None
  except Exception as error:  # whatever a damaged pickle may lead to
    raise ValueError(
      f"{path} is damaged ({type(error).__name__}: {error}); {AGAIN}."
    ) from error


class _Records:
  """The records of an archive, by name within its one folder."""

  def __init__(self, path: pathlib.Path):
    try:
      with zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
    except zipfile.BadZipFile as error:
      raise Refused(f"is cut short or damaged ({error}); {AGAIN}.") from None
    with path.open("rb") as file:
      self._bytes = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    parts = [i.filename.split("/") for i in infos]
    roots = {p[0] for p in parts if len(p) == 2 and p[1] == "data.pkl"}
    if len(roots) != 1:
      raise Refused(
        "is a zip archive, but not of torch.save or torch.jit.save: it has no data.pkl."
      )
    prefix = f"{roots.pop()}/"
    self._infos = {
      i.filename.removeprefix(prefix): i for i in infos if i.filename.startswith(prefix)
    }
    if "byteorder" in self and bytes(self.read("byteorder")) != b"little":
      raise Refused("was written on a big-endian machine; save it on another.")

  def __contains__(self, name: str) -> bool:
    return name in self._infos

  def read(self, name: str) -> memoryview:
    """A view of the record's bytes.

    Raises:
      ValueError: if it is not there, compressed, cut short, or its checksum is wrong.
    """
    info = self._infos.get(name)
    if info is None:
      raise Refused(f"lacks its record {name}; {AGAIN}.")
    if info.compress_type != zipfile.ZIP_STORED:
      raise Refused(f"was packed again: {name} is compressed; unpack it, or {RESAVE}.")
    header = self._bytes[info.header_offset :][:_LOCAL_HEADER]
    if bytes(header[:4]) != b"PK\x03\x04":
      raise Refused(f"is damaged at the record {name}; {AGAIN}.")
    lengths = struct.unpack("<HH", header[26:30])
    start = info.header_offset + _LOCAL_HEADER + sum(lengths)
    data = self._bytes[start : start + info.file_size]
    if len(data) != info.file_size or zlib.crc32(data) != info.CRC:
      raise Refused(f"is damaged: the checksum of its record {name} is wrong; {AGAIN}.")
    return data


def _refuse_other_formats(path: pathlib.Path) -> None:
  with path.open("rb") as file:
    head = file.read(512)
  if head.startswith(b"PK"):
    return
  if head.startswith(_LEGACY):
    raise ValueError(
      f"{path} was written by PyTorch before 1.6 (or with its old format); {RESAVE}."
    )
  if head.lstrip()[:1] == b"<":
    raise ValueError(
      f"{path} is a web page and no weights (an error page, or one that wants a login); "
      "download it again."
    )
  raise ValueError(
    f"{path} is no file of weights, neither safetensors nor an archive of torch.save; "
    f"its first bytes are {head[:8]!r}. Give the file of weights, or the folder that has "
    "it with its config."
  )
