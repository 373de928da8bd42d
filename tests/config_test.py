"""Config: dataclasses to ConfigDict and back, refusals with suggestions."""

import dataclasses
import importlib.util
import json
import pathlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankclip_jax import config
from rankclip_jax.losses import objective
from rankclip_jax.models import sizes

ROOT = pathlib.Path(__file__).parents[1]


def edited(**changes):
  """The default config as plain dictionaries, `section__field=value` changed."""
  values = dataclasses.asdict(config.Config())
  for name, value in changes.items():
    *sections, field = name.split("__")
    inner = values
    for section in sections:
      inner = inner[section]
    inner[field] = value
  return values


def test_there_and_back():
  c = config.Config(
    seed=3,
    objective=config.ObjectiveConfig(top_k=5),
    data=config.DataConfig(crop_scale=(0.5, 1.0)),
  )
  assert config.from_config_dict(config.to_config_dict(c)) == c
  assert config.from_config_dict(json.loads(config.to_json(c))) == c


def test_flags_can_set_fields_that_are_none():
  values = config.to_config_dict(config.Config())
  values.objective.top_k = 7
  values.objective.decay = "log"
  read = config.from_config_dict(values)
  assert (read.objective.top_k, read.objective.decay) == (7, "log")


@pytest.mark.parametrize(
  "key, message",
  [
    (
      "optim__learning_rte",
      r"config.optim.learning_rte. Did you mean optim.learning_rate",
    ),
    (
      "batch_size",
      r"config.batch_size. Did you mean data.batch_size or eval.batch_size\?",
    ),
    ("qqqqqqqq", r"There is no config.qqqqqqqq.$"),
  ],
)
def test_unknown_keys_are_refused_with_the_nearest(key, message):
  with pytest.raises(ValueError, match=message):
    config.from_config_dict(edited(**{key: 1}))


@pytest.mark.parametrize(
  "changes, message",
  [
    (
      {"mode": "trian"},
      r"mode must be one of train, eval, merge, report, .*, got 'trian'.*mean train",
    ),
    ({"data__batch_size": 1}, "data.batch_size must be at least 2, got 1"),
    ({"data__batch_size": 2.5}, "data.batch_size must be of type int, got 2.5"),
    ({"data__batch_size": True}, "must be of type int, got True"),
    ({"data__crop_scale": (0.9, 0.1)}, "crop_scale must be two shares"),
    ({"data__crop_scale": (0.9,)}, "crop_scale must be 2 values"),
    ({"optim__eps": 0.0}, "optim.eps must be positive"),
    ({"optim__learning_rate": float("nan")}, "learning_rate must be positive and finite"),
    ({"seed": -1}, "seed must be from 0"),
    ({"objective__top_k": 0}, "top_k must be at least 1, got 0"),
    ({"optim__epochs": 0}, "optim.epochs must be at least 1, got 0"),
    ({"optim__micro_batches": 0}, "optim.micro_batches must be at least 1, got 0"),
    ({"optim__warmup_fraction": 1.0}, r"must lie in \[0, 1\), got 1.0"),
    (
      {"eval__checkpoint": "newest"},
      'must be "latest", "best", a step, "all" or "follow", got \'newest\'',
    ),
    ({"mode": "eval", "eval__checkpoint": "all"}, 'checkpoint="all" needs eval.datasets'),
    ({"mode": "export", "eval__checkpoint": "all"}, '"export" uses one checkpoint, got'),
    ({"eval__few_shot": (4, 0)}, r"few_shot must be distinct numbers .* got \(4, 0\)"),
    ({"eval__few_shot": (4, 4)}, "few_shot must be distinct numbers of at least 1"),
    ({"eval__few_shot_seeds": 0}, "few_shot_seeds must be at least 1, got 0"),
    (
      {"distributed__mode": "explicit"},
      "needs coordinator, num_processes and process_id",
    ),
    ({"distributed__num_processes": 2}, 'only with distributed.mode="explicit"'),
  ],
)
def test_bad_values_are_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    config.from_config_dict(edited(**changes))


def test_an_int_may_stand_for_a_float():
  read = config.from_config_dict(edited(optim__learning_rate=1))
  assert type(read.optim.learning_rate) is float


@pytest.mark.parametrize(
  "flag, ok",
  [
    ("--config.data.batch_size=8", True),
    ("-config.seed=1", True),
    ("--config=configs/openmoji.py:clip", True),
    ("--workdir=config.nothing", True),
    ("--config.data.bach_size=8", False),
    ("--config.data=8", False),
  ],
)
def test_flag_names(flag, ok):
  if ok:
    config.check_flag_names([flag])
  else:
    with pytest.raises(ValueError, match="There is no config.data"):
      config.check_flag_names([flag])


AXES = {"model": ("tiny", "nano"), "objective": ("clip", "rankclip")}


def test_variants_choose_one_word_an_axis():
  assert config.variants(None, **AXES) == {"model": None, "objective": None}
  assert config.variants("clip,nano", **AXES) == {"model": "nano", "objective": "clip"}
  with pytest.raises(
    ValueError, match=r"Unknown variant 'rnkclip'.*Did you mean rankclip"
  ):
    config.variants("rnkclip", **AXES)
  with pytest.raises(ValueError, match="'clip' and 'rankclip' both choose the objective"):
    config.variants("clip,rankclip", **AXES)
  with pytest.raises(ValueError, match="Unknown variant ''"):
    config.variants("clip,", **AXES)


@given(st.lists(st.sampled_from([*AXES["model"], *AXES["objective"]]), max_size=3))
def test_variants_never_lose_a_word(words):
  try:
    chosen = config.variants(",".join(words), **AXES)
  except ValueError:
    axes = [a for w in words for a, choices in AXES.items() if w in choices]
    assert len(axes) > len(set(axes))
  else:
    assert sorted(w for w in chosen.values() if w) == sorted(words)


@pytest.mark.parametrize(
  "test, name",
  [
    ("a/b/val.csv", "val"),
    ("val.tsv::more.tsv", "val"),
    ("gs://x/coco/{00000..00331}.tar", "coco"),
    ("coco/val*.tar", "coco"),
    ("tfds:coco_captions/2014:1.1.0@test", "2014-1.1.0-test"),
    ("*.tar", "tar"),
  ],
)
def test_results_are_named_by_what_is_held_out(test, name):
  cfg = config.Config(data=config.DataConfig(source="tar", test=test))
  assert config.held_out_name(cfg) == name
  assert config.best_metric(cfg).startswith(f"{name}/zeroshot_retrieval/")


def test_contradictions_name_the_fields_that_decide_the_result():
  c = config.Config()
  saved = json.loads(config.to_json(c))
  moved = dataclasses.replace(
    c,
    mode="eval",
    mesh=config.MeshConfig(fsdp=2),
    log=config.LogConfig(every_steps=9),
    optim=config.OptimConfig(micro_batches=4),
  )
  assert config.contradictions(saved, moved) == []
  other = dataclasses.replace(
    c, seed=1, optim=dataclasses.replace(c.optim, learning_rate=0.1)
  )
  assert config.contradictions(saved, other) == [
    "seed: the checkpoint has 0, the config 1",
    "optim.learning_rate: the checkpoint has 0.0005, the config 0.1",
  ]


def test_model_and_objective_configs_only_name_fields_of_what_they_change():
  fields = lambda c: {f.name for f in dataclasses.fields(c)} - {"name"}
  model = fields(config.ModelConfig) - {"image_size", "context_length", "batch_norm"}
  assert model <= fields(sizes.TwoTowerSize)
  assert fields(config.ObjectiveConfig) <= fields(objective.Objective)


def load(path: pathlib.Path):
  spec = importlib.util.spec_from_file_location(path.stem, path)
  assert spec
  assert spec.loader
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.mark.parametrize(
  "path", sorted((ROOT / "configs").glob("*.py")), ids=lambda p: p.stem
)
@pytest.mark.parametrize("name", objective.PRESETS)
def test_every_config_file_takes_every_objective(path, name):
  read = config.from_config_dict(load(path).get_config(name))
  assert read.objective.name == name
