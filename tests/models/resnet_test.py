"""Batch normalisation beside PyTorch's, alone and over devices; and how things begin."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import parity
import peers
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rankclip_jax.interop import layouts
from rankclip_jax.models import sizes, two_tower
from rankclip_jax.models.resnet import BatchNorm

torch = peers.torch
ROWS, SIDE, CHANNELS = 16, 3, 5


def activations(seed=0):
  rng = np.random.default_rng(seed)
  x = rng.normal(3.0, 2.0, (ROWS, SIDE, SIDE, CHANNELS))
  return (x * np.arange(1, CHANNELS + 1)).astype(np.float32)


def apply(x, groups, norm=None):
  norm = norm or BatchNorm(CHANNELS)
  return np.asarray(norm(jnp.asarray(x), groups)), norm


def test_training_and_evaluation_are_those_of_pytorch():
  theirs, ours = torch.nn.BatchNorm2d(CHANNELS), BatchNorm(CHANNELS)
  for seed in range(4):
    x = activations(seed)
    expected = theirs(torch.from_numpy(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    got, _ = apply(x, 1, ours)
    np.testing.assert_allclose(got, expected.detach(), atol=1e-5)
  np.testing.assert_allclose(ours.mean[...], theirs.running_mean, rtol=1e-5)
  np.testing.assert_allclose(ours.var[...], theirs.running_var, rtol=1e-5)
  theirs.eval()
  x = activations(9)
  before = ours.mean[...], ours.var[...]
  got, _ = apply(x, 0, ours)
  expected = theirs(torch.from_numpy(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
  np.testing.assert_allclose(got, expected.detach(), atol=1e-5)
  assert (before[0] == ours.mean[...]).all()
  assert (before[1] == ours.var[...]).all()


def test_groups_are_batches_of_their_own():
  x = activations()
  both, norm = apply(x, 2)
  (first, one), (second, two) = (apply(x[i : i + ROWS // 2], 1) for i in (0, ROWS // 2))
  np.testing.assert_allclose(both, np.concatenate([first, second]), atol=1e-6)
  assert np.abs(both - apply(x, 1)[0]).max() > 1e-3
  mean = (one.mean[...] + two.mean[...]) / 2
  np.testing.assert_allclose(norm.mean[...], mean, rtol=1e-6)


@pytest.mark.parametrize("groups, reduces", [(1, True), (8, False), (0, False)])
def test_over_devices_one_group_is_synchronised_and_one_each_is_local(groups, reduces):
  mesh = Mesh(jax.devices()[:8], ("data",))
  rows = NamedSharding(mesh, P("data"))
  graph, state = nnx.split(BatchNorm(CHANNELS))
  values = nnx.to_pure_dict(state)
  forward = jax.jit(
    lambda x: nnx.merge(graph, values)(x, groups), in_shardings=rows, out_shardings=rows
  )
  x = activations()
  spread = forward(jax.device_put(x, rows))
  np.testing.assert_allclose(spread, apply(x, groups)[0], atol=1e-5)
  hlo = forward.lower(x).compile().as_text()
  assert bool(re.search("all-reduce|all-gather|all-to-all", hlo)) == reduces


def test_running_statistics_after_a_step_are_pytorchs():
  """Of a whole tower: stacked blocks keep theirs apart."""
  model, _ = parity.small_open_clip("resnet")
  vision = sizes.ResNetSize(64, (1, 2, 1, 3), width=8, heads=8)
  text = sizes.TextSize(32, 2, 2, context_length=12)
  size = sizes.TwoTowerSize(vision, text, embed_dim=24, activation="gelu")
  arrays = lambda: {k: x.detach().numpy().copy() for k, x in model.state_dict().items()}
  params = layouts.from_openai(arrays(), size)
  graph, _ = two_tower.abstract(size)
  images, _ = parity.inputs(64, 12, 49408)
  ours = nnx.merge(graph, params)
  ours.encode_image(images, 1)
  after = layouts.to_openai(
    {**params, "vision": _merged(params, two_tower.statistics_of(ours))}, size
  )
  pixels = (images / 255 - np.array(size.mean)) / np.array(size.std)
  with torch.no_grad():
    model.train().encode_image(torch.tensor(pixels).float().permute(0, 3, 1, 2))
  theirs = arrays()
  names = [k for k in theirs if k.endswith(("running_mean", "running_var"))]
  assert len(names) == 2 * (3 + 3 * (1 + 2 + 1 + 3) + 4)
  for name in names:
    np.testing.assert_allclose(after[name], theirs[name], rtol=1e-4, atol=1e-5)


def _merged(params, statistics):
  flat = flatten_dict(params["vision"]) | flatten_dict(statistics["vision"])
  return unflatten_dict(flat)


def assert_std(x, std):
  """Within five standard errors of the estimate; the mean too."""
  x = np.asarray(x).ravel()
  assert x.std() == pytest.approx(std, rel=5 / np.sqrt(2 * x.size))
  assert abs(x.mean()) < 5 * std / np.sqrt(x.size)


def test_a_resnet_begins_as_open_clips():
  """Moments of CLIP's `initialize_parameters`, and of PyTorch's default for the rest."""
  torch.manual_seed(0)
  size = sizes.named("RN50")
  ours = layouts.to_openai(
    jax.device_get(two_tower.init(jax.random.key(0), size, initial_scale=1 / 0.07)), size
  )
  theirs = peers.open_clip.create_model("RN50-quickgelu", pretrained=None).state_dict()
  compared = 0
  for name, x in theirs.items():
    x, mine = x.numpy(), ours[name]
    if name.endswith("bias"):
      assert not mine.any(), name  # PyTorch draws those of linear layers, in ±0.04
    elif x.std() == 0:
      np.testing.assert_array_equal(mine, x, err_msg=name)
    elif x.size > 1000:
      error = 5 / np.sqrt(x.size)
      assert mine.std() == pytest.approx(x.std(), rel=error), name
      assert abs(mine.mean()) < error * x.std(), name
      compared += 1
  assert compared > 100
  gains = [k for k in ours if re.search(r"layer\d\.\d\.bn3\.weight", k)]
  assert len(gains) == 16
  assert not any(ours[k].any() for k in gains)
  assert ours["logit_scale"] == pytest.approx(np.log(1 / 0.07))


def test_a_vision_transformer_begins_by_clips_rule_for_its_blocks():
  """OpenAI's leave those of the image tower to PyTorch; ours have the text tower's."""
  size = sizes.TwoTowerSize(
    sizes.ViTSize(64, 8, width=128, depth=8, heads=2),
    sizes.TextSize(128, 8, heads=2, vocab_size=1000),
    embed_dim=64,
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
      (params[tower]["projection"]["kernel"], 128**-0.5),
    ):
      assert_std(kernel, std)
      # Stacked blocks are drawn independently of each other.
      assert not np.array_equal(kernel[0], kernel[1])
  assert_std(params["text"]["tokens"]["embedding"], 0.02)
  assert_std(params["text"]["positional_embedding"], 0.01)
  assert_std(params["vision"]["positional_embedding"], 128**-0.5)
