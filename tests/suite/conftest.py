"""Small evaluation sets, a model for them, and a config that brings both together."""

import shutil

import jax
import jax.numpy as jnp
import pytest

from rankclip_jax import checkpoint, config, interop, plan, state
from rankclip_jax.data.benchmarks import prompts, table
from tests.data.benchmarks import sets
from tests.data.pictures import encoded
from tests.inference_test import CARD, SIZE, drawn
from tests.suite.runs import CAPTIONS, CIFAR, PICTURES, STEPS


@pytest.fixture(scope="session")
def data(tmp_path_factory):
  """CIFAR-10 by TFDS, Flickr30K and STL-10 in tars."""
  root = tmp_path_factory.mktemp("data")
  # Grey pictures that rise in brightness with their number, and so with their class.
  rising = [CIFAR[i // 9] for i in range(27)]
  sets.prepare_labels(root / "tfds", "cifar10", CIFAR, {"train": rising, "test": rising})
  members = sets.captioned(*CAPTIONS)
  members |= {f"s{i:07}.png": encoded(x, "PNG") for i, x in enumerate(PICTURES)}
  sets.write_tars(root / "folders" / "wds_flickr30k", [members], kind="retrieval")
  stl10 = prompts.classes_of(table.find("stl10")).names
  sets.write_tars(
    root / "folders" / "wds_stl10",
    [sets.labelled(0, 3, 9), sets.labelled(1, 1, start=3)],
    names=stl10,
    templates=["a photo of a {c}."],
  )
  return root


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
  folder = tmp_path_factory.mktemp("export") / "nano"
  interop.write_open_clip(folder, drawn(), SIZE, CARD)
  return folder


@pytest.fixture
def cfg(data, exported):
  return config.Config(
    mode="eval",
    model=config.ModelConfig(name="loaded", dtype="float32"),
    init=config.InitConfig(weights=str(exported)),
    data=config.DataConfig(tfds_dir=str(data / "tfds")),
    eval=config.EvalConfig(
      batch_size=16,
      datasets="cifar10,flickr30k,stl10,imagenet-a",
      folder_dir=str(data / "folders"),
    ),
  )


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
  """A workdir with checkpoints of other weights at each of `STEPS`."""
  workdir = tmp_path_factory.mktemp("trained")
  cfg = config.Config(
    model=config.ModelConfig(name="nano", dtype="float32"),
    objective=config.ObjectiveConfig(name="clip"),
  )
  p = plan.make(cfg)
  facts = plan.facts_of(cfg, p)
  saved = checkpoint.Checkpoints(workdir, keep_last=len(STEPS))
  first = drawn()
  for step in STEPS:
    # Nothing else is read here; a factor would be undone by normalisation.
    params = jax.tree.map(lambda x, step=step: jnp.asarray(x + step / 100), first)
    unused = {"nothing": jnp.zeros(1)}
    now = state.TrainState(jnp.int32(step), params, unused, jax.random.PRNGKey(0))
    saved.save(now, step, facts)
  saved.close()
  return workdir


@pytest.fixture
def trained(checkpoints, tmp_path):
  """The same, to be written to."""
  return shutil.copytree(checkpoints, tmp_path / "run")
