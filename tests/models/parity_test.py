"""Our towers beside open_clip's and transformers': embeddings, losses and gradients.

Weights are random and go across as they travel for users, by `interop.layouts`.
"""

import functools
import gc
import logging

import jax
import jax.numpy as jnp
import numpy as np
import parity
import peers
import pytest
from flax import nnx

from rankclip_jax import sharding, step
from rankclip_jax.interop import architecture, layouts
from rankclip_jax.losses import objective as objectives
from rankclip_jax.models import sizes, two_tower

torch = peers.torch


def arrays(model):
  return {name: x.detach().numpy() for name, x in model.state_dict().items()}


def crossed(model, size):
  """Our parameters with the weights of a model in OpenAI's layout."""
  return layouts.from_openai(arrays(model), size)


@pytest.mark.parametrize(
  "name",
  [
    *("RN50-quickgelu", "RN101", "RN50x4"),
    *("ViT-B-32", "ViT-B-32-quickgelu", "ViT-B-16", "ViT-L-14", "ViT-L-14-336"),
  ],
)
def test_published_architectures_embed_as_open_clips(name, caplog):
  caplog.set_level(logging.ERROR)  # "no pretrained weights loaded"
  activation = "-quickgelu" if name.endswith("-quickgelu") else "-gelu"
  size = sizes.named(name.removesuffix("-quickgelu") + activation)
  model = parity.full_open_clip(name)
  state = arrays(model)
  found = architecture.facts(state, architecture.OPENAI)
  assert architecture.size_of(found, activation=size.activation) == size
  theirs = parity.theirs(model, size)
  params = layouts.from_openai(state, size)
  del model, state
  gc.collect()
  parity.assert_same(parity.ours(params, size), theirs)


def test_clip_of_transformers_embeds_alike_at_full_size():
  torch.manual_seed(0)
  model = peers.transformers.CLIPModel(peers.transformers.CLIPConfig()).eval()
  size = sizes.named("ViT-B-32")
  params = layouts.from_transformers(arrays(model), size)
  parity.assert_same(parity.ours(params, size), parity.theirs(model, size))


def list_mle(scored, reference):
  """The released code's, without its shuffle: no two similarities are equal here."""
  order = reference.argsort(dim=1, descending=True)
  p = scored.gather(1, order)
  p = p - p.max(dim=1, keepdim=True).values
  mass = p.exp().flip(1).cumsum(dim=1).flip(1)
  return (torch.log(mass + 1e-10) - p).sum(dim=1).mean()


def torch_loss(image, text, log_scale, *, rank_weight):
  """CLIP's loss and, times w, the released ranking terms (paper.md, released code)."""
  scale = log_scale.exp()
  cross, images, texts = (
    scale * a @ b.T for a, b in ((image, text), (image, image), (text, text))
  )
  label = torch.arange(len(image))
  entropy = torch.nn.functional.cross_entropy
  clip = (entropy(cross, label) + entropy(cross.T, label)) / 2
  both = lambda a, b: (list_mle(a, b) + list_mle(b, a)) / 32
  return clip + rank_weight * (both(images, texts) + both(cross, cross.T)) / len(image)


def torch_step(model, images, tokens, size, rank_weight):
  """The loss, and gradients by the names of the state dict; in float64.

  In float32 PyTorch's own gradient of a ResNet can be 2 % off where a ReLU's input is
  nearly 0.
  """
  model = model.double()
  pixels = torch.tensor((images / 255 - np.array(size.mean)) / np.array(size.std))
  encode = (
    lambda how, x: torch.nn.functional.normalize(how(x), dim=-1)  # as ours, by length
  )
  loss = torch_loss(
    encode(model.encode_image, pixels.permute(0, 3, 1, 2)),
    encode(model.encode_text, torch.tensor(tokens).long()),
    model.logit_scale,
    rank_weight=rank_weight,
  )
  loss.backward()
  gradients = {k: p.grad.numpy() for k, p in model.named_parameters()}
  # Statistics have none.
  rest = {k: np.zeros_like(x) for k, x in arrays(model).items() if k not in gradients}
  return loss.item(), gradients | rest


def our_step(params, images, tokens, size, name, rank_weight, groups):
  graph, _ = two_tower.abstract(size)
  mesh = sharding.make_mesh(1, 1, jax.devices()[:1])

  def loss(params):
    model = nnx.merge(graph, params)
    value, _ = step.global_loss(
      objectives.PRESETS[name],
      mesh,
      model.encode_image(images, groups),
      model.encode_text(tokens),
      log_scale=params["logit_scale"],
      bias=None,
      rank_weight=jnp.float32(rank_weight),
      tie_key=jax.random.key(0),
    )
    return value

  value, gradients = jax.jit(jax.value_and_grad(loss))(params)
  return float(value), layouts.to_openai(jax.device_get(gradients), size)


@functools.cache
def batch(size, count):
  """Pictures and captions that differ; `parity.inputs` has five."""
  rng = np.random.default_rng(1)
  side = size.image_size
  colours = rng.integers(0, 256, (count, 4, 4, 3))
  images = np.kron(colours, np.ones((1, side // 4, side // 4, 1))).astype(np.uint8)
  tokens = np.zeros((count, size.context_length), np.int32)
  for i, row in enumerate(tokens):
    end = 3 + i % (size.context_length - 3)
    row[:end] = rng.integers(1, size.text.vocab_size - 2, end)
    row[end] = size.text.vocab_size - 1
  return images, tokens


def assert_gradients_agree(ours, theirs):
  """Relative to each tensor's norm."""
  largest = max(np.linalg.norm(x) for x in theirs.values())
  for name, expected in theirs.items():
    if name.endswith(("running_mean", "running_var", "num_batches_tracked")):
      continue
    got, norm = ours[name], np.linalg.norm(expected)
    # The bias of keys moves every logit of a query alike: its gradient is zero, and
    # what is there is rounding.
    if name.endswith("in_proj_bias"):
      width = len(expected) // 3
      for keys in (got, expected):
        assert np.linalg.norm(keys[width : 2 * width]) < 1e-6 * largest, name
      got, expected = (np.delete(x, slice(width, 2 * width)) for x in (got, expected))
    elif name.endswith("attnpool.k_proj.bias"):
      assert max(np.linalg.norm(got), norm) < 1e-6 * largest, name
      continue
    assert norm > 0, name
    assert np.linalg.norm(got - expected) <= 1e-4 * norm, name


@pytest.mark.parametrize("name, rank_weight", [("clip", 0.0), ("rankclip_released", 2.0)])
@pytest.mark.parametrize("tower", ["vit", "resnet", "ViT-B-32-quickgelu"])
def test_one_step_has_the_loss_and_gradients_of_pytorch(name, rank_weight, tower, caplog):
  caplog.set_level(logging.ERROR)
  full = tower.startswith("ViT")
  if full:
    model, size = parity.full_open_clip(tower), sizes.named(tower)
  else:
    model, _ = parity.small_open_clip(tower, quick_gelu=True)
    found = architecture.facts(arrays(model), architecture.OPENAI)
    heads = {"vit": 3, "resnet": 8}[tower]
    size = architecture.size_of(found, vision_heads=heads, text_heads=2)
  params = crossed(model, size)
  images, tokens = batch(size, 4 if full else 12)
  model.train()  # a ResNet's batch normalisation goes by the batch
  expected, theirs = torch_step(model, images, tokens, size, rank_weight)
  value, ours = our_step(params, images, tokens, size, name, rank_weight, groups=1)
  assert value == pytest.approx(expected, rel=1e-5)
  assert_gradients_agree(ours, theirs)
