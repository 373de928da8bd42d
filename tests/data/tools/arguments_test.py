import argparse
import sys
import types

import pytest

from rankclip_jax.data import __main__ as cli
from rankclip_jax.data.tools import arguments
from tests.data.pictures import encoded, photograph


def parsed(*argv):
  parser = arguments.Parser("check", "Checks.")
  arguments.add_source(parser)
  return parser.parse_args(argv)


@pytest.mark.parametrize(
  "spec, how, wanted",
  [
    ("a.csv", None, ("csv", "a.csv")),
    ("a/{000..010}.tar :: b/*.tar", None, ("tar", "a/{000..010}.tar::b/*.tar")),
    ("tfds:mnist@test", None, ("tfds", "mnist@test")),
    ("tfds:a::tfds:b", None, ("tfds", "a::b")),
    ("a.csv::b.tar", None, ("mixture", "a.csv::b.tar")),
    ("a.txt", "csv", ("csv", "a.txt")),
    ("tfds:mnist@test", "tfds", ("tfds", "mnist@test")),
  ],
)
def test_formats_are_seen_by_endings_unless_they_are_named(spec, how, wanted):
  assert arguments.resolved(spec, how) == wanted


def test_an_unknown_ending_is_refused_with_the_option_to_use():
  with pytest.raises(ValueError, match=r"'b\.txt': .*--format=csv\|tar"):
    arguments.resolved("a.csv::b.txt", None)
  with pytest.raises(ValueError, match="names no data"):
    arguments.resolved(" :: ", None)


def test_files_are_counted_in_their_order(tmp_path):
  for name in ("b.parquet", "a.parquet", "c.tar"):
    (tmp_path / name).touch()
  spec = f"{tmp_path}/c.tar::{tmp_path}/{{b,a}}.parquet"
  found = arguments.data_files(spec, None)
  assert found == [f"{tmp_path}/{name}" for name in ("c.tar", "b.parquet", "a.parquet")]
  folder = arguments.data_files(str(tmp_path), "parquet")
  assert folder == [f"{tmp_path}/{name}" for name in ("a.parquet", "b.parquet")]
  assert arguments.data_files("tfds:mnist", None) is None


def test_a_source_opens_with_its_options(tmp_path):
  (tmp_path / "cat.jpg").write_bytes(encoded(photograph(20, 30)))
  (tmp_path / "pairs.csv").write_text("image,caption,other\ncat.jpg,a cat,felis\n")
  spec = str(tmp_path / "pairs.csv")
  assert arguments.open_source(parsed(spec))[0].captions == ("a cat",)
  source = arguments.open_source(parsed(spec, "--caption-key=other"))
  assert source[0].captions == ("felis",)


def run(capsys, *argv):
  code = cli.main(argv)
  out = capsys.readouterr()
  return code, out.out, out.err


@pytest.mark.parametrize(
  "argv, words",
  [
    (["chekc", "a.csv"], "'chekc'"),
    (["check"], "SPEC"),
    (["check", "a.csv", "--no-such-flag"], "--no-such-flag"),
    (["check", "a.csv", "--examples=many"], "--examples"),
    (["check", "no/such.csv"], "no/such.csv"),
    (["index", "data.unknown"], "--format"),
  ],
)
def test_errors_are_one_line(capsys, argv, words):
  code, out, err = run(capsys, *argv)
  assert (code, out) == (1, "")
  assert err.startswith("Error: ")
  assert err.count("\n") == 1
  assert words in err


def test_help_names_every_tool(capsys):
  code, out, _ = run(capsys, "--help")
  assert code == 0
  for tool in ("check", "index", "reshard", "bench", "prepare"):
    assert f"\n  {tool} " in out
  assert run(capsys)[0] == 1


@pytest.mark.parametrize("tool", ["check", "index", "reshard"])
def test_every_tool_has_help(capsys, tool):
  with pytest.raises(SystemExit) as ended:
    cli.main([tool, "--help"])
  assert ended.value.code == 0
  assert f"python -m rankclip_jax.data {tool}" in capsys.readouterr().out


@pytest.mark.parametrize("tool", ["bench", "prepare"])
def test_other_tools_get_their_arguments(monkeypatch, tool):
  where = "tools.bench" if tool == "bench" else "prepare"
  fake = types.ModuleType(tool)
  fake.main = lambda argv: 7 if argv == ["a.csv", "--x=1"] else 0
  monkeypatch.setitem(sys.modules, f"rankclip_jax.data.{where}", fake)
  assert cli.main([tool, "a.csv", "--x=1"]) == 7


def test_a_library_that_is_not_there_is_named_in_a_line(capsys, monkeypatch):
  monkeypatch.setitem(sys.modules, "rankclip_jax.data.prepare", None)
  code, _, err = run(capsys, "prepare")
  assert code == 1
  assert "rankclip_jax.data.prepare" in err
  assert err.count("\n") == 1


def test_any_parser_can_take_a_source():
  parser = argparse.ArgumentParser()
  arguments.add_source(parser)
  args = parser.parse_args(["a.tar", "--cache=x"])
  assert (args.spec, args.cache.name, args.format) == ("a.tar", "x", None)
