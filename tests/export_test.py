"""mode=export: which weights go out, and what their card knows of them."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from rankclip_jax import config, export, interop, launcher, start
from rankclip_jax.interop import model_card
from rankclip_jax.losses import objective
from rankclip_jax.models import sizes
from tests.inference_test import SIZE, drawn

FOREIGN = interop.Card(name="foreign", licence="mit", data="theirs", objective="theirs")


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
  """Weights of another tool: an export whose card says nothing."""
  folder = tmp_path_factory.mktemp("foreign") / "weights"
  interop.write_open_clip(folder, drawn(), SIZE, FOREIGN)
  (folder / "README.md").unlink()
  return folder


@pytest.fixture(scope="module")
def tuned(foreign, tmp_path_factory):
  """A config that trains one epoch from these weights, and the workdir it trained in."""
  workdir = tmp_path_factory.mktemp("runs") / "tuned"
  cfg = config.Config(
    data=config.DataConfig(batch_size=512),
    model=config.ModelConfig(name="loaded", dtype="float32"),
    init=config.InitConfig(weights=str(foreign)),
    optim=config.OptimConfig(epochs=1, learning_rate=1e-3),
    checkpoint=config.CheckpointConfig(every_minutes=0.0),
    eval=config.EvalConfig(every_epochs=0),
    export=config.ExportConfig(format="open_clip", licence="cc-by-sa-4.0"),
  )
  assert launcher.run(cfg, workdir) == 0
  return cfg, workdir


def card_at(folder):
  return (folder / "README.md").read_text(encoding="utf-8")


def assert_equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_the_same_command_exports_what_was_learned(tuned, foreign):
  cfg, workdir = tuned
  printed = export.run(cfg, workdir)
  folder = workdir / "export" / "open_clip"
  assert printed == f"Exported step 6 of {workdir} to {folder}"
  learned, exported = start.read(workdir), start.read(folder)
  assert_equal(exported.params, learned.params)
  before = start.read(foreign).params["text"]["projection"]["kernel"]
  assert np.abs(exported.params["text"]["projection"]["kernel"] - before).max() > 1e-4


def test_the_card_knows_the_run(tuned, foreign):
  cfg, workdir = tuned
  export.run(cfg, workdir)
  text = card_at(workdir / "export" / "open_clip")
  scale = float(np.exp(start.read(workdir).params["logit_scale"]))
  for line in (
    "# nano-gelu rankclip (tuned)",
    "| Training data | OpenMoji pictures (CC BY-SA 4.0) and their Unicode names |",
    "| Objective | rankclip (cross_modal_weight 0.0625, in_modal_weight 0.0625, ramp "
    "min(3 t, 2) by step, ties random, temperature 1/14.29 at first, kept in [1/100, "
    "1/1]) |",
    f"| Started from | {foreign} |",
    f"| Logits | {scale:.4g} times the cosines |",
    "| openmoji/geometry/rank_consistency_anchors | 500 |",
  ):
    assert f"\n{line}\n" in text
  result = workdir / "results" / "openmoji_zeroshot_retrieval.json"
  recall = json.loads(result.read_text())["metrics"]["image_retrieval_recall@5"]
  data = pytest.importorskip("huggingface_hub").ModelCard(text).data
  found = {(r.task_type, r.metric_type): r.metric_value for r in data.eval_results}
  assert found["zeroshot_retrieval", "image_retrieval_recall@5"] == round(recall, 4)


def test_an_export_is_converted_with_all_that_its_card_knows(tuned, tmp_path):
  cfg, workdir = tuned
  export.run(cfg, workdir)
  first = workdir / "export" / "open_clip"
  cfg = config.Config(
    init=config.InitConfig(weights=str(first)),
    export=config.ExportConfig(output=str(tmp_path / "out")),
  )
  export.run(cfg, tmp_path / "none")
  before, after = (
    model_card.read(folder, start.read(folder).size)
    for folder in (first, tmp_path / "out")
  )
  assert before
  assert after
  assert before.metrics
  assert dict(after.training).pop("Converted from").startswith(f"{first}/open_clip_model")
  rest = {k: v for k, v in after.training.items() if k != "Converted from"}
  assert dataclasses.replace(after, training=rest) == before
  assert_equal(start.read(tmp_path / "out").params, start.read(workdir).params)


def test_what_is_asked_of_the_model_is_exported_and_not_what_was_measured(
  tuned, tmp_path
):
  """Position embeddings are interpolated and cut, as for training."""
  _, workdir = tuned
  cfg = config.Config(
    init=config.InitConfig(weights=str(workdir)),
    model=config.ModelConfig(image_size=32, context_length=9),
    export=config.ExportConfig(output=str(tmp_path / "out")),
  )
  export.run(cfg, tmp_path)
  learned, found = start.read(workdir), start.read(tmp_path / "out")
  assert found.size == sizes.changed(learned.size, image_size=32, context_length=9)
  assert found.params["vision"]["positional_embedding"].shape == (17, 32)
  np.testing.assert_array_equal(
    found.params["text"]["positional_embedding"],
    learned.params["text"]["positional_embedding"][:9],
  )
  text = card_at(tmp_path / "out")
  assert "32 pixels square" in text
  assert "None were given when this was exported." in text


def test_of_foreign_weights_the_card_says_where_they_are_from(foreign, tmp_path):
  cfg = config.Config(
    init=config.InitConfig(weights=str(foreign)),
    export=config.ExportConfig(output=str(tmp_path / "out"), licence="mit"),
  )
  export.run(cfg, tmp_path)
  text = card_at(tmp_path / "out")
  assert "\n# nano-gelu (weights)\n" in text
  assert "| Training data | not told by the weights: see where they are from |" in text
  assert f"| Converted from | {foreign}/open_clip_model.safetensors (OpenAI lay" in text
  assert "| Logits | 20 times the cosines |" in text
  assert 'license: "mit"' in text


def test_another_way_to_resize_pictures_goes_out_again(foreign, tmp_path):
  how = {"interpolation": "bilinear", "resize_mode": "squash"}
  interop.write_open_clip(tmp_path / "a", drawn(), SIZE, FOREIGN, how)
  cfg = config.Config(
    init=config.InitConfig(weights=str(tmp_path / "a")),
    export=config.ExportConfig(format="open_clip", output=str(tmp_path / "b")),
  )
  export.run(cfg, tmp_path)
  assert how.items() <= start.read(tmp_path / "b").preprocessing.items()


def test_a_home_folder_is_found(foreign, tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(foreign.parent))
  cfg = config.Config(
    init=config.InitConfig(weights="~/weights"),
    export=config.ExportConfig(output="~/out"),
  )
  export.run(cfg, tmp_path)
  assert (foreign.parent / "out" / "model.safetensors").is_file()
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  "name, changes, expected",
  [
    ("clip", {}, "clip (temperature 1/14.29 at first, kept in [1/100, 1/1])"),
    (
      "siglip",
      {},
      "siglip (temperature 1/10 at first, kept in [1/100, 1/1], bias -10 at first)",
    ),
    (
      "cyclip",
      {},
      "cyclip (cyclic_cross_modal_weight 0.25, cyclic_in_modal_weight 0.25, "
      "temperature 1/14.29 at first, kept in [1/100, 1/1])",
    ),
    (
      "rankclip_paper",
      {"top_k": 5, "anchor_stride": 2, "ties": "index"},
      "rankclip_paper (cross_modal_weight 0.0625, in_modal_weight 0.0625, no ramp, decay "
      "log, top_k 5, anchor_stride 2, ties index, temperature 1/14.29 at first, kept in "
      "[1/100, 1/1])",
    ),
    (
      "rankclip_released",
      {"in_modal_weight": 0.0, "ramp_slope": 4.0},
      "rankclip_released (cross_modal_weight 0.0625, ramp min(4 t, 2) by epoch, eps "
      "1e-10, ties random, temperature 1/14.29 at first, kept in [1/100, 1/1])",
    ),
  ],
)
def test_an_objective_in_words_has_all_of_it(name, changes, expected):
  chosen = dataclasses.replace(objective.PRESETS[name], **changes)
  facts = json.loads(json.dumps(dataclasses.asdict(chosen)))
  assert export._objective(name, facts) == expected


def test_data_is_named_by_its_files():
  assert (
    export._data({"source": "csv", "train": "/a/train.csv"}) == "the pairs of train.csv"
  )
  mixed = {"source": "mixture", "train": "/a/x.csv::/b/{000..331}.tar"}
  assert export._data(mixed) == "the pairs of x.csv, {000..331}.tar"
