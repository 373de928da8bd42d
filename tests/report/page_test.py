"""The page as a reader gets it, built from small made-up workdirs."""

import os
import re

import numpy as np
import pytest

from rankclip_jax import report
from rankclip_jax.report import panels, ranking

RETRIEVAL = {
  "image_retrieval_recall@1": 0.5,
  "text_retrieval_recall@1": 0.625,
  "image_retrieval_median_rank": 2.0,
}


@pytest.fixture
def build(tmp_path, open_page):
  def build_and_open(*workdirs):
    return open_page(report.build(workdirs, tmp_path / "out"))

  return build_and_open


def _keys(items):
  return [item.get("data-key") for item in items]


def _ordered(scores):
  """Indices from the highest score, the lower index first among equals."""
  return sorted(range(len(scores)), key=lambda index: (-scores[index], index))


def test_header_says_what_ran(build, make_workdir):
  page = build(make_workdir("first-run"))
  assert page.text(page.root.find(".//h1")) == "first-run"
  facts = {name: cells[0] for name, cells in page.rows("facts").items()}
  assert facts == {
    "Objective": "rankclip",
    "Model": "tiny",
    "Data": "openmoji",
    "Batch size": "64",
    "Epochs": "30",
    "Learning rate": "0.001",
    "Seed": "3",
    "Last logged step": "2",
    "Logged for": "1 min 15 s, until 1970-01-01 00:02 UTC",
    "Environment": "python 3.11.9 · devices cpu:0, cpu:1 · commit –",  # noqa: RUF001
  }
  assert page.rows("settings")["optim.learning_rate"] == ["0.001"]


def test_header_of_two_runs_shows_the_settings_that_differ(build, make_workdir):
  config = {"seed": 3, "objective": {"name": "clip"}, "data": {"source": "openmoji"}}
  other = {"seed": 3, "objective": {"name": "rankclip"}, "extra": [1], "mode": "eval"}
  page = build(
    make_workdir("a", config=config),
    make_workdir("b", config=other | {"data": {"source": "openmoji"}}),
  )
  assert page.rows("settings") == {
    "objective.name": ['"clip"', '"rankclip"'],
    "extra": ["–", "[1]"],  # noqa: RUF001
  }


def test_curves_are_drawn_for_what_was_logged(build, make_workdir):
  clip = [{"step": step, "train/loss": 5.0 - step, "lr": 0.1} for step in range(3)]
  rank = [
    {"step": step, "train/loss": 9.0, "train/cyclic_in_modal_loss": 1.5e-4 * step}
    for step in range(3)
  ]
  rank.append({"step": 3, "eval/retrieval/image_retrieval_recall@1": 0.125})
  page = build(make_workdir("a", lines=clip), make_workdir("b", lines=rank))
  figures = page.section("curves").findall(".//figure")
  assert {figure.get("data-key"): page.text(figure) for figure in figures} == {
    "train/loss": "Loss 3 9",
    "lr": "Learning rate 0.1",
    "train/cyclic_in_modal_loss": "Cyclic in modal loss 0.0003",
    "eval/retrieval/image_retrieval_recall@1": "Text → image recall@1 12.5 %",
  }
  (loss, *_) = figures
  assert loss.find("img").get("alt") == "Loss by step; last value: a 3, b 9"
  spots = page.by_class("spot", loss)
  assert len({spot.get("style") for spot in spots}) == 2


def test_values_that_are_not_finite_are_reported(build, make_workdir):
  lines = [{"step": step, "train/loss": 1.0 if step < 5 else None} for step in range(8)]
  page = build(make_workdir(lines=lines))
  (note,) = [page.text(n) for n in page.by_class("absent", page.section("curves"))]
  assert "not finite: train/loss at 3 logged steps, first at 5." in note
  assert page.text(page.section("curves").find(".//figcaption")) == "Loss 1"


def test_results_of_two_runs_with_their_difference(build, make_workdir):
  first = {("openmoji", "zeroshot_retrieval"): RETRIEVAL}
  second = {
    ("openmoji", "zeroshot_retrieval"): {"image_retrieval_recall@1": 0.75},
    ("kind", "zeroshot_classification"): {"acc1": 0.5, "acc5": None},
  }
  page = build(make_workdir("a", results=first), make_workdir("b", results=second))
  dash = "\N{EN DASH}"
  assert page.rows("results") == {
    "acc1": [dash, "50.00 %", dash],
    "acc5": [dash, dash, dash],
    "image_retrieval_recall@1": ["50.00 %", "75.00 %", "+25.00 pp"],
    "text_retrieval_recall@1": ["62.50 %", dash, dash],
    "image_retrieval_median_rank": ["2.0", dash, dash],
  }
  cards = [
    [page.text(part) for part in card] for card in page.by_class("card", page.root)
  ]
  assert cards == [
    ["Text → image recall@1", "a50.0 %", "b75.0 %", "difference+25.0 pp", "openmoji"],
    ["Image → text recall@1", "a62.5 %", f"b{dash}", f"difference{dash}", "openmoji"],
    ["Zero-shot top-1", f"a{dash}", "b50.0 %", f"difference{dash}", "kind"],
  ]


def test_chance_is_given_where_the_number_of_pictures_is_known(
  build, make_workdir, make_embeddings
):
  results = {
    ("openmoji", "zeroshot_retrieval"): RETRIEVAL,
    ("flickr30k", "zeroshot_retrieval"): RETRIEVAL,
  }
  arrays = make_embeddings(images=20)
  page = build(make_workdir(results=results, embeddings=arrays))
  below = [page.text(card.find("small")) for card in page.by_class("card")]
  assert below == ["flickr30k", "openmoji · chance 5 %"] * 2


def test_results_of_one_and_of_three_runs_have_no_difference(build, make_workdir):
  results = {("openmoji", "zeroshot_retrieval"): {"image_retrieval_recall@1": 0.5}}
  workdirs = [make_workdir(name, results=results) for name in "abc"]
  page = build(workdirs[0])
  assert page.rows("results") == {"image_retrieval_recall@1": ["50.00 %"]}
  page = build(*workdirs)
  assert page.rows("results") == {"image_retrieval_recall@1": ["50.00 %"] * 3}
  assert "difference" not in page.text(page.section("results"))


def test_right_picture_is_framed_at_its_rank(build, make_workdir):
  # Image i is axis i; text i lies so that image i comes at place i + 1.
  images = 12
  text = np.zeros((images, images))
  for row in range(images):
    others = [other for other in range(images) if other != row]
    text[row, [*others[:row], row, *others[row:]]] = np.arange(images, 0, -1)
  arrays = {
    "image": np.eye(images, dtype=np.float32),
    "text": (text / np.linalg.norm(text, axis=1, keepdims=True)).astype(np.float32),
    "image_of_text": np.arange(images),
    "captions": np.array([f"caption {row}" for row in range(images)]),
    "keys": np.array([f"{row}" for row in range(images)]),
    "thumbnails": np.zeros((images, 4, 4, 3), np.uint8),
  }
  page = build(make_workdir(embeddings=arrays))
  queries = page.by_class("query", page.section("text-to-image"))
  assert sorted(map(int, _keys(queries))) == list(range(12))
  for query in queries:
    row = int(query.get("data-key"))
    hits = query.findall(".//li")
    framed = [place for place, hit in enumerate(hits) if hit.get("class") == "right"]
    assert framed == ([row] if row < panels.RETRIEVED else [])
    assert len(hits) == panels.RETRIEVED
    assert page.text(page.by_class("who", query)[0]) == f"rank {row + 1} of 12"
    assert page.text(page.by_class("own", query)[0]) == f"caption {row}"


def test_retrieval_is_in_the_order_of_each_runs_scores(
  build, make_workdir, make_embeddings
):
  runs = [make_embeddings(seed=seed) for seed in range(2)]
  # The same held-out set with other rows: items are matched by key, not by place.
  order = np.arange(14)[::-1]
  for name in ("image", "keys", "thumbnails"):
    runs[1][name] = runs[1][name][order]
  runs[1]["image_of_text"] = order[runs[1]["image_of_text"]]
  page = build(*[make_workdir(f"r{i}", embeddings=e) for i, e in enumerate(runs)])

  queries = page.by_class("query", page.section("text-to-image"))
  expected = ranking.choose(
    runs[0]["keys"].tolist(), panels.TEXT_QUERIES, "text to image"
  )
  assert _keys(queries) == expected
  for query in queries:
    rows = page.by_class("row", query)
    assert [row.get("data-run") for row in rows] == ["0", "1"]
    for row, arrays in zip(rows, runs, strict=True):
      image = arrays["keys"].tolist().index(query.get("data-key"))
      text = arrays["image_of_text"].tolist().index(image)
      best = _ordered(arrays["image"] @ arrays["text"][text])
      assert _keys(row.findall(".//li")) == arrays["keys"][best[:10]].tolist()
      assert f"rank {best.index(image) + 1} of 14" in page.text(row)
      for hit in row.findall(".//li"):
        right = hit.get("data-key") == query.get("data-key")
        assert hit.get("class") == ("right" if right else "other")


def test_captions_of_a_picture_and_which_are_its_own(
  build, make_workdir, make_embeddings
):
  arrays = make_embeddings()
  page = build(make_workdir(embeddings=arrays))
  queries = page.by_class("query", page.section("image-to-text"))
  assert len(queries) == panels.IMAGE_QUERIES
  for query in queries:
    image = arrays["keys"].tolist().index(query.get("data-key"))
    scores = arrays["text"] @ arrays["image"][image]
    best = _ordered(scores)
    captions = query.findall(".//li")
    shown = [page.text(caption.find(".//span")) for caption in captions]
    assert shown == arrays["captions"][best[:10]].tolist()
    bold = [page.text(text) for caption in captions for text in caption.findall("b/span")]
    own = [text for text in best[:10] if arrays["image_of_text"][text] == image]
    assert bold == arrays["captions"][own].tolist()
    first = min(
      best.index(text) for text in np.flatnonzero(arrays["image_of_text"] == image)
    )
    assert f"rank {first + 1} of 28" in page.text(query)
    assert page.text(captions[0]).endswith(f"{scores[best[0]]:.2f}")


def test_neighbours_by_image_and_by_caption_and_what_they_share(
  build, make_workdir, make_embeddings
):
  arrays = make_embeddings(images=20)
  page = build(make_workdir(embeddings=arrays))
  main = [arrays["image_of_text"].tolist().index(image) for image in range(20)]
  spaces = (arrays["image"], arrays["text"][main])

  def nearest(space, item):
    scores = space @ space[item]
    return [other for other in _ordered(scores) if other != item][:8]

  section = page.section("neighbours")
  queries = page.by_class("query", section)
  assert len(queries) == panels.NEIGHBOUR_QUERIES
  for query in queries:
    item = arrays["keys"].tolist().index(query.get("data-key"))
    found = [nearest(space, item) for space in spaces]
    both = set(found[0]) & set(found[1])
    rows = page.by_class("row", query)
    for row, near, title in zip(rows, found, ("by image", "by caption"), strict=True):
      hits = row.findall(".//li")
      assert _keys(hits) == arrays["keys"][near].tolist()
      marked = {hit.get("data-key") for hit in hits if hit.get("class") == "both"}
      assert marked == set(arrays["keys"][sorted(both)])
      assert page.text(row) == f"{title}, overlap {len(both)}/8"
  shared = [
    len(set(nearest(spaces[0], item)) & set(nearest(spaces[1], item)))
    for item in range(20)
  ]
  assert f"shares {np.mean(shared):.2f} of 8 neighbours" in page.text(section)
  assert f"(chance {64 / 19:.2f})" in page.text(section)


def test_each_run_has_its_map(build, make_workdir, make_embeddings):
  workdirs = [make_workdir(name, embeddings=make_embeddings()) for name in "ab"]
  page = build(*workdirs, make_workdir("c"))
  figures = page.section("map").findall(".//figure")
  assert [page.text(figure) for figure in figures] == [
    "a principal axes",
    "b principal axes",
  ]


def test_what_is_missing_is_said_with_the_command_that_makes_it(build, make_workdir):
  workdir = make_workdir("bare", environment=None, lines=None)
  page = build(workdir)
  notes = [page.text(note) for note in page.by_class("absent")]
  command = f"python main.py --config=... --workdir={workdir} --config.mode="
  assert notes == [
    f"bare: environment.json is missing. To make it: {command}train",
    f"bare: results/*.json is missing. To make it: {command}eval",
    f"bare: metrics.jsonl is missing. To make it: {command}train",
    f"bare: results/*_embeddings.npz is missing. To make it: {command}eval",
  ]


def test_one_run_may_lack_what_the_other_has(build, make_workdir, make_embeddings):
  full = make_workdir("full", embeddings=make_embeddings())
  page = build(make_workdir("bare", lines=None), full)
  section = page.section("text-to-image")
  (note,) = page.by_class("absent", section)
  assert page.text(note).startswith("bare: results/*_embeddings.npz is missing")
  rows = page.by_class("row", section)
  # The colours and names go by the run's place among all runs.
  assert {row.get("data-run") for row in rows} == {"1"}
  assert {page.text(run) for run in page.by_class("run", rows[0])} == {"full"}


def test_queries_are_those_that_all_runs_have(build, make_workdir, make_embeddings):
  small, large = make_embeddings(images=3), make_embeddings(images=14)
  page = build(
    make_workdir("small", embeddings=small), make_workdir("large", embeddings=large)
  )
  section = page.section("text-to-image")
  assert sorted(_keys(page.by_class("query", section))) == ["K000", "K001", "K002"]
  assert "nearest of 14 and 3 held-out pictures" in page.text(section)

  large["keys"] = np.array([f"other {key}" for key in large["keys"]])
  page = build(
    make_workdir("small", embeddings=small), make_workdir("large", embeddings=large)
  )
  (note,) = page.by_class("absent", page.section("pictures"))
  assert "no picture in common" in page.text(note)


def test_single_held_out_picture(build, make_workdir, make_embeddings):
  page = build(make_workdir(embeddings=make_embeddings(images=1)))
  hits = page.section("text-to-image").findall(".//li")
  assert [hit.get("class") for hit in hits] == ["right"]
  assert "has no neighbours" in page.text(page.section("neighbours"))


def test_text_from_files_cannot_become_markup(build, make_workdir, make_embeddings):
  evil = "<script>alert('x')</script> & \"quotes\" → 😀 שלום"
  arrays = make_embeddings(images=3, captions_each=1)
  arrays["captions"] = np.array([evil] * 3)
  arrays["keys"] = np.array([f'"><b>{row}' for row in range(3)])
  page = build(
    make_workdir(
      "run<i>&",
      config={"seed": evil, "model": {"name": evil}, "<u>": {"<s>": evil}},
      environment={"<em>": evil},
      lines=[{"step": 1, "train/<hr>": 1.0}],
      results={("<q>", "task<q>"): {"acc1<q>": 0.5}},
      embeddings=arrays,
    )
  )
  tags = {node.tag for node in page.root.iter()}
  assert not tags & {"script", "hr", "u", "s", "em", "q"}
  assert page.text(page.root.find(".//h1")) == "run<i>&"
  query = page.by_class("query", page.section("text-to-image"))[0]
  assert page.text(query.find(".//p")) == evil
  assert query.get("data-key").startswith('"><b>')
  assert evil in query.find(".//li/img").get("title")
  assert page.rows("facts")["Model"] == [evil]
  assert page.rows("results") == {"acc1<q>": ["0.5000"]}


def test_half_a_surrogate_pair_does_not_stop_the_page(
  tmp_path, make_workdir, make_embeddings
):
  arrays = make_embeddings(images=2, captions_each=1)
  arrays["captions"] = np.array(["torn \ud83d", "whole"])
  path = report.build([make_workdir(embeddings=arrays)], tmp_path)
  assert "torn &#55357;" in path.read_text(encoding="utf-8")


def test_page_needs_nothing_else(build, make_workdir, make_embeddings):
  page = build(make_workdir(embeddings=make_embeddings()))
  pictures = [node.get("src") for node in page.root.iter("img")]
  assert pictures
  assert all(re.match(r"data:image/(png|webp);base64,", source) for source in pictures)
  assert not {"script", "link", "iframe"} & {node.tag for node in page.root.iter()}
  assert "http" not in page.source
  assert "url(" not in page.source
  anchors = [node.get("href").removeprefix("#") for node in page.root.iter("a")]
  assert anchors == [node.get("id") for node in page.root.iter("section")]


def test_footer_names_the_licence_and_the_command(build, make_workdir, make_embeddings):
  first = make_workdir("a", embeddings=make_embeddings())
  second = make_workdir("b b", config={"data": {"source": "cc3m"}})
  licence = (
    "All emojis designed by OpenMoji \N{EN DASH} the open-source emoji and icon project."
    " License: CC BY-SA 4.0"
  )
  page = build(first, second)
  footer = page.text(page.root.find(".//footer"))
  assert footer.startswith(licence)
  assert footer.endswith(
    f"python main.py --config=... --workdir={first} --config.mode=report"
    f" --config.report.compare='{second}'"
  )
  assert "OpenMoji" not in build(second).source


def test_same_folder_name_twice_is_told_apart(build, make_workdir):
  page = build(make_workdir("a/run"), make_workdir("b/run"))
  names = [page.text(run) for run in page.by_class("run", page.by_class("facts")[0])]
  assert names == ["a/run", "b/run"]


def test_page_is_replaced_whole_or_not_at_all(tmp_path, make_workdir, monkeypatch):
  workdir = make_workdir()
  path = report.build([workdir], tmp_path / "deep" / "out")
  assert path == tmp_path / "deep" / "out" / "index.html"
  before = path.read_bytes()
  assert report.build([workdir], path.parent).read_bytes() == before

  def fail(source, target):
    raise OSError("no space")

  monkeypatch.setattr(os, "replace", fail)
  with pytest.raises(OSError, match="no space"):
    report.build([make_workdir(config={"seed": 99})], path.parent)
  assert path.read_bytes() == before
  assert os.listdir(path.parent) == ["index.html"]


def test_page_of_500_pictures_can_be_mailed(tmp_path, make_workdir, make_embeddings):
  arrays = make_embeddings(images=500, captions_each=1)
  # Flat shapes in many colours, as emoji are.
  rng = np.random.default_rng(0)
  height, width = np.mgrid[:72, :72] - 35.5
  disc = (height**2 + width**2 < 30**2)[..., None]
  bar = (np.abs(height + width) < 8)[..., None]
  colours = rng.integers(0, 255, (2, 500, 1, 1, 3))
  arrays["thumbnails"] = np.where(
    bar, colours[0], np.where(disc, colours[1], 255)
  ).astype(np.uint8)
  path = report.build([make_workdir(embeddings=arrays)], tmp_path)
  assert path.stat().st_size < 3_000_000
