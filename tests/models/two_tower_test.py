"""The two towers by property; `parity_test` has them beside their peers."""

import dataclasses
import functools
import logging
import types

import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest
from flax import nnx

from rankclip_jax.models import sizes, two_tower

torch = peers.torch
SIZE = sizes.named("nano", vocab_size=100)


@functools.cache
def model(size=SIZE, seed=0):
  graph, _ = two_tower.abstract(size)
  return graph, two_tower.init(jax.random.key(seed), size, initial_scale=1 / 0.07)


def inputs(count=3, seed=0):
  rng = np.random.default_rng(seed)
  images = rng.integers(0, 256, (count, SIZE.image_size, SIZE.image_size, 3), np.uint8)
  tokens = rng.integers(1, SIZE.text.vocab_size - 1, (count, SIZE.context_length))
  for row, end in enumerate(rng.integers(3, SIZE.context_length, count)):
    tokens[row, end] = SIZE.text.vocab_size - 1
    tokens[row, end + 1 :] = 0
  return images, tokens.astype(np.int32)


def encode(size=SIZE, images=None, tokens=None):
  graph, params = model(size)
  tower = nnx.merge(graph, params)
  return (
    None if images is None else np.asarray(tower.encode_image(images)),
    None if tokens is None else np.asarray(tower.encode_text(tokens)),
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
  tokens[:, 5] = SIZE.text.vocab_size - 1
  padded = tokens.copy()
  padded[:, 6:] = 7
  changed = tokens.copy()
  changed[:, 2] = (changed[:, 2] % 50) + 20
  _, plain = encode(tokens=tokens)
  np.testing.assert_array_equal(plain, encode(tokens=padded)[1])
  assert np.abs(plain - encode(tokens=changed)[1]).max() > 1e-3


def test_an_all_zero_feature_has_a_finite_gradient():
  f = lambda x: jnp.sum(two_tower._l2_normalise(x))
  assert np.all(np.isfinite(jax.grad(f)(jnp.zeros((2, 4)))))


def test_vit_b_32_is_as_large_as_openais():
  _, shapes = two_tower.abstract(sizes.SIZES["ViT-B-32"])
  count = sum(x.size for x in jax.tree.leaves(shapes))
  assert count == 151_277_313  # what open_clip and OpenAI report for ViT-B/32


@pytest.mark.parametrize("old, new", [(7, 12), (24, 16), (14, 7), (2, 9)])
def test_positions_are_interpolated_as_in_open_clip(old, new):
  positions = np.random.default_rng(0).normal(size=(1 + old * old, 6)).astype(np.float32)
  state = {"visual.positional_embedding": torch.from_numpy(positions)}
  grid = types.SimpleNamespace(grid_size=(new, new))
  peers.open_clip.model.resize_pos_embed(state, types.SimpleNamespace(visual=grid))
  ours = two_tower.resize_positions(positions, new)
  np.testing.assert_allclose(ours, state["visual.positional_embedding"], atol=1e-5)


@pytest.mark.parametrize("name", ["nano", "nano-resnet"])
def test_another_resolution_changes_positions_alone_and_is_logged(name, caplog):
  small = sizes.named(name)
  large = sizes.named(name, image_size=2 * small.image_size)
  params = two_tower.init(jax.random.key(0), small, initial_scale=1.0)
  with caplog.at_level(logging.INFO):
    resized = two_tower.at_resolution(params, large)
  grid, wanted = small.vision.grid, large.vision.grid
  assert f"from {grid} x {grid} to {wanted} x {wanted}" in caplog.text
  expected = jax.tree.map(jnp.shape, two_tower.abstract(large)[1])
  assert jax.tree.map(jnp.shape, resized) == expected
  same = jax.tree.map(lambda a, b: a is b, params, two_tower.at_resolution(params, small))
  assert all(jax.tree.leaves(same))
  images = np.zeros((2, large.image_size, large.image_size, 3), np.uint8)
  embedded = nnx.merge(two_tower.abstract(large)[0], resized).encode_image(images)
  assert np.all(np.isfinite(embedded))


def test_shorter_captions_mean_the_same_and_longer_ones_are_refused():
  short = dataclasses.replace(SIZE, text=dataclasses.replace(SIZE.text, context_length=8))
  _, params = model()
  _, tokens = inputs()
  tokens[:, 6], tokens[:, 7:] = SIZE.text.vocab_size - 1, 0
  cut = nnx.merge(two_tower.abstract(short)[0], two_tower.at_length(params, short))
  np.testing.assert_allclose(
    cut.encode_text(tokens[:, :8]), encode(tokens=tokens)[1], atol=1e-6
  )
  with pytest.raises(ValueError, match=r"trained on 8 tokens .*context_length to 8"):
    two_tower.at_length(two_tower.at_length(params, short), SIZE)
