"""The maps: the gap that is written there, and UMAP where it is installed."""

import importlib.util
import sys
import types

import numpy as np
import pytest

from rankclip_jax import report
from rankclip_jax.report import maps, run


@pytest.fixture
def build(tmp_path, open_page):
  def build_and_open(*workdirs):
    return open_page(report.build(workdirs, tmp_path / "out"))

  return build_and_open


@pytest.fixture
def fake_umap(monkeypatch):
  """Stands in for umap-learn; keeps what it was asked."""
  asked = []

  class UMAP:
    def __init__(self, **settings):
      self.settings = settings

    def fit_transform(self, points):
      asked.append((self.settings, points))
      return points[:, :2]

  module = types.ModuleType("umap")
  module.__spec__ = importlib.util.spec_from_loader("umap", loader=None)
  module.UMAP = UMAP  # pyright: ignore[reportAttributeAccessIssue]
  monkeypatch.setitem(sys.modules, "umap", module)
  return asked


def _figures(page):
  return [page.text(figure) for figure in page.section("map").iter("figure")]


def test_umap_stands_beside_the_principal_axes(
  build, make_workdir, make_embeddings, fake_umap
):
  arrays = make_embeddings(images=40)
  page = build(make_workdir(embeddings=arrays))
  assert _figures(page) == ["run principal axes", "run UMAP"]
  ((settings, points),) = fake_umap
  assert settings["random_state"] == 0
  assert settings["n_jobs"] == 1
  assert settings["metric"] == "cosine"
  # Each picture with its main caption, whatever the number of captions.
  main = [arrays["image_of_text"].tolist().index(image) for image in range(40)]
  images, texts = np.split(points, 2)
  order = [arrays["image"].tolist().index(row) for row in images.tolist()]
  assert sorted(order) == list(range(40))
  np.testing.assert_array_equal(texts, arrays["text"][main][order])


def test_few_pictures_are_no_map_for_umap(
  build, make_workdir, make_embeddings, fake_umap
):
  page = build(make_workdir(embeddings=make_embeddings(images=10)))
  assert _figures(page) == ["run principal axes"]
  assert not fake_umap


def test_large_sets_are_mapped_by_a_part_that_keys_choose(
  monkeypatch, make_workdir, make_embeddings, fake_umap
):
  monkeypatch.setattr(maps, "UMAP_PAIRS", 31)
  (got,) = run.read_runs([make_workdir(embeddings=make_embeddings(images=50))])
  assert got.embeddings is not None
  maps.by_umap(got.embeddings)
  assert fake_umap[0][1].shape == (62, 6)


def test_without_umap_the_page_says_how_to_get_it(
  build, make_workdir, make_embeddings, monkeypatch
):
  monkeypatch.setattr(maps.importlib.util, "find_spec", lambda name: None)
  page = build(make_workdir(embeddings=make_embeddings(images=40)))
  assert _figures(page) == ["run principal axes"]
  assert "pip install -r requirements-umap.txt" in page.text(page.section("map"))
