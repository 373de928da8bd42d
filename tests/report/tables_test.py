"""The paper's tables on the page: ours, the difference, and whether set-ups match."""

import pytest

from rankclip_jax import report
from rankclip_jax.report import matching, measured, printed, run

DASH, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"
ZERO_SHOT = ("imagenet1k", "zeroshot_classification")
PROBES = [(column.keys[0][0], "linear_probe") for column in printed.TABLE_3.columns[:-1]]
# What the tables print, as far as that is known.
CONFIG = {
  "seed": 0,
  "data": {"source": "csv", "train": "/d/cc3m/train.csv", "batch_size": 64},
  "model": {"name": "ViT-B-32", "image_size": None},
  "init": {"weights": ""},
  "objective": {"name": "clip", "cross_modal_weight": None},
  "optim": {"epochs": 32, "learning_rate": 0.001},
}


@pytest.fixture
def build(tmp_path, open_page):
  def build_and_open(*workdirs):
    return open_page(report.build(workdirs, tmp_path / "out"))

  return build_and_open


def _tables(page):
  """The rows of each table: the text of their head and cells."""
  return [
    [[page.text(cell) for cell in row] for row in table.find("tbody").iter("tr")]
    for table in page.by_class("paper", page.section("paper"))
  ]


def test_runs_stand_below_the_printed_rows_with_their_difference(build, make_workdir):
  results = {ZERO_SHOT: {"acc1": 0.1006, "acc3": 0.1594, "acc5": None}}
  ours = make_workdir("mine", config=CONFIG, results=results)
  page = build(ours, make_workdir("other", config=CONFIG))
  first, second, _, fourth, _ = _tables(page)
  assert first[0][:4] == ["CLIP", "9.06", "16.94", "21.63"]
  assert [row[0] for row in first] == [
    *("CLIP", "CyCLIP", "ALIP", "RankCLIP"), "mine", "minus CLIP", "other",
  ]  # fmt: skip
  assert first[4][1:] == ["10.06", "15.94", DASH, *[DASH] * 6]
  assert first[5][1:] == ["+1.00", f"{MINUS}1.00", DASH, *[DASH] * 6]
  assert first[6][1:] == [DASH] * 9
  # Nothing of Table 2 was measured: a row of dashes and no difference.
  assert [row[0] for row in second[4:]] == ["mine", "other"]
  # Table 4 prints two towers; the difference is to the run's own.
  assert [row[0] for row in fourth[4:]] == ["mine", "minus CLIP ViT-B/32", "other"]
  assert fourth[5][1] == f"{MINUS}10.6"
  judged = [page.text(line) for line in page.by_class("judged")]
  assert len(judged) == 2
  assert judged[0].startswith("mine matches in all that is known. Not known:")
  assert "does not match" in judged[1]
  assert "/d/cc3m/train.csv, not YFCC15M" in judged[1]


def test_mean_of_probes_is_of_all_ten_or_a_dash(build, make_workdir):
  values = {key: {"lp_acc1": 0.5 + 0.01 * i} for i, key in enumerate(PROBES)}
  whole = make_workdir("whole", config=CONFIG, results=values)
  part = make_workdir("part", config=CONFIG, results=dict(list(values.items())[1:]))
  third = _tables(build(whole, part))[2]
  by_head = {row[0]: row[1:] for row in third}
  assert by_head["whole"][-1] == "54.5"
  assert by_head["part"][0] == by_head["part"][-1] == DASH
  assert by_head["part"][1] == "51.0"


def test_objectives_and_towers_that_are_not_printed_have_no_difference(
  build, make_workdir
):
  config = CONFIG | {"objective": {"name": "rankclip_c"}}
  results = {ZERO_SHOT: {"acc1": 0.1, "acc3": 0.2, "acc5": 0.3}}
  page = build(make_workdir("c", config=config, results=results))
  assert not page.by_class("difference", page.section("paper"))
  config = CONFIG | {"model": {"name": "RN101"}}
  page = build(make_workdir("rn101", config=config, results=results))
  heads = [row[0] for table in _tables(page) for row in table]
  # Table 1 has one tower and is compared with all the same; the mark says so.
  assert heads.count("minus CLIP") == 1
  assert not [head for head in heads if head.startswith("minus CLIP ")]
  assert "RN101, not ViT-B/32" in page.text(page.section("paper"))


def test_without_such_results_there_is_the_command_that_makes_them(build, make_workdir):
  results = {("openmoji", "zeroshot_retrieval"): {"image_retrieval_recall@1": 0.5}}
  workdir = make_workdir(results=results)
  page = build(workdir)
  section = page.section("paper")
  assert not page.by_class("paper", section)
  text = page.text(section)
  assert f"--workdir={workdir} --config.mode=eval --config.eval.datasets=" in text
  assert "mscoco_captions" in text
  assert "--config.eval.probe=released" in text


def test_misprint_and_inferences_are_marked(build, make_workdir):
  page = build(make_workdir(config=CONFIG, results={ZERO_SHOT: {"acc1": 0.1}}))
  text = page.text(page.section("paper"))
  assert "probably a misprint" in text
  assert "9.36" in text
  assert "YFCC15M (inferred" in text
  assert "read off a plot, ±0.15" in text


def _verdicts(make_workdir, config, result, table=printed.TABLE_1):
  (read,) = run.read_runs([make_workdir(config=config)])
  return {
    part.name: (part.verdict, part.text) for part in matching.parts(read, table, [result])
  }


WHOLE = measured.Result(*ZERO_SHOT, {"acc1": 0.1}, {"complete": True, "templates": 80})


def test_a_matched_run_differs_in_nothing_and_what_is_not_printed_is_not_known(
  make_workdir,
):
  verdicts = _verdicts(make_workdir, CONFIG, WHOLE)
  assert {name for name, (verdict, _) in verdicts.items() if verdict == "unknown"} == {
    "training data", "schedule",
  }  # fmt: skip
  assert "differs" not in {verdict for verdict, _ in verdicts.values()}
  assert verdicts["schedule"][1].startswith("batch size 64, epochs 32, learning rate 0.0")


@pytest.mark.parametrize(
  "change, part, text",
  [
    ({"data": {"source": "openmoji"}}, "training data", "openmoji, not CC3M"),
    ({"data": {"train": "/yfcc15m.csv"}}, "training data", "not CC3M"),
    (
      {"data": {"train": "cc3m.csv", "subset": 500_000}},
      "training data",
      "500000 examples of cc3m.csv",
    ),
    ({"model": {"name": "tiny"}}, "architecture", "tiny, not ViT-B/32"),
    ({"model": {"name": "RN50"}}, "architecture", "RN50, not ViT-B/32"),
    (
      {"model": {"name": "ViT-B/32", "image_size": 112}},
      "architecture",
      "image_size 112, not 224",
    ),
    ({"model": {"name": "ViT-B-32-gelu"}}, "architecture", "ViT-B/32-gelu"),
    (
      {"model": {"name": "ViT-B-32", "activation": "gelu"}},
      "architecture",
      "not QuickGELU",
    ),
    ({"init": {"weights": "/x"}}, "start", "from /x, not from scratch"),
    ({"objective": {"name": "siglip"}}, "objective", "siglip is not in the table"),
    (
      {"objective": {"name": "rankclip", "top_k": 8}},
      "objective",
      "rankclip with top_k 8",
    ),
    (
      {"data": {"train": "cc3m.csv", "crop_scale": [0.5, 1.0]}},
      "augmentation",
      "random crops",
    ),
  ],
)
def test_every_part_of_the_training_can_differ(make_workdir, change, part, text):
  verdict, said = _verdicts(make_workdir, CONFIG | change, WHOLE)[part]
  assert verdict == "differs"
  assert text in said


@pytest.mark.parametrize(
  "result, part, verdict",
  [
    (("imagenet1k", "linear_probe", {"protocol": "sweep"}), "probe protocol", "differs"),
    (("imagenet1k", "linear_probe", {}), "probe protocol", "differs"),
    ((*ZERO_SHOT, {"templates": 1}), "prompts", "differs"),
    ((*ZERO_SHOT, {"complete": False}), "test data", "differs"),
    ((*ZERO_SHOT, {"complete": None}), "test data", "unknown"),
    ((*ZERO_SHOT, {}), "test data", "unknown"),
  ],
)
def test_every_part_of_the_evaluation_can_differ(make_workdir, result, part, verdict):
  dataset, task, extras = result
  verdicts = _verdicts(make_workdir, CONFIG, measured.Result(dataset, task, {}, extras))
  assert verdicts[part][0] == verdict


def test_without_a_config_nothing_is_claimed(build, make_workdir):
  page = build(make_workdir(config=None, results={ZERO_SHOT: {"acc1": 0.1}}))
  judged = page.text(page.by_class("judged")[0])
  assert "may or may not match" in judged
  assert "config.json is missing" in judged
  assert not page.by_class("difference", page.section("paper"))


def test_results_of_several_weights_are_told(make_workdir):
  (read,) = run.read_runs([make_workdir(config=CONFIG)])
  results = [
    measured.Result(*ZERO_SHOT, {}, {"weights": f"step {step}"}) for step in (1, 2)
  ]
  parts = {part.name: part for part in matching.parts(read, printed.TABLE_1, results)}
  assert parts["weights"].text == "of several: step 1; step 2"
