"""What PyTorch saves is read as PyTorch reads it, and nothing in it is ever run."""

import collections
import io
import os
import pickle
import random
import zipfile

import ml_dtypes
import numpy as np
import peers
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankclip_jax.interop import torch_archive, torch_pickle

torch = peers.torch
DTYPES = (
  *("float32", "float64", "float16", "bfloat16", "complex64", "bool"),
  *("uint8", "int8", "int16", "int32", "int64", "uint16"),
)


def saved(folder, content, save=torch.save, name="x.pt"):
  path = folder / name
  save(content, path)
  return path


def assert_equal(ours, theirs):
  """An array and a tensor, bit by bit."""
  assert isinstance(ours, np.ndarray)
  assert str(ours.dtype) == str(theirs.dtype).removeprefix("torch.")
  assert ours.shape == tuple(theirs.shape)
  whole = theirs.detach().contiguous()
  if ours.dtype == ml_dtypes.bfloat16:
    ours, whole = ours.astype(np.float32), whole.float()
  np.testing.assert_array_equal(ours, whole.numpy())


@st.composite
def tensors(draw):
  """Random numbers, seen whole, transposed, in part, or one by one."""
  shape = draw(st.lists(st.integers(0, 4), max_size=3))
  seed = draw(st.integers(0, 1000))
  x = torch.tensor(np.random.default_rng(seed).integers(0, 100, shape))
  x = x.to(getattr(torch, draw(st.sampled_from(DTYPES))))
  view = draw(st.sampled_from(["whole", "transposed", "part", "strided"]))
  if x.ndim and view == "part":
    x = x[x.shape[0] // 2 :]
  if x.ndim and view == "strided":
    x = x[::2]
  return x.T if x.ndim == 2 and view == "transposed" else x


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text(min_size=1), tensors(), max_size=4))
def test_every_view_of_every_type(tmp_path_factory, content):
  path = saved(tmp_path_factory.mktemp("views"), content)
  read = torch_archive.load(path)
  assert list(read) == list(content)
  for name, x in content.items():
    assert_equal(read[name], x)


def test_a_training_file_with_everything_around_the_weights(tmp_path):
  torch.manual_seed(0)
  net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
  optimizer = torch.optim.AdamW(net.parameters())
  net(torch.randn(5, 3)).sum().backward()
  optimizer.step()
  content = {
    "epoch": 3,
    "name": "rankclip",
    "state_dict": net.state_dict(),
    "optimizer": optimizer.state_dict(),
    "parameter": net[0].weight,
    "scaler": {"scale": 65536.0, "growth": None},
    "shape": torch.Size([2, 3]),
    "dtype": torch.float16,
  }
  read = torch_archive.load(saved(tmp_path, content))
  assert (read["epoch"], read["name"]) == (3, "rankclip")
  assert read["scaler"] == content["scaler"]
  assert (read["shape"], read["dtype"]) == ((2, 3), "float16")
  assert read["state_dict"].keys() == net.state_dict().keys()
  for name, x in net.state_dict().items():
    assert_equal(read["state_dict"][name], x)
  assert_equal(read["parameter"], net[0].weight)
  for i, values in optimizer.state_dict()["state"].items():
    for name, x in values.items():
      assert_equal(read["optimizer"]["state"][i][name], x)
  group = optimizer.state_dict()["param_groups"][0]
  assert read["optimizer"]["param_groups"][0]["betas"] == group["betas"]


def test_what_shares_memory_is_read_once(tmp_path):
  x = torch.arange(1000.0)
  read = torch_archive.load(saved(tmp_path, {"a": x, "b": x[10:20], "c": [x, x]}))
  assert np.shares_memory(read["a"], read["b"])
  assert read["c"][0] is read["c"][1]


class Part(torch.nn.Module):
  def __init__(self):
    super().__init__()
    self.linear = torch.nn.Linear(3, 3)
    self.norm = torch.nn.BatchNorm1d(3)
    self.names = ["a", "b"]
    self.sizes = [1, 2]

  def forward(self, x):
    return self.norm(self.linear(x))


class Whole(torch.nn.Module):
  def __init__(self):
    super().__init__()
    self.parts = torch.nn.Sequential(Part(), Part())
    self.positional_embedding = torch.nn.Parameter(torch.randn(3))
    self.register_buffer("input_resolution", torch.tensor(224))

  def forward(self, x):
    return self.parts(x) + self.positional_embedding


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("how", ["script", "trace"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_archives_of_torchscript_give_their_state_dict(tmp_path, how, half):
  torch.manual_seed(0)
  net = Whole().eval()
  if half:
    net.half()
  example = torch.ones(2, 3, dtype=torch.float16 if half else torch.float32)
  jit = torch.jit.script(net) if how == "script" else torch.jit.trace(net, example)
  path = saved(tmp_path, jit, torch.jit.save)
  read = torch_archive.load(path)
  expected = torch.jit.load(path).state_dict()
  assert read.keys() == expected.keys()
  for name, x in expected.items():
    assert_equal(read[name], x)


class Storage:
  """Where a pickle refers to the first storage of its archive."""


class Code:
  """What a pickle does when it is read, given as a function and its arguments."""

  def __init__(self, *call):
    self.call = call

  def __reduce__(self):
    return self.call


def rewritten(path, new_pickle: bytes):
  """The archive with another data.pkl."""
  with zipfile.ZipFile(path) as old:
    records = {i.filename: old.read(i) for i in old.infolist()}
  with zipfile.ZipFile(path, "w") as new:
    for name, data in records.items():
      new.writestr(name, new_pickle if name.endswith("/data.pkl") else data)
  return path


def marker_calls(marker):
  """Ways to make a file by being read."""
  return {
    "system": Code(os.system, (f"touch {marker}",)),
    "eval": Code(eval, (f"__import__('os').mkdir({str(marker)!r})",)),
    "mkdir": Code(os.mkdir, (str(marker),)),
    "getattr": Code(getattr, ("", "join")),
  }


@pytest.mark.parametrize("what", ["system", "eval", "mkdir", "getattr"])
@pytest.mark.parametrize("where", ["top", "state_dict", "optimizer", "key"])
def test_code_in_a_pickle_is_refused_and_never_runs(tmp_path, what, where):
  marker = tmp_path / "it-ran"
  code = marker_calls(marker)[what]
  content = {
    "top": code,
    "state_dict": {"state_dict": {"w": torch.ones(2), "x": code}},
    "optimizer": {"state_dict": {"w": torch.ones(2)}, "optimizer": [code]},
    "key": {"state_dict": {(1, code): torch.ones(2)}},
  }[where]
  path = saved(tmp_path, content)
  with pytest.raises(ValueError, match=rf"holds \w+\.{what}, .*neither a ten") as error:
    torch_archive.load(path)
  assert str(path) in str(error.value)
  assert not marker.exists()
  if what != "getattr":  # that the marker tells what runs
    torch.load(path, weights_only=False)
    assert marker.exists()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_code_in_a_torchscript_archive_is_refused(tmp_path):
  marker = tmp_path / "it-ran"
  path = saved(tmp_path, torch.jit.script(Whole()), torch.jit.save)
  rewritten(path, pickle.dumps(marker_calls(marker)["system"], protocol=2))
  with pytest.raises(ValueError, match=r"posix\.system"):
    torch_archive.load(path)
  assert not marker.exists()


def op(name: str) -> bytes:
  module, attribute = name.split(" ")
  return b"c" + module.encode() + b"\n" + attribute.encode() + b"\n"


# \x80\x02 begins protocol 2, "." ends; ( is a mark, t a tuple, R a call, b sets state,
# \x81 makes an object, N is None, } an empty dict, s puts a pair into one.
@pytest.mark.parametrize(
  "program",
  {
    "an attribute through a known name": op("collections OrderedDict.__init__"),
    "a module through a known one": op("torch._utils sys.modules"),
    "a relative of a known name": op("collections namedtuple"),
    "a TorchScript class elsewhere": op("__torch__.x Y"),
    "state of a function": op("torch._utils _rebuild_tensor_v2")
    + b"N}X\x08\x00\x00\x00__code__Ns\x86b",
    "state of a class": op("collections OrderedDict")
    + b"N}X\x05\x00\x00\x00itemsNs\x86b",
    "attributes of a class": op("collections OrderedDict")
    + b"}X\x05\x00\x00\x00itemsNsb",
    "state of a type": op("torch FloatStorage") + b"}X\x01\x00\x00\x00aNsb",
    "a new function": op("torch._utils _rebuild_tensor_v2") + b"(t\x81",
    "a storage that is none": b"(X\x07\x00\x00\x00storageX\x01\x00\x00\x00xNNNtQ",
    "a file": b"X\x0b\x00\x00\x00/etc/passwdQ",
    "a tensor of nothing": op("torch._utils _rebuild_tensor_v2") + b"(NK\x00))tR",
    "a function as a value": op("torch._utils _rebuild_tensor_v2"),
    "an extension": b"\x82\x01",
  }.values(),
)  # fmt: skip
def test_tricks_of_pickles_are_refused(tmp_path, program):
  known = torch_archive, torch_pickle, collections.OrderedDict
  before = [dict(vars(x)) for x in known]
  path = saved(tmp_path, {"w": torch.ones(2)})
  rewritten(path, b"\x80\x02" + program + b".")
  with pytest.raises(ValueError, match=str(path)):
    torch_archive.load(path)
  assert before == [dict(vars(x)) for x in known]


@pytest.mark.parametrize(
  "offset, shape, strides",
  [
    (0, (3,), (1,)),
    (1, (2,), (1,)),
    (0, (2, 2), (1, 1)),  # more elements than there are, though all within
    (0, (10**12,), (0,)),
    (0, (2,), (-1,)),
    (-1, (1,), (1,)),
    (0, (2,), (1, 1)),
    (0, (2**62, 2**62), (0, 0)),
    (0, (1.5,), (1,)),
  ],
)
def test_a_tensor_may_not_reach_beyond_its_storage(tmp_path, offset, shape, strides):
  forged = Code(
    torch._utils._rebuild_tensor_v2, (Storage(), offset, shape, strides, False, None)
  )
  path = saved(tmp_path, {"w": torch.ones(2)})
  buffer = io.BytesIO()
  pickler = pickle.Pickler(buffer, protocol=2)
  kind = torch.FloatStorage
  pickler.persistent_id = lambda x: (
    ("storage", kind, "0", "cpu", 2) if isinstance(x, Storage) else None
  )
  pickler.dump(forged)
  rewritten(path, buffer.getvalue())
  with pytest.raises(ValueError, match=r"holds a tensor|damaged"):
    torch_archive.load(path)


def test_cut_and_changed_files_give_a_value_error_or_an_answer(tmp_path):
  path = saved(tmp_path, {"state_dict": {"a": torch.ones(5), "b": torch.ones(3)}})
  data = path.read_bytes()
  rng = random.Random(0)
  refused = 0
  for trial in range(400):
    changed = bytearray(data)
    if trial % 4 == 0:
      del changed[rng.randrange(len(data)) :]
    else:
      changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(changed)
    try:
      torch_archive.load(path)
    except ValueError as error:
      refused += str(path) in str(error)
  assert refused > 100  # every cut one, at least


def test_a_changed_pickle_gives_a_value_error_or_an_answer(tmp_path):
  """As above, with the zip archive itself and its checksums intact."""
  path = saved(tmp_path, {"state_dict": {"a": torch.ones(5), "b": torch.ones(3)}})
  with zipfile.ZipFile(path) as archive:
    name = next(n for n in archive.namelist() if n.endswith("/data.pkl"))
    data = archive.read(name)
  rng = random.Random(0)
  unnamed = 0
  for _ in range(400):
    changed = bytearray(data)
    changed[rng.randrange(len(data))] = rng.randrange(256)
    rewritten(path, bytes(changed))
    try:
      torch_archive.load(path)
    except ValueError as error:
      unnamed += str(path) not in str(error)
  assert unnamed == 0


def test_containers_that_hold_themselves_end(tmp_path):
  content = {"w": torch.ones(2)}
  content["self"] = content
  read = torch_archive.load(saved(tmp_path, content))
  assert read["self"] is read
