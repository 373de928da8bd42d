"""Runs the pickle of a PyTorch archive with stand-ins: tensors and containers alone.

A pickle is a program. This reader knows the few functions that tensors and plain
containers need, has stand-ins of its own for them, and refuses every other name before
anything is called.
"""

import collections
import io
import math
import pickle
import pickletools
import reprlib
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
# TorchScript's modules within modules, and the length of all names together, with some
# characters for each: far beyond a CLIP's, and walked in a second or two.
_DEEPEST, _LONGEST, _PER_NAME = 100, 1 << 26, 64
AGAIN = "copy or download it again"


def _resave(weights_only: bool) -> str:
  return (
    "keep the tensors alone, with PyTorch: "
    f"x = torch.load(FILE, weights_only={weights_only}); "
    "x = x.state_dict() if hasattr(x, 'state_dict') else x.get('state_dict', x); "
    "torch.save({k: v.detach().to_dense().contiguous() for k, v in x.items() "
    "if torch.is_tensor(v)}, 'weights.pt')"
  )


RESAVE = _resave(weights_only=True)
_TRUSTING = f"if you trust whoever wrote it, {_resave(weights_only=False)}"
_FLOATING = "quantised weights cannot be read, give the float32, float16 or bfloat16 ones"


class Refused(ValueError):
  """Goes on after the file's name: "holds ..."."""


class Module:
  """Whatever a TorchScript archive calls a class of its own: attributes, no methods."""

  __slots__ = ("_attributes",)

  def __new__(cls, *_: Any):
    self = super().__new__(cls)
    self._attributes = {}
    return self

  def __setstate__(self, state: Any) -> None:
    if not isinstance(state, dict) or not all(type(k) is str for k in dict.keys(state)):
      raise Refused("holds a module whose attributes have no names.")
    self._attributes = dict(dict.items(state))

  def tensors(self) -> dict[str, np.ndarray]:
    """Parameters, buffers and other tensors by their dotted names, as a state dict.

    A module that is in two places is there twice, as in PyTorch's.

    Raises:
      Refused: if there are too many, as where a module holds itself.
    """
    found: dict[str, np.ndarray] = {}
    left, todo = _LONGEST, [(0, "", self)]
    while todo:
      depth, prefix, module = todo.pop()
      within = []
      for name, value in module._attributes.items():
        left -= len(prefix) + len(name) + _PER_NAME
        if left < 0 or depth > _DEEPEST:
          raise Refused(
            f"holds modules within modules, more than {_DEEPEST} deep or without an end; "
            f"{AGAIN}."
          )
        if isinstance(value, np.ndarray):
          found[prefix + name] = value
        elif isinstance(value, Module):
          within.append((depth + 1, f"{prefix}{name}.", value))
      todo += reversed(within)
    return found


def load(data: memoryview, read: Callable[[str], memoryview], is_script: bool) -> Any:
  """What a pickle holds, with arrays for tensors.

  Args:
    data: the pickle.
    read: gives a storage's bytes by its name.
    is_script: whether TorchScript's own classes may be there; they become `Module`s.

  Raises:
    Refused: if there is anything else, of which nothing has been run then.
    Exception: of any kind, if the pickle is damaged.
  """
  program = bytes(data)
  # Where values are remembered is an index, for which memory is taken at once.
  for op, argument, _ in pickletools.genops(program):
    if op.name in ("PUT", "LONG_BINPUT") and int(argument or 0) > len(program):
      raise Refused(f"remembers a value at {argument} of {len(program)}; {AGAIN}.")
  return _plain(_Unpickler(program, read, is_script).load(), {})


class _Function:
  """One of our stand-ins. A pickle can call it and do nothing else to it."""

  __slots__ = ("_function",)

  def __init__(self, function: Callable):
    object.__setattr__(self, "_function", function)

  def __call__(self, *args: Any) -> Any:
    return self._function(*args)

  def __setattr__(self, name: str, value: Any) -> None:
    raise Refused("holds a pickle that tries to change the program that reads it.")


class _Unpickler(pickle.Unpickler):
  def __init__(self, data: bytes, read: Callable[[str], memoryview], is_script: bool):
    super().__init__(io.BytesIO(data))
    self._read = read
    self._is_script = is_script
    self._storages: dict[str, memoryview] = {}

  def find_class(self, module: str, name: str) -> Any:
    known = _KNOWN.get((module, name))
    if known is not None:
      return known
    if self._is_script and module.split(".")[0] == "__torch__":
      return Module
    if (module, name) in _HARMLESS:
      raise Refused(_HARMLESS[module, name])
    if module == "torch" and name.startswith("float"):
      raise Refused(f"holds {name} numbers; {_FLOATING}.")
    raise Refused(
      f"holds {module}.{name}, which is neither a tensor nor a plain container; nothing "
      f"of it was run. Do not load it with PyTorch either unless you trust it; "
      f"{_TRUSTING}."
    )

  def persistent_load(self, pid: Any) -> np.ndarray:
    match pid:
      case ("storage", str(kind), str(key), str(), int()) if kind in _DTYPES:
        dtype = _DTYPES[kind]
      case _:
        raise Refused(f"refers to something that is no storage; {AGAIN}.")
    if key not in self._storages:
      self._storages[key] = self._read(f"data/{key}")
    data = self._storages[key]
    if len(data) % dtype.itemsize:
      raise Refused(f"has {len(data)} bytes of {dtype} in data/{key}; {AGAIN}.")
    return np.frombuffer(data, dtype)


def _tensor(
  storage: Any, offset: int, shape: tuple, strides: tuple, *unused: Any, dtype: Any = None
) -> np.ndarray:
  """`torch._utils._rebuild_tensor_v2`; `unused` are requires_grad and hooks."""
  if len(unused) > 2 and unused[2]:
    raise Refused("holds a view of complex numbers, which no CLIP has.")
  if type(dtype) is str:
    storage = storage.view(_DTYPES[dtype])
  numbers = (offset, *shape, *strides)
  if len(shape) != len(strides) or not all(type(n) is int and n >= 0 for n in numbers):
    raise Refused(f"holds a tensor of no possible shape {_short(shape)}; {AGAIN}.")
  size = math.prod(shape)
  if size and any(n > 1 and not s for n, s in zip(shape, strides, strict=True)):
    raise Refused(
      f"holds a tensor {_short(shape)} that repeats a smaller one (by expand), and is "
      f"not read so; {RESAVE}."
    )
  last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
  if size and (last >= len(storage) or size > len(storage)):
    raise Refused(
      f"holds a tensor {_short(shape)} with strides {_short(strides)} at {offset}, which "
      f"is more than the {len(storage)} elements of its storage; {AGAIN}."
    )
  if not size:
    return np.empty(shape, storage.dtype)
  byte_strides = [s * storage.itemsize for s in strides]
  return np.lib.stride_tricks.as_strided(
    storage[offset:], shape, byte_strides, writeable=False
  )


def _short(value: Any) -> str:
  """Its repr, however deep and large it is."""
  return reprlib.repr(value)


def _tensor_v3(
  storage: Any, offset: int, shape: tuple, strides: tuple, grad: Any, hooks: Any,
  dtype: Any, *metadata: Any,
) -> np.ndarray:  # fmt: skip
  return _tensor(storage, offset, shape, strides, grad, hooks, *metadata, dtype=dtype)


def _of_type(function: Any, kind: Any, args: Any, state: Any) -> Any:
  """`torch._tensor._rebuild_from_type_v2`, which buffers are made by."""
  if not isinstance(function, _Function):
    raise Refused(f"holds a tensor that nothing makes; {AGAIN}.")
  return function(*args)


def _first(value: Any, *unused: Any) -> Any:
  return value


_KNOWN: Mapping[tuple[str, str], Any] = {
  ("collections", "OrderedDict"): collections.OrderedDict,
  ("torch", "Size"): _Function(tuple),
  ("torch", "device"): _Function(_first),
  ("torch", "Tensor"): "Tensor",
  ("torch._utils", "_rebuild_tensor_v2"): _Function(_tensor),
  ("torch._utils", "_rebuild_tensor_v3"): _Function(_tensor_v3),
  ("torch._utils", "_rebuild_parameter"): _Function(_first),
  ("torch._utils", "_rebuild_parameter_with_state"): _Function(_first),
  ("torch._tensor", "_rebuild_from_type_v2"): _Function(_of_type),
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
# What is common in checkpoints and not read here.
_HARMLESS: Mapping[tuple[str, str], str] = {
  ("torch._utils", "_rebuild_sparse_tensor"): f"holds a sparse tensor; {RESAVE}.",
  ("torch._utils", "_rebuild_qtensor"): f"holds a quantised tensor; {_FLOATING}.",
  ("torch._utils", "_rebuild_meta_tensor_no_storage"): (
    'holds a tensor of the device "meta", which has no numbers; save the model with its '
    "weights."
  ),
  **{
    (module, name): f"holds {module}.{name} beside tensors, which is not read here; "
    f"{_TRUSTING}."
    for module in ("numpy", "numpy.core.multiarray", "numpy._core.multiarray")
    for name in ("dtype", "ndarray", "scalar", "_reconstruct")
  },
}


def _plain(value: Any, seen: dict[int, Any]) -> Any:
  """`value` in fresh dicts, lists and tuples; every shared part is converted once."""
  if type(value) in _PLAIN or isinstance(value, Module):
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
  raise Refused(f"holds a {type(value).__name__} where a value should be; {RESAVE}.")
