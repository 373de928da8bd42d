"""What of a picture, and of a caption, their similarity rests on, by its gradients.

The similarity explained is the logit: logit_scale times the cosine of both embeddings.

Transformers (vision and text): the relevance of Chefer, Gur and Wolf, "Generic
Attention-model Explainability for Interpreting Bi-Modal and Encoder-Decoder
Transformers", ICCV 2021, for self-attention. R begins as the identity, and every block,
from the first to the last, adds to it

  R <- R + Ā R,   Ā = E_heads[(∂logit/∂A ⊙ A)⁺],

where A are the attention probabilities. The row of the token that the embedding is read
at (class token, end of text) is the relevance of all others.

ResNets: Grad-CAM of Selvaraju et al., ICCV 2017 (eqs. 1 and 2), at the last stage before
the attention that pools: (Σ_c w_c F_c)⁺, where w_c is the mean of ∂logit/∂F_c over all
positions of channel c.

The towers are the models' own. Only the transformer (or the pool) is replaced, by one
that computes the same from the same parameters and adds to its probabilities (or
features) a nudge of zeros, whose gradient is the one above.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

from rankclip_jax.models import layers, resnet, two_tower
from rankclip_jax.models.sizes import ResNetSize, TwoTowerSize, ViTSize


class Maps(NamedTuple):
  """Of one picture: its embedding [dim], and a map for every text [texts, grid, grid]."""

  embedding: Array
  maps: Array


@functools.partial(jax.jit, static_argnums=0)
def of_image(
  size: TwoTowerSize,
  params: Mapping[str, Any],
  picture: UInt8[Array, "height width 3"],
  texts: Float[Array, "texts dim"],
) -> Maps:
  """Where a picture is like each of some texts; values are 0 or more, without a unit.

  Args:
    size: of the model; arithmetic is float32 whatever it says.
    params: of the model.
    picture: of the model's image size.
    texts: embeddings of length 1.

  Raises:
    ValueError: for an image tower that is neither a vision transformer nor a ResNet.
  """
  if isinstance(size.vision, ViTSize):
    return _of_vit(size, size.vision, params, picture, texts)
  if isinstance(size.vision, ResNetSize):
    return _of_resnet(size, size.vision, params, picture, texts)
  raise ValueError(
    "Maps are built for vision transformers (relevance by gradients) and ResNets "
    f"(Grad-CAM), got an image tower of {type(size.vision).__name__}."
  )


@functools.partial(jax.jit, static_argnums=0)
def of_text(
  size: TwoTowerSize,
  params: Mapping[str, Any],
  tokens: Int[Array, "captions length"],
  picture: Float[Array, "dim"],
) -> tuple[Float[Array, "captions dim"], Float[Array, "captions length"]]:
  """Embeddings of captions, and the relevance of their tokens for one picture.

  Args:
    size: of the model; arithmetic is float32 whatever it says.
    params: of the model.
    tokens: as the tokenizer gives them.
    picture: its embedding, of length 1.
  """
  captions, length = tokens.shape
  shape = (size.text.depth, captions, size.text.heads, length, length)

  def embed(nudge):
    model = _merged(size, params)
    opened = _replaced(model.text, "transformer", _OpenTransformer, nudge)
    return model.encode_text(tokens), opened.attention

  embeddings, pull_back, attention = jax.vjp(embed, jnp.zeros(shape), has_aux=True)
  along = jnp.exp(params["logit_scale"]) * picture
  (gradient,) = pull_back(jnp.broadcast_to(along[None], embeddings.shape))
  end = jnp.argmax(tokens, axis=-1)
  rows = _relevance(attention, gradient)
  return embeddings, jnp.take_along_axis(rows, end[:, None, None], axis=1)[:, 0]


def _of_vit(size: TwoTowerSize, vision: ViTSize, params, picture, texts) -> Maps:
  tokens = vision.grid**2 + 1

  def embed(nudge):
    model = _merged(size, params)
    opened = _replaced(model.vision, "transformer", _OpenTransformer, nudge)
    return model.encode_image(picture[None])[0], opened.attention

  nudge = jnp.zeros((vision.depth, 1, vision.heads, tokens, tokens))
  embedding, pull_back, attention = jax.vjp(embed, nudge, has_aux=True)

  def map_of(text):
    (gradient,) = pull_back(jnp.exp(params["logit_scale"]) * text)
    rows = _relevance(attention, gradient)[0]
    return rows[0, 1:].reshape(vision.grid, vision.grid)

  # One text after the other: gradients of all attention at once would fill memories.
  return Maps(embedding, jax.lax.map(map_of, texts))


def _of_resnet(size: TwoTowerSize, vision: ResNetSize, params, picture, texts) -> Maps:
  channels = resnet.EXPANSION * 8 * vision.width

  def embed(nudge):
    model = _merged(size, params)
    opened = _replaced(model.vision, "pool", _OpenPool, nudge)
    return model.encode_image(picture[None])[0], opened.features

  nudge = jnp.zeros((1, vision.grid, vision.grid, channels))
  embedding, pull_back, features = jax.vjp(embed, nudge, has_aux=True)

  def map_of(text):
    (gradient,) = pull_back(jnp.exp(params["logit_scale"]) * text)
    return jax.nn.relu(features[0] @ jnp.mean(gradient[0], axis=(0, 1)))

  return Maps(embedding, jax.lax.map(map_of, texts))


def _relevance(
  attention: Float[Array, "depth batch heads length length"],
  gradient: Float[Array, "depth batch heads length length"],
) -> Float[Array, "batch length length"]:
  """R after all blocks, in the paper's order."""
  blocks = jnp.mean(jax.nn.relu(gradient * attention), axis=2)
  begin = jnp.broadcast_to(jnp.eye(blocks.shape[-1])[None], blocks.shape[1:])
  return jax.lax.scan(lambda r, block: (r + block @ r, None), begin, blocks)[0]


class _OpenTransformer:
  """A `layers.Transformer` that shows its attention probabilities and has them nudged."""

  def __init__(self, transformer: layers.Transformer, nudge: Array):
    self._blocks = transformer.blocks
    self._nudge = nudge
    self.attention = jnp.zeros(())

  def __call__(self, x: Array) -> Array:
    graph, stacked = nnx.split(self._blocks)

    def step(x: Array, layer) -> tuple[Array, Array]:
      params, nudge = layer
      return _open_block(nnx.merge(graph, params), x, nudge)

    x, self.attention = jax.lax.scan(step, x, (stacked, self._nudge))
    return x


def _open_block(block: layers.Block, x: Array, nudge: Array) -> tuple[Array, Array]:
  """`layers.Block` with its attention written out; returns its probabilities as well."""
  attention = block.attention
  batch, length, width = x.shape
  qkv = attention.qkv(block.ln_attention(x))
  qkv = qkv.reshape(batch, length, 3, attention.heads, width // attention.heads)
  query, key, value = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
  logits = jnp.einsum("bqhd,bkhd->bhqk", query, key) * query.shape[-1] ** -0.5
  if attention.causal:
    seen = jnp.tril(jnp.ones((length, length), bool))
    logits = jnp.where(seen[None, None], logits, -jnp.inf)
  probabilities = jax.nn.softmax(logits, axis=-1)
  y = jnp.einsum("bhqk,bkhd->bqhd", probabilities + nudge, value)
  x = x + attention.out(y.reshape(x.shape))
  return x + block.mlp(block.ln_mlp(x)), probabilities


class _OpenPool:
  """A `resnet.AttentionPool` that shows the features it pools and has them nudged."""

  def __init__(self, pool: resnet.AttentionPool, nudge: Array):
    self._pool = pool
    self._nudge = nudge
    self.features = nudge

  def __call__(self, x: Array) -> Array:
    self.features = x
    return self._pool(x + self._nudge)


def _merged(size: TwoTowerSize, params: Mapping[str, Any]) -> two_tower.TwoTower:
  exact = dataclasses.replace(size, dtype="float32", remat="none")
  graph, _ = two_tower.abstract(exact, with_bias="logit_bias" in params)
  return nnx.merge(graph, params)


def _replaced(tower: nnx.Module, part: str, opened: type, nudge: Array) -> Any:
  """Puts the opened form of a part into its place, and returns it."""
  replacement = opened(getattr(tower, part), nudge)
  setattr(tower, part, replacement)
  return replacement
