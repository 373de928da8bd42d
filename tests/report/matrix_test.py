"""The results by task and data set, what is behind them, and what was skipped."""

import json

import pytest

from rankclip_jax import report
from rankclip_jax.evals import results as evals
from rankclip_jax.report import run

CLASSIFIED = ("vtab/cifar10", "zeroshot_classification")
RETRIEVED = ("mscoco_captions", "zeroshot_retrieval")


@pytest.fixture
def build(tmp_path, open_page):
  def build_and_open(*workdirs):
    return open_page(report.build(workdirs, tmp_path / "out"))

  return build_and_open


def _lines(page, table):
  return [[page.text(cell) for cell in row] for row in table.iter("tr")]


def test_each_task_has_a_table_of_its_data_sets(build, make_workdir):
  results = {
    CLASSIFIED: {"acc1": 0.5, "acc5": 0.75, "mean_per_class_recall": None},
    ("cars", "zeroshot_classification"): {"acc1": 0.25},
    RETRIEVED: {"image_retrieval_recall@1": 0.125, "image_retrieval_mean_rank": 3.0},
    ("cars", "own_task"): {"score_1": 0.5, "score_2": 0.75},
  }
  page = build(make_workdir(results=results, extras={CLASSIFIED: {"complete": False}}))
  classified, retrieved, own = page.by_class("matrix")
  dash = "\N{EN DASH}"
  assert _lines(page, classified) == [
    ["Data set", "top-1", "top-5"],  # the mean per class is defined nowhere
    ["cars", "25.00 %", dash],
    ["vtab/cifar10 †", "50.00 %", "75.00 %"],
  ]
  assert _lines(page, retrieved)[1] == ["mscoco_captions", "12.50 %"]
  # A task that the page does not know shows what it has.
  assert _lines(page, own)[0] == ["Data set", "score_1", "score_2"]
  assert "Not the whole test split" in page.text(page.section("results"))
  assert page.rows("results")["image_retrieval_mean_rank"] == ["3.0"]


def test_few_shot_probes_have_their_spread_over_draws(build, make_workdir):
  metrics = {
    f"lp_acc1_k{k}_{what}": value
    for k, mean in ((16, 0.5), (2, 0.25))
    for what, value in (("mean", mean), ("std", 0.0125))
  }
  page = build(make_workdir(results={("cars", "few_shot_probe"): metrics}))
  assert _lines(page, page.by_class("matrix")[0]) == [
    ["Data set", "top-1, k = 2", "top-1, k = 16"],
    ["cars", "25.00 % ± 1.25", "50.00 % ± 1.25"],
  ]


def test_two_runs_have_a_line_each_and_their_difference(build, make_workdir):
  first = make_workdir("a", results={CLASSIFIED: {"acc1": 0.5, "acc5": 0.75}})
  second = make_workdir("b", results={CLASSIFIED: {"acc1": 0.75}})
  page = build(first, second)
  (table,) = page.by_class("matrix")
  dash = "\N{EN DASH}"
  assert _lines(page, table) == [
    ["Data set", "Run", "top-1", "top-5"],
    ["vtab/cifar10", "a", "50.00 %", "75.00 %"],
    ["b", "75.00 %", dash],
    ["difference", "+25.00 pp", dash],
  ]


def test_confusions_and_calibration_are_behind_the_tables(build, make_workdir):
  confused = {"label": "<cat>", "prediction": "dog", "count": 12, "fraction": 0.24}
  extras = {CLASSIFIED: {"calibration_error": 0.0834, "confusions": [confused] * 9}}
  page = build(make_workdir(results={CLASSIFIED: {"acc1": 0.5}}, extras=extras))
  _, (name, error, pairs) = _lines(page, page.by_class("behind")[0])
  assert (name, error) == ("vtab/cifar10", "8.3 pp")
  assert pairs == "; ".join(["<cat> → dog 12 (24 %)"] * 5)
  page = build(make_workdir("plain", results={CLASSIFIED: {"acc1": 0.5}}))
  assert not page.by_class("behind")


def test_the_metric_that_the_field_reports_is_bold(build, make_workdir):
  keys = [("vtab/pets", "zeroshot_classification"), ("vtab/pets", "linear_probe")]
  results = {
    keys[0]: {"acc1": 0.5, "mean_per_class_recall": 0.25},
    keys[1]: {"lp_acc1": 0.5, "lp_mean_per_class_recall": 0.75},
  }
  extras = {key: {"metric": "mean_per_class_recall"} for key in keys}
  page = build(make_workdir(results=results, extras=extras))
  bold = [page.text(cell) for t in page.by_class("matrix") for cell in t.iter("b")]
  assert bold == ["25.00 %", "75.00 %"]
  assert "Bold: the metric that the field reports" in page.text(page.section("results"))


def test_uniformity_says_by_which_convention(build, make_workdir):
  results = {("a", "geometry"): {"uniformity_cross_modal": -2.0, "uniformity_image": -3}}
  page = build(make_workdir(results=results))
  head, _ = _lines(page, page.by_class("matrix")[0])
  assert head[1:] == [
    "uniformity, image to text (CyCLIP)",
    "uniformity of images (Wang & Isola)",
  ]
  assert "Bold:" not in page.text(page.section("results"))


def _skip(workdir, name, *entries):
  folder = workdir / "results" / "skipped"
  folder.mkdir(exist_ok=True)
  keys = ("dataset", "task", "reason")
  lines = [dict(zip(keys, entry, strict=True)) for entry in entries]
  visits = [{"step": 5, "skipped": [{}]}, {"step": 10, "skipped": lines}]
  (folder / name).write_text(json.dumps({"visits": visits}))


def test_skipped_tasks_are_listed_with_their_reasons(build, make_workdir):
  workdir = make_workdir(results={CLASSIFIED: {"acc1": 0.5}})
  _skip(
    workdir,
    "0_of_2.json",
    ("gtsrb", "zeroshot_classification", "put <it> there"),
    ("gtsrb", "linear_probe", "put <it> there"),
    (*CLASSIFIED, "was not there, but somebody did it since"),
  )
  _skip(workdir, "1_of_2.json", ("flickr30k", "zeroshot_retrieval", "needs a form"))
  page = build(workdir)
  (note,) = page.by_class("absent", page.section("results"))
  assert page.text(note).startswith("run: 3 tasks were skipped.")
  assert [page.text(item) for item in note.iter("li")] == [
    "flickr30k (zeroshot_retrieval): needs a form",
    "gtsrb (linear_probe, zeroshot_classification): put <it> there",
  ]


def test_a_workdir_where_all_was_skipped_says_so(build, make_workdir):
  workdir = make_workdir()
  _skip(workdir, "0_of_1.json", ("gtsrb", "linear_probe", "is not there"))
  section = build(workdir).section("results")
  assert "1 task was skipped" in "".join(section.itertext())


@pytest.mark.parametrize(
  "content",
  [
    "{", "{}x", "[1]", '{"visits": [{"skipped": [{"dataset": "a"}]}]}',
    '{"visits": [{"skipped": [{"dataset": null, "task": "a", "reason": "b"}]}]}',
  ],
)  # fmt: skip
def test_broken_list_of_skipped_tasks_is_named(make_workdir, content):
  workdir = make_workdir()
  _skip(workdir, "0_of_1.json")
  (workdir / "results" / "skipped" / "0_of_1.json").write_text(content)
  with pytest.raises(
    ValueError, match=r"0_of_1\.json: expected visits with what was skipped"
  ):
    run.read_runs([workdir])


def test_results_of_checkpoints_are_curves(build, make_workdir):
  workdir = make_workdir()
  for step, top1 in ((100, 0.25), (20, 0.125), (3, None)):
    evals.write(
      workdir / "results" / f"step_{step}",
      dataset="imagenet1k",
      task="zeroshot_classification",
      metrics={"acc1": top1, "acc3": 0.5},
      model="tiny",
      pretrained=None,
      extras={},
    )
  (workdir / "results" / "step_latest").mkdir()
  (read,) = run.read_runs([workdir])
  curve = read.by_step["imagenet1k", "zeroshot_classification", "acc1"]
  assert curve.steps.tolist() == [3, 20, 100]
  assert curve.values[1:].tolist() == [0.125, 0.25]
  page = build(workdir)
  keys = [f.get("data-key") for f in page.section("curves").iter("figure")]
  # Of the metrics only the headlines; they are not results of the run itself.
  assert "imagenet1k/zeroshot_classification/acc1" in keys
  assert not [key for key in keys if key.endswith("acc3")]
  assert read.results == ()
