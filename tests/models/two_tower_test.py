"""The towers: against transformers' CLIP with the same weights, and by property."""

import dataclasses
import functools
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rankclip_jax.models import two_tower

# The peers are pinned for Python 3.11, where a missing one is an error.
if sys.version_info >= (3, 12):
  pytest.importorskip("transformers")

with warnings.catch_warnings():
  warnings.simplefilter("ignore")  # of imports within transformers
  import torch
  import transformers

SIZE = dataclasses.replace(two_tower.SIZES["nano"], vocab_size=100, vision_depth=3)


@functools.cache
def model(size=SIZE, seed=0):
  graph, _ = two_tower.abstract(size)
  return graph, two_tower.init(jax.random.key(seed), size, initial_scale=1 / 0.07)


def inputs(count=3, seed=0):
  rng = np.random.default_rng(seed)
  images = rng.integers(0, 256, (count, SIZE.image_size, SIZE.image_size, 3), np.uint8)
  tokens = rng.integers(1, SIZE.vocab_size - 1, (count, SIZE.context_length))
  for row, end in enumerate(rng.integers(3, SIZE.context_length, count)):
    tokens[row, end] = SIZE.vocab_size - 1
    tokens[row, end + 1 :] = 0
  return images, tokens.astype(np.int32)


def encode(size=SIZE, images=None, tokens=None):
  graph, params = model(size)
  tower = nnx.merge(graph, params)
  return (
    None if images is None else np.asarray(tower.encode_image(images)),
    None if tokens is None else np.asarray(tower.encode_text(tokens)),
  )


def as_torch(params, size) -> dict[str, torch.Tensor]:
  """Our parameters under the names of transformers' CLIPModel."""
  out = {"logit_scale": params["logit_scale"]}
  vision, text = params["vision"], params["text"]
  patches = vision["patches"]["kernel"].reshape(size.patch_size, size.patch_size, 3, -1)
  out["vision_model.embeddings.patch_embedding.weight"] = patches.transpose(3, 2, 0, 1)
  out["vision_model.embeddings.class_embedding"] = vision["class_embedding"]
  positions = "embeddings.position_embedding.weight"
  out[f"vision_model.{positions}"] = vision["positional_embedding"]
  out[f"text_model.{positions}"] = text["positional_embedding"]
  out["text_model.embeddings.token_embedding.weight"] = text["tokens"]["embedding"]
  norms = [
    ("vision_model.pre_layrnorm", vision["ln_pre"]),
    ("vision_model.post_layernorm", vision["ln_post"]),
    ("text_model.final_layer_norm", text["ln_final"]),
  ]
  for tower, tree in (("vision", vision), ("text", text)):
    depth = getattr(size, f"{tower}_depth")
    out[f"{'visual' if tower == 'vision' else 'text'}_projection.weight"] = tree[
      "projection"
    ]["kernel"].T
    for layer in range(depth):
      block = jax.tree.map(lambda x, i=layer: x[i], tree["transformer"]["blocks"])
      name = f"{tower}_model.encoder.layers.{layer}"
      attention = block["attention"]
      kernels = np.split(attention["qkv"]["kernel"], 3, axis=1)
      biases = np.split(attention["qkv"]["bias"], 3)
      for part, kernel, bias in zip("qkv", kernels, biases, strict=True):
        out[f"{name}.self_attn.{part}_proj.weight"] = kernel.T
        out[f"{name}.self_attn.{part}_proj.bias"] = bias
      for ours, theirs in (
        (attention["out"], "self_attn.out_proj"),
        (block["mlp"]["up"], "mlp.fc1"),
        (block["mlp"]["down"], "mlp.fc2"),
      ):
        out[f"{name}.{theirs}.weight"] = ours["kernel"].T
        out[f"{name}.{theirs}.bias"] = ours["bias"]
      norms += [
        (f"{name}.layer_norm1", block["ln_attention"]),
        (f"{name}.layer_norm2", block["ln_mlp"]),
      ]
  for name, norm in norms:
    out[f"{name}.weight"], out[f"{name}.bias"] = norm["scale"], norm["bias"]
  return {k: torch.from_numpy(np.array(v)) for k, v in out.items()}


def clip_of_transformers(size, activation):
  tower = lambda kind: dict(
    hidden_size=getattr(size, f"{kind}_width"),
    intermediate_size=4 * getattr(size, f"{kind}_width"),
    num_hidden_layers=getattr(size, f"{kind}_depth"),
    num_attention_heads=getattr(size, f"{kind}_heads"),
    hidden_act=activation,
  )
  text = dict(
    vocab_size=size.vocab_size,
    max_position_embeddings=size.context_length,
    eos_token_id=size.vocab_size - 1,
    bos_token_id=1,
    pad_token_id=0,
  )
  vision = dict(image_size=size.image_size, patch_size=size.patch_size)
  return transformers.CLIPModel(
    transformers.CLIPConfig(
      text_config=tower("text") | text,
      vision_config=tower("vision") | vision,
      projection_dim=size.embed_dim,
    )
  ).eval()


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_embeddings_equal_those_of_transformers(activation):
  size = dataclasses.replace(SIZE, activation=activation)
  _, params = model(size)
  # Random gains and biases, so that a forgotten one shows.
  keys = iter(jax.random.split(jax.random.key(9), 999))
  params = jax.tree.map(
    lambda x: x + 0.1 * jax.random.normal(next(keys), x.shape), params
  )
  peer = clip_of_transformers(size, activation)
  missing, unexpected = peer.load_state_dict(as_torch(params, size), strict=False)
  assert not unexpected
  assert all("position_ids" in name for name in missing)

  images, tokens = inputs()
  tower = nnx.merge(model(size)[0], params)
  pixels = (images / 255.0 - np.array(size.mean)) / np.array(size.std)
  pixels = torch.from_numpy(pixels.transpose(0, 3, 1, 2).astype(np.float32))
  with torch.no_grad():
    theirs = peer(
      input_ids=torch.from_numpy(tokens).long(),
      pixel_values=pixels,
      attention_mask=torch.ones(tokens.shape, dtype=torch.long),
    )
  np.testing.assert_allclose(
    tower.encode_image(images), theirs.image_embeds.numpy(), atol=1e-5, rtol=1e-5
  )
  np.testing.assert_allclose(
    tower.encode_text(tokens), theirs.text_embeds.numpy(), atol=1e-5, rtol=1e-5
  )


def test_embeddings_are_unit_float32_whatever_the_arithmetic():
  images, tokens = inputs()
  half = dataclasses.replace(SIZE, dtype="bfloat16")
  for x, full in zip(
    encode(half, images, tokens), encode(SIZE, images, tokens), strict=True
  ):
    assert x is not None
    assert full is not None
    assert x.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(x, axis=-1), 1, rtol=1e-6)
    np.testing.assert_allclose(np.sum(x * full, -1), 1, atol=1e-2)
    assert not np.array_equal(x, full)


def test_text_is_causal_and_padding_does_not_matter():
  _, tokens = inputs()
  tokens[:, 5:] = 0
  tokens[:, 5] = SIZE.vocab_size - 1
  padded = tokens.copy()
  padded[:, 6:] = 7
  changed = tokens.copy()
  changed[:, 2] = (changed[:, 2] % 50) + 20
  _, plain = encode(tokens=tokens)
  np.testing.assert_array_equal(plain, encode(tokens=padded)[1])
  assert np.abs(plain - encode(tokens=changed)[1]).max() > 1e-3


def test_initial_spread_follows_clip():
  """Standard deviations of `initialize_parameters` in OpenAI's model.py."""
  size = dataclasses.replace(
    SIZE, vision_width=128, text_width=128, vision_depth=8, text_depth=8, vocab_size=1000
  )
  params = two_tower.init(jax.random.key(0), size, initial_scale=1 / 0.07)
  for tower in ("vision", "text"):
    blocks = params[tower]["transformer"]["blocks"]
    back = 128**-0.5 * 16**-0.5
    for kernel, std in (
      (blocks["attention"]["qkv"]["kernel"], 128**-0.5),
      (blocks["attention"]["out"]["kernel"], back),
      (blocks["mlp"]["up"]["kernel"], 256**-0.5),
      (blocks["mlp"]["down"]["kernel"], back),
    ):
      assert float(jnp.std(kernel)) == pytest.approx(std, rel=0.03)
      # Stacked blocks are drawn independently of each other.
      assert not np.array_equal(kernel[0], kernel[1])
  assert float(jnp.std(params["text"]["tokens"]["embedding"])) == pytest.approx(
    0.02, rel=0.03
  )
  assert float(jnp.exp(params["logit_scale"])) == pytest.approx(1 / 0.07)


def test_an_all_zero_feature_has_a_finite_gradient():
  f = lambda x: jnp.sum(two_tower._l2_normalise(x))
  assert np.all(np.isfinite(jax.grad(f)(jnp.zeros((2, 4)))))


def test_named_sizes():
  assert two_tower.named_size("ViT-B/32") == two_tower.named_size("ViT-B-32")
  assert two_tower.named_size("ViT-B-16").patch_size == 16
  assert two_tower.named_size("tiny", remat=None, dtype="bfloat16").dtype == "bfloat16"
  with pytest.raises(
    ValueError, match=r"Unknown model 'ViT-B-33'.*Did you mean ViT-B-32\?"
  ):
    two_tower.named_size("ViT-B-33")


def test_vit_b_32_is_as_large_as_openais():
  _, shapes = two_tower.abstract(two_tower.SIZES["ViT-B-32"])
  count = sum(x.size for x in jax.tree.leaves(shapes))
  assert count == 151_277_313  # what open_clip and OpenAI report for ViT-B/32


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"image_size": 50}, "image_size 50 must be a multiple of patch_size 8; .* 48"),
    ({"text_width": 33}, "text_width 33 must be a multiple of its 2 heads"),
    ({"dtype": "int8"}, "dtype must be one of float32, .*, got 'int8'"),
  ],
)
def test_sizes_that_do_not_fit_are_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(SIZE, **changes)
