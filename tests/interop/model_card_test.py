"""README.md of an export: what a reader and the Hub make of it."""

import dataclasses

import pytest

from rankclip_jax.interop import model_card
from rankclip_jax.interop.model_card import Card
from rankclip_jax.models import sizes

SIZE = sizes.SIZES["nano"]
CARD = Card(
  name="ViT-B-32 rankclip (tuned)",
  licence="cc-by-sa-4.0",
  data="pictures | and names",
  objective="rankclip (ramp)",
  metrics={
    "emoji/kind/zeroshot_classification/acc1": 0.51236,
    "emoji/kind/zeroshot_classification/acc5": None,
    "emoji/geometry/anchors": 500,
    "emoji/geometry/tau": -0.00001,
    "emoji/zeroshot_retrieval/image_retrieval_median_rank": 250.0,
    "emoji/kind/zeroshot_classification/acc3": 1.0,
    "loss": 0.25,
  },
  training={"Steps": "7 of 7", "Seed": 3},
)


def rendered(card=CARD, size=SIZE, folder="tuned"):
  return model_card.render(card, size, "open_clip", folder)


def data_of(text):
  return pytest.importorskip("huggingface_hub").ModelCard(text).data


@pytest.mark.parametrize(
  "size, name",
  [(sizes.named(name), name) for name in sizes.SIZES]
  + [
    (sizes.named("ViT-B-32-gelu"), "ViT-B-32-gelu"),
    (sizes.named("ViT-B-32", image_size=64, vocab_size=9, dtype="bfloat16"), "ViT-B-32"),
    (sizes.named("ViT-L-14", image_size=448), "ViT-L-14"),
    (dataclasses.replace(SIZE, embed_dim=9), "ViT, 2 layers, width 32, patch 8"),
    (
      dataclasses.replace(sizes.SIZES["RN50"], embed_dim=9),
      "ResNet, blocks 3-4-6-3, width 64",
    ),
  ],
)
def test_an_architecture_has_its_published_name(size, name):
  assert model_card.architecture_of(size) == name


def test_results_are_shown_as_what_they_are():
  lines = rendered().splitlines()
  for row in (
    "| emoji/kind/zeroshot_classification/acc1 | 0.5124 |",
    "| emoji/geometry/anchors | 500 |",
    "| emoji/zeroshot_retrieval/image_retrieval_median_rank | 250.0 |",
    "| loss | 0.2500 |",
  ):
    assert row in lines
  assert "acc5" not in "".join(lines)
  assert "not defined" not in "".join(lines)


def test_the_hub_reads_the_results():
  data = data_of(rendered())
  assert data.model_name == CARD.name
  assert data.license == CARD.licence
  results = {
    (r.dataset_name, r.task_type, r.metric_type): r.metric_value
    for r in data.eval_results
  }
  assert results == {
    ("emoji/kind", "zero-shot-image-classification", "acc1"): 0.5124,
    ("emoji/kind", "zero-shot-image-classification", "acc3"): 1.0,
    ("emoji", "geometry", "anchors"): 500,
    ("emoji", "geometry", "tau"): 0.0,
    ("emoji", "zeroshot_retrieval", "image_retrieval_median_rank"): 250.0,
  }
  assert len({(r.dataset_name, r.task_type) for r in data.eval_results}) == 3
  assert data_of(rendered(dataclasses.replace(CARD, metrics={}))).eval_results is None


@pytest.mark.parametrize(
  "name",
  [
    "a\nb: [c",
    'a "b" \\ c',
    "a\n---\nlicense: mit",
    "😀\x00\x7f\u2028é",
    "- x",
    "{a: b}",
  ],
)
def test_names_of_any_kind_stay_one_line(name):
  odd = dataclasses.replace(CARD, name=name, licence=name, data=name, objective=name)
  odd = dataclasses.replace(odd, training={name: name}, metrics={f"{name}/t/m": 1})
  text = rendered(odd, folder=name)
  plain = rendered(dataclasses.replace(CARD, training={"a": 1}, metrics={"d/t/m": 1}))
  assert len(text.splitlines()) == len(plain.splitlines())
  data = data_of(text)
  line = " ".join("".join(c if c.isprintable() else " " for c in name).split())
  assert f"\n# {line}\n" in text
  assert (data.model_name, data.license) == (line, line)
  assert (data.eval_results[0].dataset_name, data.eval_results[0].metric_value) == (
    line,
    1,
  )


def test_a_card_comes_back_from_its_export(tmp_path):
  (tmp_path / "README.md").write_text(rendered(), encoding="utf-8")
  back = model_card.read(tmp_path, SIZE)
  assert back is not None
  rounded = {
    "emoji/kind/zeroshot_classification/acc1": 0.5124,
    "emoji/geometry/anchors": 500,
    "emoji/geometry/tau": -0.0,
    "emoji/zeroshot_retrieval/image_retrieval_median_rank": 250.0,
    "emoji/kind/zeroshot_classification/acc3": 1.0,
    "loss": 0.25,
  }
  training = {"Steps": "7 of 7", "Seed": "3"}
  assert back == dataclasses.replace(CARD, metrics=rounded, training=training)
  assert rendered(back) == rendered()
  # Another size of pictures is another model, which nobody has measured.
  other = model_card.read(tmp_path, sizes.changed(SIZE, image_size=32))
  assert other == dataclasses.replace(back, metrics={})


@pytest.mark.parametrize(
  "text",
  [
    "",
    "# CLIP\n",
    "---\nlicense: mit\n---\n# CLIP\n",
    rendered().replace("- rankclip_jax\n", ""),
    rendered().replace("| Objective |", "| Loss |"),
    rendered().partition("## Model")[0],
  ],
)
def test_other_cards_are_not_read(tmp_path, text):
  assert model_card.read(tmp_path, SIZE) is None
  (tmp_path / "README.md").write_text(text, encoding="utf-8")
  assert model_card.read(tmp_path, SIZE) is None


def test_an_edited_card_is_read_as_far_as_it_goes(tmp_path):
  text = (
    rendered().replace("| 500 |", "| many |").replace("| loss | 0.2500 |", "| loss |")
  )
  (tmp_path / "README.md").write_bytes(text.encode() + b"\xff")
  back = model_card.read(tmp_path, SIZE)
  assert back is not None
  assert "emoji/geometry/anchors" not in back.metrics
  assert "loss" not in back.metrics
  assert back.metrics["emoji/kind/zeroshot_classification/acc1"] == 0.5124
