"""Archives that are not read: what is said of them, and that its remedy works."""

import argparse
import collections
import pickle
import re
import sys
import zipfile

import numpy as np
import peers
import pytest
import safetensors.torch

from rankclip_jax.interop import files

torch = peers.torch


def saved(folder, content, save=torch.save, name="x.pt"):
  path = folder / name
  save(content, path)
  return path


def legacy(content, path):
  torch.save(content, path, _use_new_zipfile_serialization=False)


def compressed(content, path):
  torch.save(content, path)
  with zipfile.ZipFile(path) as old:
    records = {i.filename: old.read(i) for i in old.infolist()}
  with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
    for name, data in records.items():
      new.writestr(name, data)


def without_a_record(content, path):
  torch.save(content, path)
  with zipfile.ZipFile(path) as old:
    records = {i.filename: old.read(i) for i in old.infolist()}
  with zipfile.ZipFile(path, "w") as new:
    for name, data in records.items():
      if not name.endswith("/data/0"):
        new.writestr(name, data)


def other_zip(_, path):
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("a/b.txt", "hello")


@pytest.mark.parametrize(
  "save, message",
  [
    (legacy, "before 1.6.*keep the tensors alone"),
    (compressed, "compressed; unpack it"),
    (without_a_record, "lacks its record data/0"),
    (other_zip, "no data.pkl"),
    (
      lambda _, p: p.write_bytes(pickle.dumps({"a": 1})),
      "no file of weights, neither safetensors nor an archive of torch.save",
    ),
    (lambda _, p: p.write_text("\n<!doctype html><p>404"), "web page"),
    (lambda _, p: p.write_bytes(b"\x09" + 7 * b"\0" + b'{"a": 1'), "damaged or no safe"),
  ],
)
def test_other_files_are_refused_with_what_to_do(tmp_path, save, message):
  path = saved(tmp_path, {"w": torch.ones(2)}, save)
  with pytest.raises(ValueError, match=message) as error:
    files.read_tensors(path)
  assert str(path) in str(error.value)


class Odd(torch.nn.Linear):
  """A whole module in a pickle, by a class that only its program knows."""


def remedied(path, message):
  """Runs the one command that an error proposes, and reads what it has written."""
  commands = re.findall(r"x = torch\.load.*'weights\.pt'\)", message)
  assert len(commands) == 1, message
  code = commands[0].replace("FILE", repr(str(path)))
  code = code.replace("'weights.pt'", repr(str(path.with_name("weights.pt"))))
  exec(code, {"torch": torch})
  return files.read_tensors(path.with_name("weights.pt"))


W = torch.arange(6.0).reshape(2, 3)
TRUST = "if you trust whoever wrote it"


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(
  "content, message",
  [
    ({"w": W, "best": np.float64(3)}, f"scalar beside tensors, which is not.*{TRUST}"),
    ({"w": W, "curve": np.ones(3)}, f"_reconstruct beside tensors, which .*{TRUST}"),
    ({"state_dict": {"w": W}, "args": argparse.Namespace(a=1)},
     f"argparse.Namespace, which is neither.*nothing of it was run.*{TRUST}"),
    ({"w": W, "x": torch.eye(2).to_sparse()}, "holds a sparse tensor; keep"),
    ({"w": W, "x": torch.ones(3).expand(4, 3)}, r"\(4, 3\) that repeats a smaller one"),
    ({"w": W, "kind": collections.OrderedDict}, "holds a type where a value should be"),
  ],
)  # fmt: skip
def test_the_remedy_of_an_error_makes_a_file_that_is_read(tmp_path, content, message):
  path = saved(tmp_path, content)
  with pytest.raises(ValueError, match=message) as error:
    files.read_tensors(path)
  assert "damaged" not in str(error.value)
  read = remedied(path, str(error.value))
  np.testing.assert_array_equal(read["w"], W.numpy())
  if isinstance(content.get("x"), torch.Tensor):
    np.testing.assert_array_equal(read["x"], content["x"].to_dense().numpy())


@pytest.mark.parametrize("save", [legacy, compressed])
def test_the_remedy_for_other_ways_of_saving_works(tmp_path, save):
  path = saved(tmp_path, {"state_dict": {"w": W}}, save)
  with pytest.raises(ValueError) as error:
    files.read_tensors(path)
  np.testing.assert_array_equal(remedied(path, str(error.value))["w"], W.numpy())


def test_the_remedy_for_a_whole_module_works(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, Odd.__module__, sys.modules[__name__])
  model = Odd(3, 2)
  path = saved(tmp_path, model)
  with pytest.raises(ValueError, match=rf"Odd, which is neither.*{TRUST}") as error:
    files.read_tensors(path)
  read = remedied(path, str(error.value))
  np.testing.assert_array_equal(read["weight"], model.weight.detach().numpy())


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize(
  "content, message",
  [
    (lambda: W.to(torch.float8_e4m3fn), "float8_e4m3fn numbers; quantised weights"),
    (lambda: torch.quantize_per_tensor(W, 0.1, 0, torch.qint8), "a quantised tensor"),
    (lambda: torch.ones(2, device="meta"), "has no numbers; save the model with its"),
    (lambda: torch.ones(2, dtype=torch.complex64).conj(), "view of complex numbers"),
  ],
)
def test_numbers_that_are_no_weights_are_called_so(tmp_path, content, message):
  path = saved(tmp_path, {"w": content()})
  with pytest.raises(ValueError, match=message) as error:
    files.read_tensors(path)
  assert "trust" not in str(error.value)
  assert "damaged" not in str(error.value)


def test_tensors_in_other_clothes_are_tensors(tmp_path):
  parameter = torch.nn.Parameter(W.clone())
  parameter.is_special = True
  content = {"p": parameter, "b": torch.nn.Buffer(W.clone()), "d": torch.device("cpu")}
  read = files.read_tensors(saved(tmp_path, content))
  for name in "pb":
    np.testing.assert_array_equal(read[name], W.numpy())


@pytest.mark.parametrize("name", ["x.safetensors", "weights.PT", "weights", "x.json"])
@pytest.mark.parametrize("format", ["torch", "safetensors"])
def test_what_a_file_is_its_content_says(tmp_path, name, format):
  save = torch.save if format == "torch" else safetensors.torch.save_file
  path = saved(tmp_path, {"w": W}, save, name)
  np.testing.assert_array_equal(files.read_tensors(path)["w"], W.numpy())
