"""Small made-up workdirs, and the page as a strictly parsed tree."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from rankclip_jax.evals import results as evals

CONFIG = {
  "seed": 3,
  "mode": "train",
  "data": {"source": "openmoji", "batch_size": 64},
  "model": {"name": "tiny"},
  "objective": {"name": "rankclip"},
  "optim": {"epochs": 30, "learning_rate": 0.001},
}
ENVIRONMENT = {"python": "3.11.9", "devices": ["cpu:0", "cpu:1"], "commit": None}
LINES = (
  {"step": 1, "time": 100.0, "train/loss": 4.5, "train/rank_weight": 0.0},
  {"step": 2, "time": 175.0, "train/loss": 3.25, "train/rank_weight": 0.5},
)


def _normalise(rows: np.ndarray) -> np.ndarray:
  return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def _make_embeddings(images: int = 14, captions_each: int = 2, seed: int = 0) -> dict:
  """Arrays of an embeddings file; texts lie near their image, in mixed order."""
  rng = np.random.default_rng(seed)
  image_of_text = rng.permutation(np.repeat(np.arange(images), captions_each))
  image = rng.normal(size=(images, 6))
  text = image[image_of_text] + 0.8 * rng.normal(size=(len(image_of_text), 6))
  return {
    "image": _normalise(image),
    "text": _normalise(text),
    "image_of_text": image_of_text.astype(np.int32),
    "captions": np.array([f"caption {row}" for row in range(len(text))]),
    "keys": np.array([f"K{row:03d}" for row in range(images)]),
    "thumbnails": rng.integers(0, 255, (images, 4, 4, 3), dtype=np.uint8),
  }


@pytest.fixture
def make_embeddings() -> Callable[..., dict[str, np.ndarray]]:
  return _make_embeddings


@pytest.fixture
def make_workdir(tmp_path: Path) -> Callable[..., Path]:
  """Writes a workdir under tmp_path; a part that is None is left out."""

  def make(
    name: str = "run",
    *,
    config: Mapping[str, Any] | None = CONFIG,
    environment: Mapping[str, Any] | None = ENVIRONMENT,
    lines: tuple[Mapping[str, Any], ...] | None = LINES,
    results: Mapping[tuple[str, str], Mapping[str, float | None]] | None = None,
    extras: Mapping[tuple[str, str], Mapping[str, Any]] | None = None,
    embeddings: Mapping[str, np.ndarray] | None = None,
    held_out: str = "openmoji",
  ) -> Path:
    workdir = tmp_path / name
    (workdir / "results").mkdir(parents=True, exist_ok=True)
    if config is not None:
      (workdir / "config.json").write_text(json.dumps(config))
    if environment is not None:
      (workdir / "environment.json").write_text(json.dumps(environment))
    if lines is not None:
      text = "".join(json.dumps(line) + "\n" for line in lines)
      (workdir / "metrics.jsonl").write_text(text)
    for (dataset, task), metrics in (results or {}).items():
      record = {"dataset": dataset, "task": task, "metrics": metrics}
      if extras and (dataset, task) in extras:
        record[evals.EXTRAS] = extras[dataset, task]
      path = evals.path_of(workdir / "results", dataset, task)
      path.write_text(json.dumps(record))
    if embeddings is not None:
      np.savez(evals.embeddings_path(workdir / "results", held_out), **embeddings)
    return workdir

  return make


class Page:
  """The page as a tree; fails on anything that is not well-formed."""

  def __init__(self, path: Path):
    self.source = path.read_text(encoding="utf-8")
    self.root = ElementTree.fromstring(self.source)

  def section(self, anchor: str) -> ElementTree.Element:
    return next(node for node in self.root.iter("section") if node.get("id") == anchor)

  def rows(self, css: str) -> dict[str, list[str]]:
    """The text of the cells of the first table of a class, by the row's head."""
    table = self.by_class(css)[0]
    rows = [row for row in table.iter("tr") if row.find("th[@scope='row']") is not None]
    return {
      self.text(row.find("th")): [self.text(cell) for cell in row.findall("td")]
      for row in rows
    }

  def by_class(
    self, css: str, root: ElementTree.Element | None = None
  ) -> list[ElementTree.Element]:
    """The elements of a class, in the order of the page."""
    root = self.root if root is None else root
    return [node for node in root.iter() if css in node.get("class", "").split()]

  def text(self, node: ElementTree.Element | None = None) -> str:
    """All text of an element, with single spaces."""
    return " ".join("".join((self.root if node is None else node).itertext()).split())


@pytest.fixture
def open_page() -> Callable[[Path], Page]:
  return Page
