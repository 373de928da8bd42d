"""mode=embed and mode=search on pictures that are drawn here."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from rankclip_jax import config, interop, search, start
from rankclip_jax.models import sizes
from rankclip_jax.search import embedding, finding, panel
from tests.inference_test import CARD, SIZE, drawn

COLOURS = ("red", "lime", "blue", "yellow", "black", "white", "orange", "navy")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
  folder = tmp_path_factory.mktemp("export") / "nano"
  interop.write_open_clip(folder, drawn(), SIZE, CARD)
  return folder


@pytest.fixture
def folder(tmp_path):
  """Eight pictures in two folders, one of them twice, and files that are none."""
  pictures = tmp_path / "pictures"
  (pictures / "deep" / "er").mkdir(parents=True)
  rng = np.random.default_rng(0)
  for i, colour in enumerate(COLOURS):
    noise = Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8))
    image = Image.blend(Image.new("RGB", (30, 20), colour), noise, 0.3)
    image.save(pictures / ("deep/er" if i % 2 else ".") / f"{colour}.png")
  (pictures / "again.PNG").write_bytes((pictures / "red.png").read_bytes())
  (pictures / "broken.jpg").write_text("no picture")
  (pictures / "notes.txt").write_text("no picture either")
  return pictures


def config_of(exported, **sections):
  return config.Config(
    mode="embed",
    init=config.InitConfig(weights=str(exported)),
    eval=config.EvalConfig(batch_size=8),
    **sections,
  )


def embedded(exported, folder, workdir, **fields):
  cfg = config_of(exported, embed=config.EmbedConfig(images=str(folder), **fields))
  return search.embed(cfg, workdir)


def found(exported, workdir, query, top=3, embeddings="", **sections):
  wanted = config.SearchConfig(query=str(query), top=top, embeddings=embeddings)
  return search.search(config_of(exported, search=wanted, **sections), workdir)


def test_embeddings_are_in_order_and_say_of_what(exported, folder, tmp_path):
  texts = tmp_path / "texts.txt"
  texts.write_text("\ufeffa red square\nblue\r\n", encoding="utf-8")
  printed = embedded(exported, folder, tmp_path, texts=str(texts))
  assert "Embedded 9 pictures and 2 texts" in printed
  assert "1 of 10 files cannot be read" in printed
  assert "broken.jpg" in printed
  why = (tmp_path / "embeddings.unreadable.txt").read_text()
  assert why.startswith("broken.jpg\tPicture 3, ")
  model = embedding.model_of(config_of(exported), tmp_path)
  with np.load(tmp_path / "embeddings.npz") as file:
    paths = file["image_paths"].tolist()
    assert paths == sorted(paths)
    assert "deep/er/lime.png" in paths
    expected = model.encode_image([folder / p for p in paths])
    np.testing.assert_allclose(file["image"], expected, atol=1e-6)
    assert file["texts"].tolist() == ["a red square", "blue"]
    np.testing.assert_allclose(file["text"], model.encode_text(["a red square", "blue"]))
    assert file["logit_scale"] == pytest.approx(20.0)
    assert json.loads(str(file["model"])) == json.loads(json.dumps(model.facts))
  (folder / "broken.jpg").unlink()
  embedded(exported, folder, tmp_path)
  assert not (tmp_path / "embeddings.unreadable.txt").exists()


def test_tiffs_are_pictures(exported, folder, tmp_path):
  for name in ("a.tif", "b.TIFF"):
    Image.new("RGB", (9, 9), "red").save(folder / name, "TIFF")
  embedded(exported, folder, tmp_path)
  assert {"a.tif", "b.TIFF"} <= set(finding.read(tmp_path / "embeddings.npz").paths)
  printed = found(exported, tmp_path, folder / "a.tif")
  assert printed.splitlines()[1].split()[1:] == ["1.0000", "a.tif"]


def test_a_home_folder_is_found(exported, folder, tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(folder.parent))
  (folder.parent / "t.txt").write_text("red\n")
  embedded(exported, "~/pictures", tmp_path, texts="~/t.txt", output="~/e.npz")
  printed = found(
    exported,
    tmp_path,
    "~/pictures/red.png",
    embed=config.EmbedConfig(images="~/pictures"),
    embeddings="~/e.npz",
  )
  assert "1.0000  red.png" in printed


def test_a_foreign_vocabulary_is_said_before_pictures_are_read(
  folder, tmp_path, monkeypatch
):
  size = sizes.changed(SIZE, vocab_size=100)
  exported = tmp_path / "foreign"
  interop.write_open_clip(exported, drawn(size), size, CARD)
  embedded(exported, folder, tmp_path)  # pictures alone can be
  assert len(finding.read(tmp_path / "embeddings.npz").paths) == 9
  (tmp_path / "t.txt").write_text("red\n")

  def never(*_):
    raise AssertionError("no picture should be embedded")

  monkeypatch.setattr(embedding, "_embed_pictures", never)
  with pytest.raises(ValueError, match="has 100 tokens"):
    embedded(exported, folder, tmp_path, texts=str(tmp_path / "t.txt"))


def test_what_was_learned_is_embedded_and_not_what_it_started_from(
  exported, folder, tmp_path, monkeypatch
):
  """The command of a training, repeated with mode=embed, names both."""
  asked = []
  learned = interop.Weights(SIZE, drawn(seed=5), {}, "step 7")
  read = lambda path, *_: asked.append(path) or learned
  monkeypatch.setattr(start, "read", read)
  (tmp_path / "checkpoints" / "7").mkdir(parents=True)
  assert "with step 7." in embedded(exported, folder, tmp_path)
  found(exported, tmp_path, "a")
  assert asked == [tmp_path, tmp_path]


def test_a_picture_finds_itself_and_its_copy(exported, folder, tmp_path):
  embedded(exported, folder, tmp_path)
  printed = found(exported, tmp_path, folder / "red.png")
  head, first, second, third, last = printed.splitlines()
  assert head.split() == ["rank", "cosine", "picture"]
  assert first.split() == ["1", "1.0000", "again.PNG"]
  assert second.split() == ["2", "1.0000", "red.png"]
  assert float(third.split()[1]) < 0.9999
  drawing = tmp_path / "search" / "red.png"
  assert last == f"Panel: {drawing}"
  with Image.open(drawing) as image:
    assert image.width == panel._WIDTH


def test_a_text_finds_what_its_cosines_say(exported, folder, tmp_path):
  embedded(exported, folder, tmp_path)
  printed = found(exported, tmp_path, "an orange / square?", top=99)
  index = finding.read(tmp_path / "embeddings.npz")
  model = embedding.model_of(config_of(exported), tmp_path)
  cosines = index.image @ model.encode_text("an orange / square?")[0]
  ranked = [line.split() for line in printed.splitlines()[1:-1]]
  assert [r[2] for r in ranked] == [index.paths[i] for i in np.argsort(-cosines)]
  assert [float(r[1]) for r in ranked] == pytest.approx(sorted(cosines)[::-1], abs=1e-4)
  assert (tmp_path / "search" / "an-orange-square.png").exists()


def test_the_panel_shows_the_pictures_that_were_found(folder):
  hits = [panel.Hit(i + 1, 0.5, f"{'x' * 90}{i}", folder / "red.png") for i in range(7)]
  hits.append(panel.Hit(8, 0.1, "gone", folder / "gone.png"))
  drawn = panel.draw("q " * 300, hits, among=1234)
  assert drawn.width == panel._WIDTH
  pixels = np.asarray(drawn)
  with Image.open(folder / "red.png") as red:
    mean = np.asarray(red).mean((0, 1))
  close = np.abs(pixels - mean).max(-1) < 90
  assert 7 * 0.3 * panel._TILE**2 < close.sum() < 7 * panel._TILE**2
  assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50


def test_other_models_are_refused(exported, folder, tmp_path):
  embedded(exported, folder, tmp_path)
  other = tmp_path / "other"
  interop.write_open_clip(other, drawn(seed=1), SIZE, CARD)
  with pytest.raises(ValueError, match=r"of another model .*\n  weights: .*\nEmbed the"):
    found(other, tmp_path, "a")


def test_what_cannot_be_embedded_is_said(exported, folder, tmp_path):
  with pytest.raises(ValueError, match="nothing to embed; give --config.embed.images"):
    search.embed(config_of(exported), tmp_path)
  with pytest.raises(ValueError, match="is no folder"):
    embedded(exported, folder / "none", tmp_path)
  with pytest.raises(ValueError, match="is a folder; name a file"):
    embedded(exported, folder, tmp_path, output=str(tmp_path))
  empty = tmp_path / "empty"
  empty.mkdir()
  with pytest.raises(ValueError, match=r"no picture below .*\.webp"):
    embedded(exported, empty, tmp_path)
  (empty / "a.png").write_text("no")
  with pytest.raises(ValueError, match="None of the 1 pictures .* can be read"):
    embedded(exported, empty, tmp_path)
  assert not (tmp_path / "embeddings.npz").exists()


@pytest.mark.parametrize(
  "content, message",
  [(b"a\n\nb\n", "line 2 is empty"), (b"a\n\xff\n", "line 2: .* convert .* to UTF-8")],
)
def test_lines_that_are_no_text_are_numbered(exported, tmp_path, content, message):
  (tmp_path / "t.txt").write_bytes(content)
  cfg = config_of(exported, embed=config.EmbedConfig(texts=str(tmp_path / "t.txt")))
  with pytest.raises(ValueError, match=message):
    search.embed(cfg, tmp_path)


def test_what_cannot_be_searched_is_said(exported, folder, tmp_path):
  with pytest.raises(ValueError, match="There are no embeddings .*mode=embed"):
    found(exported, tmp_path, "a")
  embedded(exported, folder, tmp_path)
  with pytest.raises(ValueError, match="There is no query"):
    found(exported, tmp_path, " ")
  with pytest.raises(ValueError, match="ends like a picture, and there is no such file"):
    found(exported, tmp_path, folder / "gone.png")
  with pytest.raises(ValueError, match="cannot be read"):
    found(exported, tmp_path, folder / "broken.jpg")
  path = tmp_path / "embeddings.npz"
  data = path.read_bytes()
  for damage in (data[: len(data) // 2], b"", b"PK\x03\x04", b"text"):
    path.write_bytes(damage)
    with pytest.raises(ValueError, match="is damaged or not of mode=embed"):
      found(exported, tmp_path, "a")
  np.savez(path, other=np.zeros(3))
  with pytest.raises(ValueError, match="is damaged or not of mode=embed"):
    found(exported, tmp_path, "a")
  cfg = config_of(exported)
  text = tmp_path / "t.txt"
  text.write_text("only texts")
  cfg = dataclasses.replace(cfg, embed=config.EmbedConfig(texts=str(text)))
  search.embed(cfg, tmp_path)
  with pytest.raises(ValueError, match="holds texts and no pictures"):
    found(exported, tmp_path, "a")
