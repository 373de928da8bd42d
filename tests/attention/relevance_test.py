"""Maps beside PyTorch's autograd on the peers' models, and of models with known maps."""

import dataclasses

import jax
import numpy as np
import parity
import peers
import pytest
from flax import nnx

from rankclip_jax.attention import relevance
from rankclip_jax.interop import architecture, layouts
from rankclip_jax.models import sizes, two_tower
from tests.attention import small

torch = peers.torch
VIT = sizes.TwoTowerSize(
  sizes.ViTSize(32, 8, 48, 3, 3),
  sizes.TextSize(32, 3, 2, context_length=12),
  embed_dim=24,
)


def arrays(model):
  return {name: x.detach().numpy() for name, x in model.state_dict().items()}


def inputs_of(size):
  """Pictures and tokens, for us and for PyTorch."""
  images, tokens = parity.inputs(
    size.image_size, size.context_length, size.text.vocab_size
  )
  pixels = (images.astype(np.float32) / 255 - np.float32(size.mean)) / np.float32(
    size.std
  )
  pixels = torch.tensor(pixels).permute(0, 3, 1, 2)
  return images, tokens, pixels, torch.tensor(tokens).long()


def embedded(size, params, images, tokens):
  """What the model itself gives."""
  graph, _ = two_tower.abstract(size)

  def run(params):
    model = nnx.merge(graph, params)
    return model.encode_image(images), model.encode_text(tokens)

  return jax.jit(run)(params)


def assert_close(ours, theirs):
  assert theirs.max() > 0
  np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4 * theirs.max())


@pytest.fixture(scope="module")
def transformer():
  model = parity.small_transformers()
  model.set_attn_implementation("eager")
  return model, layouts.from_transformers(arrays(model), VIT)


@pytest.fixture(scope="module")
def resnet():
  model, _ = parity.small_open_clip("resnet", quick_gelu=True)
  found = architecture.facts(arrays(model), architecture.OPENAI)
  size = architecture.size_of(found, vision_heads=8, text_heads=2)
  return model, size, layouts.from_openai(arrays(model), size)


def chefer(attention, gradients, row):
  """R of one row of the batch, as the paper writes it."""
  r = torch.eye(attention[0].shape[-1])
  for a, g in zip(attention, gradients, strict=True):
    r = r + (g[row] * a[row]).clamp(min=0).mean(dim=0) @ r
  return r.detach().numpy()


def test_relevance_is_that_of_pytorch_on_transformers_clip(transformer):
  model, params = transformer
  images, tokens, pixels, ids = inputs_of(VIT)
  out = model(input_ids=ids, pixel_values=pixels, output_attentions=True)
  of_images = out.vision_model_output.attentions
  of_texts = out.text_model_output.attentions
  texts = out.text_embeds.detach().numpy()
  for i in (0, 3):
    maps = relevance.of_image(VIT, params, images[i], texts).maps
    rows = relevance.of_text(VIT, params, tokens, out.image_embeds[i].detach().numpy())[1]
    for k in range(len(tokens)):
      gradients = torch.autograd.grad(
        out.logits_per_image[i, k], (*of_images, *of_texts), retain_graph=True
      )
      theirs = chefer(of_images, gradients[:3], i)
      assert_close(np.ravel(maps[k]), theirs[0, 1:])
      end = tokens[k].argmax()
      assert_close(rows[k], chefer(of_texts, gradients[3:], k)[end])
      assert not rows[k, end + 1 :].any()  # the mask is causal


def test_grad_cam_is_that_of_pytorch_on_open_clips_resnet(resnet):
  model, size, params = resnet
  images, tokens, pixels, ids = inputs_of(size)
  kept = []
  hook = model.visual.layer4.register_forward_hook(lambda *args: kept.append(args[2]))
  logits = model.get_logits(pixels, ids)[0]
  hook.remove()
  texts = np.asarray(embedded(size, params, images, tokens)[1])
  for i in (1, 4):
    maps = relevance.of_image(size, params, images[i], texts).maps
    theirs = []
    for k in range(len(tokens)):
      (gradient,) = torch.autograd.grad(logits[i, k], kept, retain_graph=True)
      weights = gradient[i].mean(dim=(1, 2))
      cam = torch.einsum("c,chw->hw", weights, kept[0][i]).clamp(min=0)
      theirs.append(cam.detach().numpy())
    assert_close(np.asarray(maps), np.stack(theirs))


@pytest.mark.parametrize("tower", ["transformer", "resnet"])
def test_the_opened_towers_embed_as_the_model_does(tower, request):
  *_, params = request.getfixturevalue(tower)
  size = VIT if tower == "transformer" else request.getfixturevalue(tower)[1]
  images, tokens, *_ = inputs_of(size)
  expected, texts = embedded(size, params, images, tokens)
  got = [relevance.of_image(size, params, image, texts).embedding for image in images]
  np.testing.assert_allclose(got, expected, atol=1e-5)
  again, _ = relevance.of_text(size, params, tokens, expected[0])
  np.testing.assert_allclose(again, texts, atol=1e-5)


def test_arithmetic_is_float32_whatever_the_model_was_trained_in():
  low = dataclasses.replace(small.VIT, dtype="bfloat16", remat="full")
  model = relevance._merged(low, small.params_of(small.VIT))
  assert model.vision.dtype == model.text.dtype == np.float32
  assert model.vision.transformer.remat == "none"


def only_at(place, size, params, picture):
  """Whether the maps that are not all zero have their one value there; one must be so."""
  texts = np.random.default_rng(1).normal(size=(small.TEXTS, size.embed_dim))
  texts[1::2] *= -1
  maps = relevance.of_image(size, params, picture, texts.astype(np.float32)).maps
  alive = [np.asarray(m) for m in maps if np.max(m) > 0]
  assert alive
  for found in alive:
    assert np.unravel_index(found.argmax(), found.shape) == place
    assert np.count_nonzero(found) == 1


def test_the_only_patch_that_matters_has_all_relevance():
  """All other tokens are zeros, of which no value and no gradient comes."""
  params = small.params_of(small.VIT)
  vision = params["vision"]
  vision["patches"]["kernel"] *= 0
  positions = vision["positional_embedding"]
  positions[np.arange(len(positions)) != 1 + 4 * 2 + 1] = 0
  only_at((2, 1), small.VIT, params, np.zeros((32, 32, 3), np.uint8))


def test_the_only_place_with_features_has_the_whole_grad_cam():
  """Blocks that are their shortcuts look at one position each."""
  picture = np.zeros((128, 128, 3), np.uint8)
  picture[96 + 8 : 96 + 24, 32 + 8 : 32 + 24] = (250, 20, 90)
  only_at((3, 1), small.RESNET, small.params_of(small.RESNET), picture)


def test_other_towers_are_refused():
  size = dataclasses.replace(VIT, vision=dataclasses.replace(VIT.text))  # type: ignore
  with pytest.raises(ValueError, match="vision transformers .* ResNets .* TextSize"):
    relevance.of_image(size, {}, np.zeros((32, 32, 3), np.uint8), np.zeros((1, 24)))
