"""Small files that would take much memory, much time or the whole stack to read."""

import pickle
import subprocess
import sys
import textwrap
import time
import zipfile

import numpy as np
import peers
import pytest

from rankclip_jax.interop import torch_archive

MODULE = b"c__torch__.m\nM\n)\x81"  # an object of a class of TorchScript's


def forged(path, program: bytes, script: bool):
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("x/data.pkl", program)
    if script:
      archive.writestr("x/constants.pkl", pickle.dumps((), 2))
  return path


def text(value: bytes) -> bytes:
  return b"X" + len(value).to_bytes(4, "little") + value


def put(i: int) -> bytes:
  return b"r" + i.to_bytes(4, "little")


def get(i: int) -> bytes:
  return b"j" + i.to_bytes(4, "little")


def holding_itself() -> bytes:
  return b"\x80\x02" + MODULE + put(0) + b"}" + text(b"a") + get(0) + b"sb."


def deep(levels: int) -> bytes:
  inner = (MODULE + b"}" + text(b"a")) * levels
  return b"\x80\x02" + inner + b"N" + b"sb" * levels + b"."


def two_way(levels: int, name: bytes = b"a") -> bytes:
  """Modules that each hold the one before twice: 2 ** levels ways through them."""
  program = b"\x80\x02" + MODULE + b"}b" + put(0)
  for i in range(levels):
    both = text(name) + get(i) + text(b"b") + get(i)
    program += b"0" + MODULE + b"}(" + both + b"ub" + put(i + 1)
  return program + b"."


@pytest.mark.parametrize(
  "program",
  [
    holding_itself(),
    deep(3000),
    deep(50_000),
    two_way(22),
    two_way(60),
    two_way(40, b"n" * 100_000),
  ],
  ids=["itself", "deep", "very deep", "two ways", "more ways", "long names"],
)
def test_modules_without_an_end_are_refused_soon(tmp_path, program):
  path = forged(tmp_path / "x.pt", program, script=True)
  start = time.process_time()
  with pytest.raises(ValueError, match="modules within modules, more than 100 deep"):
    torch_archive.load(path)
  assert time.process_time() - start < 10  # seconds; two ways took minutes and more


def test_a_module_in_two_places_is_there_twice(tmp_path):
  torch = peers.torch
  net = torch.nn.Module()
  net.a = net.b = torch.nn.Linear(2, 2)
  with pytest.warns(DeprecationWarning, match="torch.jit"):
    torch.jit.script(net).save(tmp_path / "x.pt")
  read = torch_archive.load(tmp_path / "x.pt")
  assert read.keys() == net.state_dict().keys()
  np.testing.assert_array_equal(read["a.weight"], read["b.weight"])


@pytest.mark.parametrize("levels", [3000, 100_000])
def test_containers_that_are_too_deep_are_refused(tmp_path, levels):
  program = b"\x80\x02" + b"]" * levels + b"a" * (levels - 1) + b"."
  with pytest.raises(ValueError, match=r"x\.pt is damaged \(RecursionError"):
    torch_archive.load(forged(tmp_path / "x.pt", program, script=False))


def test_names_that_are_none_are_refused(tmp_path):
  program = b"\x80\x02" + MODULE + b"}K\x01Nsb."
  with pytest.raises(ValueError, match="a module whose attributes have no names"):
    torch_archive.load(forged(tmp_path / "x.pt", program, script=True))


@pytest.mark.parametrize(
  "instruction", [b"r\xff\xff\xff\x07", b"r\xff\xff\xff\xff", b"p134217727\n"]
)
def test_a_place_to_remember_takes_no_memory(tmp_path, instruction):
  """In a process of its own, which may have 1 GiB more than it begins with."""
  path = forged(tmp_path / "x.pt", b"\x80\x02}" + instruction + b".", script=False)
  assert path.stat().st_size < 200
  code = """
    import pathlib, resource, sys
    from rankclip_jax.interop import torch_archive
    peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    before = peak()
    try:
      torch_archive.load(pathlib.Path(sys.argv[1]))
    except ValueError as error:
      print(error)
    assert peak() - before < 2**20, (before, peak())
  """
  done = subprocess.run(
    [sys.executable, "-c", textwrap.dedent(code), str(path)],
    capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  assert "remembers a value at" in done.stdout
