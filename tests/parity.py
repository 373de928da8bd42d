"""Models of the peers with random weights, and what they and ours make of one input."""

import dataclasses
import functools

import jax
import numpy as np
import peers
from flax import nnx

from rankclip_jax.models import two_tower

torch = peers.torch


@dataclasses.dataclass(frozen=True)
class Outputs:
  """L2-normalised embeddings, and the logits of pictures against captions."""

  images: np.ndarray
  texts: np.ndarray
  logits: np.ndarray


TEXT = {"context_length": 12, "width": 32, "heads": 2, "layers": 2}
VIT = {"image_size": 32, "patch_size": 8, "width": 48, "layers": 3, "head_width": 16}
RESNET = {"image_size": 64, "layers": [1, 2, 1, 3], "width": 8, "head_width": 32}


def randomise(model):
  """Leaves nothing at a value, such as 0 or 1, that would hide a misplaced tensor."""
  generator = torch.Generator().manual_seed(0)
  draw = lambda x: torch.randn(x.shape, generator=generator)
  with torch.no_grad():
    for name, x in model.state_dict().items():
      if name.endswith("running_var"):
        x.copy_(0.1 * draw(x).abs() + 0.1)  # small: pictures should make a difference
      elif x.ndim == 1 and x.is_floating_point():
        # Scales and statistics near 1, all else near 0.
        near = 1.0 if name.endswith("weight") else 0.0
        x.copy_(near + 0.2 * draw(x))
      elif name == "positional_embedding" or "position_embedding" in name:
        x.copy_(0.5 * draw(x))
  return model.eval()


def open_clip_config(tower=VIT, *, quick_gelu=False, bias=None, **extra):
  config = {"embed_dim": 24, "quick_gelu": quick_gelu, **extra}
  config |= {"vision_cfg": dict(tower), "text_cfg": dict(TEXT)}
  if bias is not None:
    config["init_logit_bias"] = bias
  return config


def small_open_clip(tower="vit", **options):
  config = open_clip_config({"vit": VIT, "resnet": RESNET}[tower], **options)
  arguments = dict(config)
  custom = arguments.pop("custom_text", False)
  kind = peers.open_clip.CustomTextCLIP if custom else peers.open_clip.CLIP
  torch.manual_seed(0)
  return randomise(kind(**arguments)), config


def small_transformers(activation="quick_gelu"):
  shared = {"hidden_act": activation, "num_hidden_layers": 3, "projection_dim": 24}
  config = peers.transformers.CLIPConfig(
    projection_dim=24,
    text_config=shared
    | {
      "hidden_size": 32,
      "intermediate_size": 128,
      "num_attention_heads": 2,
      "max_position_embeddings": 12,
    },
    vision_config=shared
    | {
      "hidden_size": 48,
      "intermediate_size": 192,
      "num_attention_heads": 3,
      "image_size": 32,
      "patch_size": 8,
    },
  )
  torch.manual_seed(0)
  return randomise(peers.transformers.CLIPModel(config))


@functools.cache
def inputs(side: int, length: int, vocabulary: int) -> tuple[np.ndarray, np.ndarray]:
  """Five pictures and captions; every caption ends in the last id, before zeros."""
  rng = np.random.default_rng(0)
  # Patches of colour: the features of mere noise are all the same.
  colours = rng.integers(0, 256, (5, 4, 4, 3))
  images = np.kron(colours, np.ones((1, side // 4, side // 4, 1))).astype(np.uint8)
  tokens = np.zeros((5, length), np.int32)
  for i, row in enumerate(tokens):
    end = length - 1 - i
    row[1:end] = rng.integers(1, vocabulary - 2, end - 1)
    row[0], row[end] = vocabulary - 2, vocabulary - 1
  return images, tokens


def ours(params, size) -> Outputs:
  graph, _ = two_tower.abstract(size, with_bias="logit_bias" in params)

  @jax.jit
  def embed(params, images, tokens):
    model = nnx.merge(graph, params)
    return model.encode_image(images), model.encode_text(tokens)

  images, tokens = inputs(size.image_size, size.context_length, size.text.vocab_size)
  images, texts = embed(params, images, tokens)
  bias = params.get("logit_bias", 0.0)
  return outputs(images, texts, params["logit_scale"], bias)


def theirs(model, size) -> Outputs:
  images, tokens = inputs(size.image_size, size.context_length, size.text.vocab_size)
  mean, std = np.float32(size.mean), np.float32(size.std)
  pixels = torch.tensor((images.astype(np.float32) / 255 - mean) / std)
  pixels, ids = pixels.permute(0, 3, 1, 2), torch.tensor(tokens).long()
  with torch.no_grad():
    if hasattr(model, "visual"):
      images, texts = model.encode_image(pixels), model.encode_text(ids)
      logits = model.get_logits(pixels, ids)[0].numpy()
    else:
      both = model(input_ids=ids, pixel_values=pixels)
      images, texts, logits = both.image_embeds, both.text_embeds, both.logits_per_image
      logits = logits.numpy()
  return dataclasses.replace(outputs(images.numpy(), texts.numpy(), 0, 0), logits=logits)


def outputs(images, texts, log_scale, bias) -> Outputs:
  unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)
  images, texts = unit(np.float64(images)), unit(np.float64(texts))
  return Outputs(images, texts, np.exp(np.float64(log_scale)) * images @ texts.T + bias)


def assert_same(ours: Outputs, theirs: Outputs) -> None:
  for a, b in ((ours.images, theirs.images), (ours.texts, theirs.texts)):
    # Inputs must tell models apart: no two rows may be alike.
    assert np.max(np.abs(b @ b.T - np.eye(len(b)))) < 0.999
    assert np.max(np.linalg.norm(a - b, axis=-1)) < 1e-5  # relative: they have length 1
    assert np.max(1 - np.sum(a * b, axis=-1)) < 1e-6
  np.testing.assert_allclose(ours.logits, theirs.logits, atol=1e-4, rtol=0)


def full_open_clip(name):
  """open_clip's model of this name, with statistics that keep activations near 1."""
  torch.manual_seed(0)
  model = peers.open_clip.create_model(name, pretrained=None)
  generator = torch.Generator().manual_seed(0)
  with torch.no_grad():
    for key, x in model.named_parameters():
      if x.ndim == 1 and "class_embedding" not in key:
        near = 1.0 if key.endswith("weight") else 0.0
        # The last gain of a bottleneck is small, as in training: with gains of 1 float32
        # itself, PyTorch's or ours, is 1e-4 away from float64 after 33 of them.
        near, spread = (
          (0.2, 0.05) if ".layer" in key and key.endswith("bn3.weight") else (near, 0.2)
        )
        x.copy_(near + spread * torch.randn(x.shape, generator=generator))
  batch_norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
  if batch_norms:
    for norm in batch_norms:
      norm.momentum = 1.0  # the running statistics become this batch's
    side = model.visual.image_size
    side = side if isinstance(side, int) else side[0]
    images, _ = inputs(side, 77, 49408)
    with torch.no_grad():
      model.train().encode_image(torch.tensor(images).permute(0, 3, 1, 2) / 64 - 2)
  return model.eval()
