"""Pictures of other modes on the page: which, how many, and what is refused."""

import base64

import numpy as np
import pytest
from PIL import Image

from rankclip_jax import report
from rankclip_jax.report import pictures, run


@pytest.fixture
def build(tmp_path, open_page):
  def build_and_open(*workdirs):
    return open_page(report.build(workdirs, tmp_path / "out"))

  return build_and_open


def _draw(workdir, folder, name, side=4):
  (workdir / folder).mkdir(exist_ok=True)
  noise = np.random.default_rng(0).integers(0, 255, (side, side, 3), dtype=np.uint8)
  path = workdir / folder / f"{name}.png"
  Image.fromarray(noise).save(path)
  return path


def test_pictures_of_both_kinds_are_on_the_page(build, make_workdir):
  workdir = make_workdir()
  search = _draw(workdir, "search", "a <red> heart")
  _draw(workdir, "attention", "cat")
  (workdir / "search" / "notes.txt").write_text("no picture")
  page = build(workdir)
  section = page.section("made")
  captions = [page.text(node) for node in section.iter("figcaption")]
  assert captions == ["run cat", "run a <red> heart"]
  source = list(section.iter("img"))[1].get("src")
  assert base64.b64decode(source.partition("base64,")[2]) == search.read_bytes()


def test_only_so_many_are_embedded_and_the_others_are_counted(
  build, make_workdir, monkeypatch
):
  workdir = make_workdir()
  for place in range(pictures.MOST + 2):
    _draw(workdir, "search", f"{place:02d}")
  size = _draw(workdir, "attention", "0", side=40).stat().st_size
  _draw(workdir, "attention", "1", side=60)
  _draw(workdir, "attention", "2")
  monkeypatch.setattr(pictures, "MOST_BYTES", size + 1000)
  page = build(workdir)
  section = page.section("made")
  captions = [page.text(node) for node in section.iter("figcaption")]
  # What is too large is left out; what comes after it may fit.
  assert captions[:2] == ["run 0", "run 2"]
  assert len(captions) == 2 + pictures.MOST
  notes = [page.text(note) for note in page.by_class("note", section)]
  assert notes[0].startswith(f"1 more of run in {workdir}/attention")
  assert notes[1].startswith(f"2 more of run in {workdir}/search")


def test_without_pictures_there_is_no_section(build, make_workdir):
  workdir = make_workdir()
  (workdir / "attention").mkdir()
  assert "made" not in [node.get("id") for node in build(workdir).root.iter("section")]


@pytest.mark.parametrize("cut", [0, 20, 40])
def test_torn_picture_is_named(make_workdir, cut):
  workdir = make_workdir()
  path = _draw(workdir, "attention", "torn")
  path.write_bytes(path.read_bytes()[:cut])
  with pytest.raises(ValueError, match=r"attention/torn\.png: expected a PNG"):
    run.read_runs([workdir])
