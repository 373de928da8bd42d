"""The released protocol against PyTorch's AdamW, and on every number of devices."""

import jax
import numpy as np
import pytest

from rankclip_jax import sharding
from rankclip_jax.probes import released

SETTING = dict(classes=4, seed=5, epochs=6, batch_size=16)


def examples(count=61, dim=6, classes=4, seed=0):
  rng = np.random.default_rng(seed)
  labels = rng.permutation(np.arange(count) % classes)
  features = np.eye(classes, dim)[labels] + 0.5 * rng.standard_normal((count, dim))
  return features.astype(np.float32), labels


def torch_or_skip():
  """PyTorch is pinned for Python 3.11 only."""
  return pytest.importorskip("torch", reason="requirements-peers.txt")


def epochs_of(features, labels, *, seed, epochs, batch_size, classes):
  """The initial layer, and the batches of every epoch, as `released.fit` draws them."""
  rng = np.random.default_rng(seed)
  initial = released._initial(rng, classes, features.shape[1])
  epochs_of_batches = []
  for _ in range(epochs):
    order = rng.permutation(len(features))
    cuts = range(batch_size, len(features), batch_size)
    epochs_of_batches.append(
      list(
        zip(np.split(features[order], cuts), np.split(labels[order], cuts), strict=True)
      )
    )
  return initial, epochs_of_batches


def trained_by_torch(torch, features, labels, weight_decay, setting):
  """A loop as CyCLIP describes it: decay on weights only, cosine by step to zero."""
  initial, epochs = epochs_of(features, labels, **setting)
  layer = torch.nn.Linear(features.shape[1], setting["classes"])
  with torch.no_grad():
    layer.weight.copy_(torch.from_numpy(initial.weights))
    layer.bias.copy_(torch.from_numpy(initial.bias))
  groups = [
    {"params": [layer.weight], "weight_decay": weight_decay},
    {"params": [layer.bias], "weight_decay": 0.0},
  ]
  optimizer = torch.optim.AdamW(groups, lr=released.LEARNING_RATE)
  total = sum(len(batches) for batches in epochs)
  schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)
  means = []
  for batches in epochs:
    summed = 0.0
    for x, y in batches:
      loss = torch.nn.functional.cross_entropy(
        layer(torch.from_numpy(x)), torch.from_numpy(y)
      )
      optimizer.zero_grad()
      loss.backward()
      optimizer.step()
      schedule.step()
      summed += loss.item() * len(x)
    means.append(summed / len(features))
  return layer.weight.detach().numpy(), layer.bias.detach().numpy(), means


@pytest.mark.parametrize("weight_decay", [released.WEIGHT_DECAY, 3.0])
def test_is_pytorchs_adamw(weight_decay):
  torch = torch_or_skip()
  features, labels = examples()
  probe = released.fit(features, labels, **SETTING, weight_decay=weight_decay)
  weights, bias, losses = trained_by_torch(torch, features, labels, weight_decay, SETTING)
  np.testing.assert_allclose(probe.weights, weights, atol=1e-5)
  np.testing.assert_allclose(probe.bias, bias, atol=1e-5)
  np.testing.assert_allclose(probe.losses, losses, rtol=1e-5)
  assert probe.final_loss == probe.losses[-1]
  assert probe.strength is None
  assert probe.converged is None


def test_is_clip_benchmarks_training_without_decay(monkeypatch):
  torch = torch_or_skip()
  pytest.importorskip("clip_benchmark", reason="requirements-peers.txt")
  from clip_benchmark.metrics import linear_probe

  features, labels = examples()
  setting = {**SETTING, "epochs": 1}
  initial, (batches,) = epochs_of(features, labels, **setting)
  # Their loop is for GPUs, and draws the layer by PyTorch's generator.
  for owner in (torch.Tensor, torch.nn.Module):
    monkeypatch.setattr(owner, "cuda", lambda self: self)
  make = torch.nn.Linear

  def ours(dim, classes):
    layer = make(dim, classes)
    layer.weight.data = torch.from_numpy(initial.weights.copy())
    layer.bias.data = torch.from_numpy(initial.bias.copy())
    return layer

  monkeypatch.setattr(torch.nn, "Linear", ours)
  loader = [tuple(map(torch.from_numpy, batch)) for batch in batches]
  theirs = linear_probe.train(
    loader, 6, 4, weight_decay=0, lr=5e-3, epochs=1, amp=False, device="cpu", seed=0
  )
  probe = released.fit(features, labels, **setting, weight_decay=0.0)
  np.testing.assert_allclose(
    probe.weights, theirs.module.weight.detach().numpy(), atol=1e-6
  )
  np.testing.assert_allclose(probe.bias, theirs.module.bias.detach().numpy(), atol=1e-6)


@pytest.mark.parametrize("batch_size", [61, 100, 13])
def test_the_number_of_devices_does_not_matter(batch_size):
  features, labels = examples()
  setting = {**SETTING, "batch_size": batch_size}
  of = lambda devices: released.fit(
    features, labels, **setting, mesh=sharding.make_mesh(devices=jax.devices()[:devices])
  )
  one = of(1)
  for devices in (2, 4, 8):
    more = of(devices)
    np.testing.assert_allclose(more.weights, one.weights, atol=1e-6)
    np.testing.assert_allclose(more.bias, one.bias, atol=1e-6)
    np.testing.assert_allclose(more.losses, one.losses, rtol=1e-6)


def test_learns_and_repeats_by_seed():
  features, labels = examples()
  probe = released.fit(features, labels, classes=4, batch_size=8)
  assert probe.losses.shape == (released.EPOCHS,)
  assert probe.losses[-1] < 0.7 * probe.losses[0]
  predictions = (features @ probe.weights.T + probe.bias).argmax(axis=1)
  assert np.mean(predictions == labels) > 0.8
  again = released.fit(features, labels, classes=4, batch_size=8)
  np.testing.assert_array_equal(probe.weights, again.weights)
  other = released.fit(features, labels, classes=4, batch_size=8, seed=1)
  assert (probe.weights != other.weights).all()


def test_defaults_are_those_of_the_released_code():
  assert (released.EPOCHS, released.LEARNING_RATE) == (32, 5e-3)
  assert (released.WEIGHT_DECAY, released.BATCH_SIZE) == (0.01, 128)


def test_initial_layer_is_pytorchs():
  initial = released._initial(np.random.default_rng(0), 50, 16)
  for values in initial:
    assert values.dtype == np.float32
    assert np.abs(values).max() <= 1 / 4
    assert np.abs(values).max() > 0.9 / 4
    assert abs(values.mean()) < 0.03


@pytest.mark.parametrize(
  "arguments, message",
  [
    ({"epochs": 0}, "at least 1 epoch and 1 example a step, got epochs=0"),
    ({"batch_size": 0}, "got epochs=32 and batch_size=0"),
    ({"classes": 3}, "classes from 0 to 2, but 15 of 61 are not"),
  ],
)
def test_refuses(arguments, message):
  with pytest.raises(ValueError, match=message):
    released.fit(*examples(), **{"classes": 4, **arguments})


def test_refuses_features_that_are_not_finite():
  features, labels = examples()
  features[9, 0] = -np.inf
  with pytest.raises(ValueError, match="1 of 61 rows .* first is row 9"):
    released.fit(features, labels, classes=4)
