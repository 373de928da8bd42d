import csv
import io
import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from rankclip_jax.data.tools import check, report
from tests.data import tars
from tests.data.pictures import encoded, photograph

# Of 12, with nothing bad in them.
CAPTIONS = [
  "a cat",
  "a cat",
  "Kätzchen",
  "кошка",
  "猫の写真です",
  "صورة قطة",
  "😀 party",
  "[/bold] :smile:",
  "dog " * 100,
  "line\nbreak",
  "b",
  "c",
]


def write(folder: pathlib.Path, rows) -> str:
  """A CSV of picture bytes (None is missing) and captions; returns its path."""
  with (folder / "pairs.csv").open("w", newline="", encoding="utf-8") as file:
    writer = csv.writer(file)
    writer.writerow(["image", "caption"])
    for i, (data, caption) in enumerate(rows):
      writer.writerow([f"{i:03}.jpg", caption])
      if data is not None:
        (folder / f"{i:03}.jpg").write_bytes(data)
  return str(folder / "pairs.csv")


def picture(i: int) -> bytes:
  return encoded(photograph(30 + i, 40), "PNG" if i == 3 else "JPEG")


def numbers(folder: pathlib.Path) -> dict:
  return json.loads((folder / "check.json").read_text())


@pytest.fixture
def plain(monkeypatch):
  """Leaves the pictures out, for tests of numbers."""
  monkeypatch.setattr(check, "_draw", lambda *_: None)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
  """A folder with twelve good pairs, of which two pictures and two captions are one."""
  folder = tmp_path_factory.mktemp("good")
  write(folder, [(picture(max(i, 1)), text) for i, text in enumerate(CAPTIONS)])
  return folder


def test_good_data_passes_and_is_described(good, tmp_path, capsys):
  spec, out = str(good / "pairs.csv"), tmp_path / "out"
  assert check.main([spec, f"--output={out}"]) == 0
  found = numbers(out)
  assert (found["examples"], found["read"], found["shards"]) == (12, 12, 1)
  assert found["bad"]["count"] == 0
  assert found["pictures"]["formats"] == {"JPEG": 11, "PNG": 1}
  assert found["pictures"]["height"]["max"] == 41
  assert found["pictures"]["duplicates"]["count"] == 1
  assert found["captions"]["duplicates"]["count"] == 1
  assert found["captions"]["truncated"]["count"] == 1
  assert found["captions"]["most_frequent"] == [{"caption": "a cat", "count": 2}]
  assert found["captions"]["tokens"]["max"] == 102
  assert (out / "bad_examples.jsonl").read_text() == ""
  text = capsys.readouterr().out
  for words in (
    "12 in 1 shard",
    "JPEG 91.7%, PNG 8.3%",
    "1 (8.33%)",
    "2 x a cat",
    "Good",
  ):
    assert words in text


def test_pictures_are_there_and_the_same_every_time(good, tmp_path):
  spec, drawn = str(good / "pairs.csv"), []
  for seed in (0, 0, 1):
    check.main([spec, f"--output={tmp_path}", f"--seed={seed}"])
    with Image.open(tmp_path / "examples.png") as examples:
      drawn.append(np.asarray(examples))
    with Image.open(io.BytesIO((tmp_path / "caption_lengths.png").read_bytes())) as bars:
      assert bars.width > 1000
  assert np.array_equal(drawn[0], drawn[1])
  assert not np.array_equal(drawn[0], drawn[2])


@pytest.mark.usefixtures("plain")
def test_context_length_decides_what_is_cut(good, tmp_path):
  spec = str(good / "pairs.csv")
  check.main([spec, f"--output={tmp_path}", "--context-length=102"])
  assert numbers(tmp_path)["captions"]["truncated"]["count"] == 0


@pytest.fixture(scope="module")
def bad(tmp_path_factory):
  """Forty pairs, of which four are bad."""
  folder = tmp_path_factory.mktemp("bad")
  rows = [(picture(1), "a cat")] * 36
  rows += [(None, "a"), (b"", "a"), (picture(1)[:-50], "a"), (picture(1), " ")]
  write(folder, rows)
  return folder


@pytest.mark.parametrize("most, code", [(0.01, 1), (0.09, 1), (0.1, 0), (1.0, 0)])
@pytest.mark.usefixtures("plain")
def test_too_much_bad_data_ends_with_1(bad, tmp_path, capsys, most, code):
  spec = str(bad / "pairs.csv")
  argv = [spec, f"--output={tmp_path}", f"--max-bad-fraction={most}"]
  assert check.main(argv) == code
  assert ("Too bad" in capsys.readouterr().out) == bool(code)


@pytest.mark.usefixtures("plain")
def test_bad_examples_are_counted_and_listed(bad, tmp_path, capsys):
  spec = str(bad / "pairs.csv")
  for _ in range(2):  # the list is of the last time
    check.main([spec, f"--output={tmp_path}"])
  lines = (tmp_path / "bad_examples.jsonl").read_text().splitlines()
  found = {line["index"]: line["reason"] for line in map(json.loads, lines)}
  assert len(lines) == 4
  assert found == {
    36: "missing picture",
    37: "empty picture",
    38: "undecodable picture",
    39: "empty caption",
  }
  assert numbers(tmp_path)["bad"]["fraction"] == 0.1
  text = capsys.readouterr().out
  assert "4 (10.00%)" in text
  assert f"4 of 40 in {spec}" in text


@pytest.mark.usefixtures("plain")
def test_a_sample_is_as_large_as_asked(bad, tmp_path, capsys):
  spec = str(bad / "pairs.csv")
  check.main([spec, f"--output={tmp_path}", "--examples=10", "--threads=3"])
  assert numbers(tmp_path)["read"] == 10
  assert "10, seed 0" in capsys.readouterr().out
  check.main([spec, f"--output={tmp_path}", "--examples=10", "--all"])
  assert numbers(tmp_path)["read"] == 40


def test_only_bad_examples_are_no_crash(tmp_path):
  spec = write(tmp_path, [(None, "a")] * 3)
  assert check.main([spec, f"--output={tmp_path / 'out'}"]) == 1
  assert numbers(tmp_path / "out")["unusable_fraction"] == 1
  assert not (tmp_path / "out/examples.png").exists()


@pytest.mark.usefixtures("plain")
def test_what_shards_lost_counts_too(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(report, "_WIDTH", 1000)
  path = tars.img2dataset(tmp_path, 0, [(picture(1), "a cat")] * 20)
  assert check.main([str(path), f"--output={tmp_path / 'out'}"]) == 0
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  capsys.readouterr()
  assert check.main([str(path), f"--output={tmp_path / 'out'}"]) == 1
  found = numbers(tmp_path / "out")
  lost = found["losses"][0]["count"]
  assert found["examples"] + lost == 20
  assert found["unusable_fraction"] == pytest.approx((lost + found["bad"]["count"]) / 20)
  assert found["losses"][0]["detail"] in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--examples=0", "--threads=0"])
def test_impossible_numbers_are_refused(good, option):
  with pytest.raises(ValueError, match="1 or more, got 0"):
    check.main([str(good / "pairs.csv"), option])
