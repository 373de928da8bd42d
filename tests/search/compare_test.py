"""mode=search with several queries, and with several models side by side."""

import dataclasses
import shutil

import numpy as np
import pytest
from PIL import Image

from rankclip_jax import config, interop, search
from rankclip_jax.search import finding, models, panel, queries, side_by_side
from tests.inference_test import CARD, SIZE, drawn

COLOURS = ("red", "lime", "blue", "yellow", "black", "white")


@pytest.fixture(scope="module")
def embedded(tmp_path_factory):
  """Two models with embeddings of the same six pictures beside them."""
  root = tmp_path_factory.mktemp("models")
  (root / "pictures").mkdir()
  for colour in COLOURS:
    Image.new("RGB", (30, 20), colour).save(root / "pictures" / f"{colour}.png")
  for seed, name in enumerate(("one", "two")):
    interop.write_open_clip(root / name, drawn(seed=seed), SIZE, CARD)
    embed(root / name, root / "pictures")
  return root


def embed(model, folder):
  output = str(model / "embeddings.npz")
  wanted = config.EmbedConfig(images=str(folder), output=output)
  search.embed(config_of(model, embed=wanted), model)


def config_of(model, **sections):
  return config.Config(
    init=config.InitConfig(weights=str(model)),
    eval=config.EvalConfig(batch_size=8),
    **sections,
  )


def found(embedded, workdir, **fields):
  wanted = {"embeddings": str(embedded / "one" / "embeddings.npz"), "top": 4} | fields
  cfg = config_of(embedded / "one", search=config.SearchConfig(**wanted))
  return search.search(cfg, workdir)


def test_every_query_has_the_panel_that_it_has_alone(embedded, tmp_path):
  file = tmp_path / "queries.txt"
  red = embedded / "pictures" / "red.png"
  file.write_text(f"a sky\nA sky!\n{red}\n")
  said = found(embedded, tmp_path, query="a heart::sun", queries=str(file)).splitlines()
  texts = ["a heart", "sun", "a sky", "A sky!", str(red)]
  assert [x for x in said if x.startswith("Query")] == [f"Query: {t}" for t in texts]
  names = ["a-heart", "sun", "a-sky", "A-sky-2", "red"]
  folder = tmp_path / "search"
  assert [x for x in said if x.startswith("Panel")] == [
    f"Panel: {folder / name}.png" for name in names
  ]
  together = (folder / "sun.png").read_bytes()
  alone = found(embedded, tmp_path, query="sun").splitlines()
  place = said.index("Query: sun")
  assert said[place + 1 : place + 1 + len(alone)] == alone
  assert (folder / "sun.png").read_bytes() == together


def test_models_answer_with_their_own_embeddings(embedded, tmp_path):
  said = found(embedded, tmp_path, query="sun", compare=str(embedded / "two"))
  lines = said.splitlines()
  of = {"one": lines[2:6], "two": lines[8:12]}
  assert (lines[0], lines[6]) == ("one:", "two:")
  names = {}
  for name, table in of.items():
    alone = search.search(
      config_of(embedded / name, search=config.SearchConfig(query="sun", top=4)),
      embedded / name,
    )
    assert [x.removesuffix("  (found by all)") for x in table] == (
      alone.splitlines()[1:5]
    )
    names[name] = {x.split()[2] for x in table}
  marked = {x.split()[2] for x in lines if x.endswith("(found by all)")}
  assert marked == names["one"] & names["two"]
  assert 2 <= len(marked) < 6  # 4 of 6 twice
  with Image.open(tmp_path / "search" / "sun.png") as image:
    assert image.width == side_by_side._WIDTH


def test_shared_hits_are_framed_and_others_not(embedded):
  hit = lambda rank, name: panel.Hit(rank, 0.5, name, embedded / "pictures" / name)
  lines = [
    panel.Line("a/very/long-name-of-a-run" * 9, [hit(1, "red.png"), hit(2, "lime.png")]),
    panel.Line("b", [hit(1, "white.png"), hit(2, "red.png")]),
  ]
  assert side_by_side.shared(lines) == {"red.png"}
  drawn_panel = np.asarray(side_by_side.draw("q", lines, among=6))
  frame = tuple(int(side_by_side._FRAME[i : i + 2], 16) for i in (1, 3, 5))
  rows, columns = np.nonzero((drawn_panel == frame).all(-1))
  left = panel.MARGIN + side_by_side._NAMES - side_by_side._FRAME_WIDTH
  step = side_by_side._TILE + side_by_side._GAP
  first = rows < rows.min() + step  # of the first line's frame
  assert columns[first].min() == left
  assert columns[first].max() < left + step
  assert columns[~first].min() == left + step


def test_many_hits_take_more_lines(embedded):
  hits = [panel.Hit(i, 0.1, f"{i}", embedded / "pictures" / "red.png") for i in range(60)]
  lines = [panel.Line("a", hits), panel.Line("b", hits[:60])]
  one, two = (
    side_by_side.draw("q", [dataclasses.replace(x, hits=x.hits[:n]) for x in lines],
                      among=60).height for n in (10, 60)
  )  # fmt: skip
  step = side_by_side._TILE + side_by_side._CAPTION
  assert two - one == 2 * (panel.MOST // 10 - 1) * step


def test_only_pictures_that_all_have_are_searched(embedded, tmp_path):
  """In the first model's order, and from whichever folder."""
  some = tmp_path / "some"
  some.mkdir()
  for name in ("white.png", "blue.png", "red.png"):
    shutil.copy(embedded / "pictures" / name, some / name)
  Image.new("RGB", (9, 9), "pink").save(some / "pink.png")
  shutil.copytree(embedded / "two", tmp_path / "two")
  embed(tmp_path / "two", some)
  said = found(
    embedded, tmp_path, query="sun", compare=str(tmp_path / "two"), top=9
  ).splitlines()
  assert said[0] == "Searched: the 3 pictures that all have (6 of one, 4 of two)."
  assert said[1].startswith("Of the same names, and so taken for the same: ")
  hits = {line.split()[2] for line in said if ".png  (found by all)" in line}
  assert hits == {"white.png", "blue.png", "red.png"}
  shutil.rmtree(some)
  (some / "deep").mkdir(parents=True)
  shutil.copy(embedded / "pictures" / "red.png", some / "deep" / "red.png")
  embed(tmp_path / "two", some)
  with pytest.raises(ValueError, match=r"no picture in common \(one 6, two 1, as bla"):
    found(embedded, tmp_path, query="sun", compare=str(tmp_path / "two"))


def test_embeddings_of_a_compared_model_are_checked_as_its_own(embedded, tmp_path):
  other = tmp_path / "two"
  shutil.copytree(embedded / "two", other)
  shutil.copy(embedded / "one" / "embeddings.npz", other)
  with pytest.raises(ValueError, match="embeddings are of another model"):
    found(embedded, tmp_path, query="sun", compare=str(other))
  (other / "embeddings.npz").unlink()
  remedy = f"no embeddings {other}.*embed.output={other}.*init.weights={other}"
  with pytest.raises(ValueError, match=remedy):
    found(embedded, tmp_path, query="sun", compare=str(other))


@pytest.mark.parametrize(
  "fields, message",
  [
    ({"query": " "}, "no query; give --config.search.query.*search.queries"),
    ({"query": "a:: ::b"}, "has an empty query between"),
    ({"queries": "gone.txt"}, "config.search.queries=gone.txt is no file"),
    ({"query": "a::gone.png"}, "gone.png ends like a picture, and there is no such"),
    ({"query": "a", "compare": "gone"}, "config.search.compare names gone, which does"),
  ],
)
def test_what_cannot_be_asked_is_said(embedded, tmp_path, fields, message):
  with pytest.raises(ValueError, match=message):
    found(embedded, tmp_path, **fields)


@pytest.mark.parametrize(
  "content, message",
  [(b"", "queries=.* is empty"), (b"\n", "is empty"), (b"a\n\nb\n", "line 2 is empty")],
)
def test_a_file_of_queries_has_one_in_every_line(embedded, tmp_path, content, message):
  file = tmp_path / "q.txt"
  file.write_bytes(content)
  with pytest.raises(ValueError, match=message):
    found(embedded, tmp_path, queries=str(file))


def test_names_tell_models_and_files_apart(tmp_path):
  folders = [tmp_path / "a" / "run", tmp_path / "b" / "run", tmp_path / "c"]
  assert models._names(folders) == ["a/run", "b/run", f"{tmp_path.name}/c"]
  assert queries.distinct(["x", "X", "x", "x-2"]) == ["x", "X-2", "x-3", "x-2-2"]


def test_the_order_of_paths_is_the_first_models(embedded):
  first = finding.read(embedded / "one" / "embeddings.npz")
  turned = dataclasses.replace(first, image=first.image[::-1], paths=first.paths[::-1])
  no = np.zeros((0, 32), np.float32)
  answers = [finding.Answers("a", first, no), finding.Answers("b", turned, no)]
  said, (_, again) = finding.of_shared_pictures(answers)
  assert not said
  assert again.index.paths == first.paths
  np.testing.assert_array_equal(again.index.image, first.image)
