"""Studies expand into runs whose flags are what main.py takes."""

import dataclasses
import pathlib

import pytest

from rankclip_jax.losses import objective
from rankclip_jax.studies import Study, Variant, study, variant_of

FILES = sorted((study.ROOT / "configs" / "studies").glob("*.py"))


def expanded(path, seeds=1, **settings):
  chosen = study.load(str(path))
  runs = study.expand(chosen, pathlib.Path("out"), seeds=seeds, settings=settings)
  return {run.name: run for run in runs}


def named(cfg):
  fields = dataclasses.asdict(cfg.objective)
  return objective.named(fields.pop("name"), **fields)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
@pytest.mark.parametrize("base", ["", ":configs/cc3m.py", ":configs/cc3m.py:rn50"])
def test_every_study_expands_on_the_built_in_data_and_on_the_papers(path, base):
  runs = expanded(f"{path}{base}", seeds=3)
  assert {run.seed for run in runs.values()} == {run.config.seed for run in runs.values()}
  assert len({run.flags for run in runs.values()}) == len(runs)
  for run in runs.values():
    named(run.config)
    assert run.config.data.batch_size == 128
    assert run.config.data.source == ("csv" if base else "openmoji")
    assert run.config.model.name == ("tiny", "ViT-B-32", "RN50")[len(base.split(":")) - 1]


def test_all_studies_can_share_a_workdir():
  """Runs of one name are one run: what is made for one figure serves the next."""
  found = {}
  for path in FILES:
    for name, run in expanded(path).items():
      assert found.setdefault(name, run.config) == run.config
  assert len(found) == 10


def test_the_sweep_scales_the_released_ramp_and_nothing_else():
  steps = {"num_steps": 101, "epoch_steps": 25}
  runs = list(expanded(FILES[0].with_name("lambda_sweep.py")).values())
  assert [run.variant.x for run in runs] == [0, 1, 2, 3]
  assert not named(runs[0].config).ranks
  released = objective.PRESETS["rankclip"]
  for run in runs[1:]:
    own = named(run.config)
    assert own.cross_modal_weight == own.in_modal_weight == objective.RANK_WEIGHT
    for step in (0, 10, 50, 90, 100):
      weight = objective.rank_weight(own, step, **steps)
      expected = objective.rank_weight(released, step, **steps) * run.variant.x / 2
      assert weight == pytest.approx(expected)


def test_the_ablations_have_one_term_each():
  runs = expanded(FILES[0].with_name("ablations.py"))
  weights = {
    name: (named(r.config).cross_modal_weight > 0, named(r.config).in_modal_weight > 0)
    for name, r in runs.items()
  }
  assert weights == {
    "clip-0": (False, False),
    "rankclip_c-0": (True, False),
    "rankclip_i-0": (False, True),
    "rankclip-0": (True, True),
  }


def test_sizes_train_for_equally_many_steps():
  for run in expanded(FILES[0].with_name("data_size.py")).values():
    data = run.config.data
    assert run.variant.x == data.subset or data.subset == 0
    assert run.config.optim.epochs * (int(run.variant.x) // data.batch_size) == 100
    assert data.subset_seed == 0


def test_seeds_come_one_after_the_other(runs):
  names = ["clip-0", "low-0", "rankclip-0", "clip-1", "low-1", "rankclip-1"]
  assert [run.name for run in runs] == names


def test_commands_are_what_main_takes(tiny, runs, tmp_path, monkeypatch):
  monkeypatch.chdir(study.ROOT)
  (words,) = study.expand(tiny, tmp_path, seeds=1, settings={})[1].commands()
  assert words == [
    "main.py",
    "--config=configs/openmoji.py:small,rankclip",
    "--config.objective.ramp_ceiling=1.0",
    "--config.seed=0",
    f"--workdir={tmp_path}/low-0",
  ]
  assert runs[1].config.objective.ramp_ceiling == 1.0
  assert runs[1].config.model.name == "nano"
  monkeypatch.chdir(tmp_path)  # from elsewhere files have their whole paths
  assert study.expand(tiny, tmp_path, seeds=1, settings={})[1].commands()[0][:2] == [
    str(study.MAIN),
    f"--config={study.ROOT}/configs/openmoji.py:small,rankclip",
  ]


def test_benchmarks_are_evaluated_behind_the_training(tiny, tmp_path):
  wide = dataclasses.replace(tiny, benchmarks="imagenet1k")
  train, evaluate = study.expand(wide, tmp_path, seeds=1, settings={})[0].commands()
  assert evaluate[: len(train)] == train
  extra = ["--config.mode=eval", "--config.eval.datasets=imagenet1k"]
  assert evaluate[len(train) :] == extra


def test_words_are_added_to_a_config():
  assert variant_of("a.py", "clip") == "a.py:clip"
  assert variant_of("a.py:rn50", "clip") == "a.py:rn50,clip"


@pytest.mark.parametrize(
  "settings, message",
  [
    ({"optim.epoch": "3"}, "no config.optim.epoch.*Did you mean optim.epochs"),
    ({"optim.epochs": "many"}, "optim.epochs.*many"),
    ({"optim.epochs": "0"}, "optim.epochs must be at least 1"),
    ({"seed": "3"}, "varies seed itself"),
    ({"objective.ramp_ceiling": "3"}, "varies objective.ramp_ceiling itself"),
  ],
)
def test_bad_settings_are_refused(tiny, tmp_path, settings, message):
  with pytest.raises(ValueError, match=message):
    study.expand(tiny, tmp_path, seeds=1, settings=settings)


def test_a_study_needs_seeds(tiny, tmp_path):
  with pytest.raises(ValueError, match="one seed at least, got 0"):
    study.expand(tiny, tmp_path, seeds=0, settings={})


ONE = Variant("one", "A", 1.0, "configs/openmoji.py")


@pytest.mark.parametrize(
  "variants, metrics, message",
  [
    ([], study.RANKING, "needs a variant and a metric"),
    ([ONE], [], "needs a variant and a metric"),
    ([ONE, ONE], study.RANKING, "several variants 'one'"),
    ([dataclasses.replace(ONE, name="a/b")], study.RANKING, "got 'a/b'"),
    ([ONE, Variant("two", "A", "b", "c.py")], study.RANKING, "numbers and words"),
  ],
)
def test_studies_that_make_no_figure_are_refused(variants, metrics, message):
  with pytest.raises(ValueError, match=message):
    Study("s", "x", variants, metrics)


@pytest.mark.parametrize(
  "text, message",
  [
    (None, "There is no study .*ablations, data_size, lambda_sweep"),
    ("x = 1", "must have a function get_study"),
    ("get_study = lambda arg: 3", "must have a function get_study"),
  ],
)
def test_files_that_are_no_studies_are_refused(tmp_path, text, message):
  path = tmp_path / "mine.py"
  if text:
    path.write_text(text)
  with pytest.raises(ValueError, match=message):
    study.load(str(path))
