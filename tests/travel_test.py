"""Weights out of a run and back, as users do it: `python main.py`, process by process."""

import csv
import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

import rankclip_jax
from rankclip_jax import config, start
from rankclip_jax.data.openmoji import OpenMoji

ROOT = pathlib.Path(__file__).parents[1]
SMALL = (
  "--config.data.batch_size=512",
  "--config.optim.epochs=1",
  "--config.eval.every_epochs=0",
)


def main(*flags, code=0) -> str:
  """What `python main.py` prints, on two devices."""
  done = subprocess.run(
    [sys.executable, "main.py", *map(str, flags)],
    cwd=ROOT,
    env={**os.environ, "JAX_NUM_CPU_DEVICES": "2"},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    timeout=300,
  )
  assert done.returncode == code, done.stdout
  return done.stdout


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("run")
  main("--config=configs/openmoji.py", f"--workdir={workdir}", *SMALL,
       "--config.model.name=nano", "--config.model.dtype=float32")  # fmt: skip
  return workdir


@pytest.fixture(scope="module")
def exports(run):
  """The run in both layouts, and what was printed."""
  return {
    layout: main("--config=configs/openmoji.py", f"--workdir={run}",
                 "--config.mode=export", f"--config.export.format={layout}",
                 "--config.export.licence=cc-by-sa-4.0")
    for layout in ("transformers", "open_clip")
  }  # fmt: skip


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
  """Twenty drawn emoji as files, their captions, and a CSV of both."""
  folder = tmp_path_factory.mktemp("pictures")
  source = OpenMoji("test", holdout=20)
  with (folder / "pairs.csv").open("w", newline="", encoding="utf-8") as file:
    writer = csv.writer(file)
    writer.writerow(["image", "caption"])
    for i in range(20):
      example = source[i]
      Image.fromarray(example.image).save(folder / f"{i:02}.png")
      writer.writerow([f"{i:02}.png", example.captions[0]])
  return folder


def assert_equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_exports_come_back_bit_equal_with_cards_that_know_the_run(run, exports):
  ours = start.read(run)
  for layout, printed in exports.items():
    folder = run / "export" / layout
    assert f"Exported step 6 of {run} to {folder}" in printed
    back = start.read(folder)
    assert_equal(back.params, ours.params)
    assert back.size == ours.size
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "OpenMoji pictures (CC BY-SA 4.0)" in card
    assert "rankclip (cross_modal_weight" in card
    assert 'license: "cc-by-sa-4.0"' in card
    result = json.loads(
      (run / "results" / "openmoji_zeroshot_retrieval.json").read_text()
    )
    recall = result["metrics"]["image_retrieval_recall@5"]
    name = "openmoji/zeroshot_retrieval/image_retrieval_recall@5"
    assert f"| {name} | {recall:.4f} |" in card


def test_a_model_embeds_the_same_from_a_workdir_and_its_exports(run, exports, pictures):
  paths, texts = sorted(pictures.glob("*.png")), ["a red heart", "flag: Japan"]
  ours = rankclip_jax.load(run).similarity(paths, texts)
  assert ours.shape == (20, 2)
  for layout in exports:
    theirs = rankclip_jax.load(run / "export" / layout).similarity(paths, texts)
    np.testing.assert_allclose(theirs, ours, rtol=1e-6)


def test_a_folder_is_embedded_and_searched(run, pictures, tmp_path):
  flags = ("--config=configs/openmoji.py", f"--workdir={tmp_path / 'search'}",
           f"--config.init.weights={run}")  # fmt: skip
  printed = main(*flags, "--config.mode=embed", f"--config.embed.images={pictures}")
  assert "Embedded 20 pictures and 0 texts" in printed
  query = pictures / "07.png"
  printed = main(*flags, "--config.mode=search", f"--config.search.query={query}")
  assert "\n   1   1.0000  07.png\n" in printed
  with Image.open(tmp_path / "search" / "search" / "07.png") as panel:
    assert panel.width > 1000


def test_an_export_is_fine_tuned_with_the_ranking_objective(run, exports, tmp_path):
  export = run / "export" / "transformers"
  flags = ("--config=configs/finetune.py:lit,rankclip", f"--workdir={tmp_path}",
           f"--config.init.weights={export}", *SMALL)  # fmt: skip
  printed = main(*flags)
  assert f"Starting from {export}/model.safetensors (transformers layout" in printed
  before, after = start.read(export), start.read(tmp_path)
  assert_equal(after.params["vision"], before.params["vision"])
  moved = jax.tree.map(
    lambda a, b: np.abs(a - b).max() > 0, before.params["text"], after.params["text"]
  )
  assert all(jax.tree.leaves(moved))
  assert json.loads((tmp_path / "config.json").read_text())["optim"]["frozen"] == "image"
  first = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
  scale = np.exp(before.params["logit_scale"])
  assert first["logit_scale"] == pytest.approx(scale, rel=1e-5)
  # The same command with another mode is about what came of it.
  printed = main(*flags, "--config.mode=export")
  assert f"{tmp_path} has checkpoints, and they are used" in printed
  assert_equal(start.read(tmp_path / "export" / "transformers").params, after.params)


def test_the_papers_config_trains_on_a_csv(pictures, tmp_path):
  printed = main(
    "--config=configs/cc3m.py:rn50,rankclip_paper", f"--workdir={tmp_path}",
    "--config.model.name=nano-resnet", f"--config.data.train={pictures}/pairs.csv",
    f"--config.data.test={pictures}/pairs.csv", "--config.data.batch_size=8",
    "--config.optim.epochs=2", "--config.optim.warmup_steps=1",
  )  # fmt: skip
  assert "pairs zeroshot_retrieval: image_retrieval_recall@1" in printed
  lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
  losses = [json.loads(x)["train/loss"] for x in lines if "train/loss" in json.loads(x)]
  assert len(losses) == 4
  assert np.all(np.isfinite(losses))
  statistics = start.read(tmp_path).params["vision"]["bn1"]
  assert np.abs(statistics["mean"]).max() > 1e-4  # they have moved, and were saved


def test_bad_weights_are_one_clear_line(tmp_path):
  (tmp_path / "weights.pt").write_text("version https://git-lfs.github.com/spec/v1\n")
  flags = ("--config=configs/finetune.py", f"--workdir={tmp_path / 'run'}")
  printed = main(*flags, f"--config.init.weights={tmp_path}/weights.pt", code=1)
  assert "weights.pt is a git-lfs pointer" in printed
  assert "Traceback" not in printed
  printed = main(*flags, code=1)
  assert "give --config.init.weights=PATH" in printed
  weights = f"--config.init.weights={tmp_path}/weights.pt"
  several = "--config.distributed.mode=auto"
  alone = main(*flags, weights, several, "--config.mode=export", code=1)
  assert 'config.mode="export" runs as one process' in alone


def test_the_snippets_of_the_page_run(run, pictures, tmp_path, monkeypatch):
  page = (ROOT / "docs" / "use.md").read_text(encoding="utf-8")
  snippets = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
  assert len(snippets) == 2
  (tmp_path / "runs").mkdir()
  (tmp_path / "runs" / "openmoji").symlink_to(run)
  for name, number in (("cat.png", 3), ("heart.png", 4)):
    (tmp_path / name).symlink_to(pictures / f"{number:02}.png")
  monkeypatch.chdir(tmp_path)
  names: dict = {}
  for snippet in snippets:
    exec(snippet, names)
  assert names["logits"].shape == (2, 2)


@pytest.mark.parametrize("page, least", [("use", 11), ("data", 5), ("evaluation", 10)])
def test_every_command_of_the_page_names_fields_that_exist(page, least):
  text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
  flags = re.findall(r"--config\.[\w.]+\w", text)
  assert len(flags) >= least
  config.check_flag_names(flags)
