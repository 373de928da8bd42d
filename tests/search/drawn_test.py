"""Panels come whole into their folder, or not at all."""

import pytest
from PIL import Image

from rankclip_jax.search import drawn


def test_a_panel_replaces_the_old_one_whole(tmp_path, monkeypatch):
  path = drawn.folder(tmp_path, "search") / "a.png"
  drawn.save(Image.new("RGB", (3, 2), "red"), path)

  def torn(self, file, **_):
    file.write_bytes(b"half")
    raise OSError("no space left")

  with monkeypatch.context() as patch:
    patch.setattr(Image.Image, "save", torn)
    with pytest.raises(OSError, match="no space"):
      drawn.save(Image.new("RGB", (4, 4)), path)
  assert [p.name for p in path.parent.iterdir()] == ["a.png"]
  with Image.open(path) as image:
    assert (image.format, image.size) == ("PNG", (3, 2))
  drawn.save(Image.new("RGB", (4, 4)), path)
  with Image.open(path) as image:
    assert image.size == (4, 4)


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
  (tmp_path / "search").write_text("mine")
  with pytest.raises(ValueError, match="search is a file, and panels go to a folder"):
    drawn.folder(tmp_path, "search")
