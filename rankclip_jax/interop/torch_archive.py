"""Reads what `torch.save` and `torch.jit.save` wrote, without PyTorch: tensors alone.

Such a file is a zip archive: a pickle that says how things hang together, and one
uncompressed record per storage, which tensors are views of. A pickle is a program; this
reader knows the few functions that tensors and plain containers need, has stand-ins of
its own for them, and refuses every other name before anything is called.
"""

import collections
import io
import math
import mmap
import pathlib
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np

_DTYPES = {
  "float32": np.dtype(np.float32),
  "float64": np.dtype(np.float64),
  "float16": np.dtype(np.float16),
  "bfloat16": np.dtype(ml_dtypes.bfloat16),
  "complex64": np.dtype(np.complex64),
  "complex128": np.dtype(np.complex128),
  "bool": np.dtype(np.bool_),
  **{f"{u}int{n}": np.dtype(f"{u}int{n}") for u in ("", "u") for n in (8, 16, 32, 64)},
}
# What a storage is called, and what its elements are.
_STORAGES = {
  "FloatStorage": "float32",
  "DoubleStorage": "float64",
  "HalfStorage": "float16",
  "BFloat16Storage": "bfloat16",
  "ComplexFloatStorage": "complex64",
  "ComplexDoubleStorage": "complex128",
  "BoolStorage": "bool",
  "ByteStorage": "uint8",
  "CharStorage": "int8",
  "ShortStorage": "int16",
  "IntStorage": "int32",
  "LongStorage": "int64",
  "UntypedStorage": "uint8",
}
_PLAIN = (str, bytes, int, float, complex, bool, type(None), np.ndarray)
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_LOCAL_HEADER = 30  # bytes, before a record's name
_AGAIN = "copy or download it again"
_RESAVE = (
  "keep the weights alone, where it came from: "
  "torch.save(torch.load(FILE)['state_dict'], 'weights.pt')"
)


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
    value = _Unpickler(records).load()
    plain = _plain(value, {})
  except _Refused as error:
    raise ValueError(f"{path} {error}") from None
  except Exception as error:  # whatever a damaged pickle may lead to
    raise ValueError(
      f"{path} is damaged ({type(error).__name__}: {error}); {_AGAIN}."
    ) from error
  if not records.is_script:
    return plain
  if not isinstance(plain, _Module):
    raise ValueError(f"{path} is a TorchScript archive that holds no module; {_RESAVE}.")
  return dict(plain.tensors())


class _Refused(ValueError):
  """Goes on after the file's name: "holds ..."."""


class _Records:
  """The records of an archive, by name within its one folder."""

  def __init__(self, path: pathlib.Path):
    try:
      with zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
    except zipfile.BadZipFile as error:
      raise _Refused(f"is cut short or damaged ({error}); {_AGAIN}.") from None
    with path.open("rb") as file:
      self._bytes = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    tops = {i.filename.split("/")[0] for i in infos if i.filename.count("/") == 1}
    roots = {t for t in tops if f"{t}/data.pkl" in {i.filename for i in infos}}
    if len(roots) != 1:
      raise _Refused(
        "is a zip archive, but not of torch.save or torch.jit.save: it has no data.pkl."
      )
    prefix = f"{roots.pop()}/"
    self._infos = {
      i.filename.removeprefix(prefix): i for i in infos if i.filename.startswith(prefix)
    }
    self.is_script = "constants.pkl" in self._infos
    if "byteorder" in self._infos and bytes(self.read("byteorder")) != b"little":
      raise _Refused("was written on a big-endian machine; save it on another.")

  def read(self, name: str) -> memoryview:
    """A view of the record's bytes.

    Raises:
      ValueError: if it is not there, compressed, cut short, or its checksum is wrong.
    """
    info = self._infos.get(name)
    if info is None:
      raise _Refused(f"lacks its record {name}; {_AGAIN}.")
    if info.compress_type != zipfile.ZIP_STORED:
      raise _Refused(f"was packed again: {name} is compressed; unpack it, or {_RESAVE}.")
    header = self._bytes[info.header_offset :][:_LOCAL_HEADER]
    if bytes(header[:4]) != b"PK\x03\x04":
      raise _Refused(f"is damaged at the record {name}; {_AGAIN}.")
    lengths = struct.unpack("<HH", header[26:30])
    start = info.header_offset + _LOCAL_HEADER + sum(lengths)
    data = self._bytes[start : start + info.file_size]
    if len(data) != info.file_size or zlib.crc32(data) != info.CRC:
      raise _Refused(f"is damaged: the checksum of its record {name} is wrong; {_AGAIN}.")
    return data


class _Module:
  """Whatever a TorchScript archive calls a class of its own: attributes, no methods."""

  __slots__ = ("_attributes",)

  def __new__(cls, *_: Any):
    self = super().__new__(cls)
    self._attributes = {}
    return self

  def __setstate__(self, state: Any) -> None:
    if not isinstance(state, dict):
      raise _Refused("holds a module without attributes.")
    self._attributes = {str(k): _plain(v, {}) for k, v in state.items()}

  def tensors(self, prefix: str = "") -> list[tuple[str, np.ndarray]]:
    """Parameters, buffers and other tensors, with those of the modules within."""
    found = []
    for name, value in self._attributes.items():
      if isinstance(value, np.ndarray):
        found.append((prefix + name, value))
      elif isinstance(value, _Module):
        found += value.tensors(f"{prefix}{name}.")
    return found


class _Function:
  """One of our stand-ins. A pickle can call it and do nothing else to it."""

  __slots__ = ("_function",)

  def __init__(self, function: Callable):
    object.__setattr__(self, "_function", function)

  def __call__(self, *args: Any) -> Any:
    return self._function(*args)

  def __setattr__(self, name: str, value: Any) -> None:
    raise _Refused("holds a pickle that tries to change the program that reads it.")


class _Unpickler(pickle.Unpickler):
  def __init__(self, records: _Records):
    super().__init__(io.BytesIO(records.read("data.pkl")))
    self._records = records
    self._storages: dict[str, memoryview] = {}

  def find_class(self, module: str, name: str) -> Any:
    known = _KNOWN.get((module, name))
    if known is not None:
      return known
    if self._records.is_script and module.split(".")[0] == "__torch__":
      return _Module
    raise _Refused(
      f"holds {module}.{name}, which is neither a tensor nor a plain container; nothing "
      f"of it was run. Do not load it with PyTorch either unless you trust it; if you "
      f"do, {_RESAVE}."
    )

  def persistent_load(self, pid: Any) -> np.ndarray:
    match pid:
      case ("storage", str(kind), str(key), str(), int()) if kind in _DTYPES:
        dtype = _DTYPES[kind]
      case _:
        raise _Refused(f"refers to something that is no storage; {_RESAVE}.")
    if key not in self._storages:
      self._storages[key] = self._records.read(f"data/{key}")
    data = self._storages[key]
    if len(data) % dtype.itemsize:
      raise _Refused(f"has {len(data)} bytes of {dtype} in data/{key}; {_AGAIN}.")
    return np.frombuffer(data, dtype)


def _tensor(
  storage: Any, offset: int, shape: tuple, strides: tuple, *unused: Any, dtype: Any = None
) -> np.ndarray:
  """`torch._utils._rebuild_tensor_v2`; `unused` are requires_grad and hooks."""
  if len(unused) > 2 and unused[2]:
    raise _Refused(f"holds a tensor with {unused[2]}, which is not supported; {_RESAVE}.")
  if dtype is not None:
    storage = storage.view(_DTYPES[dtype])
  numbers = (offset, *shape, *strides)
  if len(shape) != len(strides) or not all(type(n) is int and n >= 0 for n in numbers):
    raise _Refused(f"holds a tensor of no possible shape {shape}; {_AGAIN}.")
  size = math.prod(shape)
  last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
  if size and (last >= len(storage) or size > len(storage)):
    raise _Refused(
      f"holds a tensor {shape} with strides {strides} at {offset}, which is more than "
      f"the {len(storage)} elements of its storage; {_AGAIN}."
    )
  if not size:
    return np.empty(shape, storage.dtype)
  byte_strides = [s * storage.itemsize for s in strides]
  return np.lib.stride_tricks.as_strided(
    storage[offset:], shape, byte_strides, writeable=False
  )


def _tensor_v3(
  storage: Any, offset: int, shape: tuple, strides: tuple, grad: Any, hooks: Any,
  dtype: Any, *metadata: Any,
) -> np.ndarray:  # fmt: skip
  return _tensor(storage, offset, shape, strides, grad, hooks, *metadata, dtype=dtype)


def _parameter(data: np.ndarray, *unused: Any) -> np.ndarray:
  return data


def _first(value: Any, *unused: Any) -> Any:
  return value


_KNOWN: Mapping[tuple[str, str], Any] = {
  ("collections", "OrderedDict"): collections.OrderedDict,
  ("torch", "Size"): _Function(tuple),
  ("torch", "device"): _Function(lambda *args: ":".join(map(str, args))),
  ("torch._utils", "_rebuild_tensor_v2"): _Function(_tensor),
  ("torch._utils", "_rebuild_tensor_v3"): _Function(_tensor_v3),
  ("torch._utils", "_rebuild_parameter"): _Function(_parameter),
  # Lists and tuples of TorchScript, which come with their type.
  ("torch.jit._pickle", "restore_type_tag"): _Function(_first),
  **{
    ("torch.jit._pickle", f"build_{kind}list"): _Function(list)
    for kind in ("int", "double", "bool", "tensor")
  },
  # By name: a dtype itself would be a pickle's to change.
  **{("torch", name): name for name in _DTYPES},
  **{
    (module, name): dtype
    for name, dtype in _STORAGES.items()
    for module in ("torch", "torch.cuda", "torch.storage")
  },
}


def _plain(value: Any, seen: dict[int, Any]) -> Any:
  """`value` in fresh dicts, lists and tuples; every shared part is converted once."""
  if type(value) in _PLAIN or isinstance(value, _Module):
    return value
  if id(value) in seen:
    return seen[id(value)]
  if isinstance(value, dict):  # also an OrderedDict, whose own methods are not trusted
    seen[id(value)] = out = {}
    out.update((_plain(k, seen), _plain(v, seen)) for k, v in dict.items(value))
    return out
  if isinstance(value, list):
    seen[id(value)] = out = []
    out.extend(_plain(v, seen) for v in value)
    return out
  if isinstance(value, tuple | set | frozenset):
    seen[id(value)] = out = tuple(_plain(v, seen) for v in value)
    return out
  raise _Refused(f"holds a {type(value).__name__} where a value should be; {_RESAVE}.")


def _refuse_other_formats(path: pathlib.Path) -> None:
  with path.open("rb") as file:
    head = file.read(512)
  if head.startswith(b"PK"):
    return
  if head.startswith(_LEGACY):
    raise ValueError(
      f"{path} was written by PyTorch before 1.6 (or with its old format); save it once "
      "more where PyTorch is: torch.save(torch.load(FILE, weights_only=True), FILE)."
    )
  if head.lstrip()[:1] == b"<":
    raise ValueError(
      f"{path} is a web page and no weights (an error page, or one that wants a login); "
      "download it again."
    )
  if head[8:9] == b"{":
    raise ValueError(f"{path} is a safetensors file; rename it to .safetensors.")
  raise ValueError(
    f"{path} is no archive of torch.save; {_AGAIN}. (Its first bytes are {head[:8]!r}.)"
  )
