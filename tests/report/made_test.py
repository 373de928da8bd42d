"""Pictures of other modes on the page: which, how many, and what is refused."""

import base64

import numpy as np
import pytest
from PIL import Image

from rankclip_jax import report
from rankclip_jax.report import pictures


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


def test_only_so_many_are_embedded_and_the_others_are_counted(build, make_workdir):
  workdir = make_workdir()
  for place in range(pictures.MOST + 2):
    _draw(workdir, "search", f"{place:02d}")
  page = build(workdir)
  section = page.section("made")
  captions = [page.text(node) for node in section.iter("figcaption")]
  assert captions == [f"run {place:02d}" for place in range(pictures.MOST)]
  (note,) = [page.text(note) for note in page.by_class("note", section)]
  assert note.startswith(f"Shown are 8 of 10 of run in {workdir}/search")


def test_runs_share_the_room_of_a_page_in_turns(build, make_workdir, monkeypatch):
  first, second = make_workdir("first"), make_workdir("second")
  size = 0
  for name in ("0", "1"):
    size = _draw(first, "attention", name, side=40).stat().st_size
  _draw(first, "attention", "2")
  _draw(second, "attention", "0", side=40)
  monkeypatch.setattr(pictures, "MOST_BYTES", 2 * size + 1000)
  page = build(first, second)
  captions = [page.text(node) for node in page.section("made").iter("figcaption")]
  # What is too large is left out; what comes after it may fit.
  assert captions == ["first 0", "first 2", "second 0"]


def test_without_pictures_there_is_no_section(build, make_workdir):
  workdir = make_workdir()
  (workdir / "attention").mkdir()
  assert "made" not in [node.get("id") for node in build(workdir).root.iter("section")]


def _broken(page):
  return [page.text(note) for note in page.by_class("absent", page.section("made"))]


@pytest.mark.parametrize("cut", [0, 20, 40])
def test_torn_picture_is_named_and_the_page_is_made(build, make_workdir, cut):
  workdir = make_workdir()
  path = _draw(workdir, "attention", "torn")
  path.write_bytes(path.read_bytes()[:cut])
  (note,) = _broken(build(workdir))
  assert note.startswith("run: attention/torn.png cannot be read: expected a PNG")


@pytest.mark.parametrize("most", [6, 10])  # warned of, and refused, by Pillow
def test_what_is_no_picture_leaves_the_page(build, make_workdir, monkeypatch, most):
  workdir = make_workdir()
  _draw(workdir, "search", "0")
  _draw(workdir, "search", "1", side=1)
  (workdir / "search" / "2.png").mkdir()
  (workdir / "search" / "3.png").symlink_to("gone")
  monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", most)
  page = build(workdir)
  captions = [page.text(node) for node in page.section("made").iter("figcaption")]
  assert captions == ["run 1"]
  assert [note.partition("search/")[2] for note in _broken(page)] == [
    "0.png cannot be read: it has too many pixels.",
    "2.png cannot be read: Is a directory.",
    "3.png cannot be read: No such file or directory.",
  ]
