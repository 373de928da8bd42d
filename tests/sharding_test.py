"""Meshes and the rule that says which device holds what."""

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from rankclip_jax import sharding


@pytest.mark.parametrize(
  "data, fsdp, shape", [(-1, 1, (8, 1)), (-1, 4, (2, 4)), (1, -1, (1, 8)), (4, 2, (4, 2))]
)
def test_mesh_takes_all_devices(data, fsdp, shape):
  mesh = sharding.make_mesh(data, fsdp)
  assert mesh.axis_names == ("data", "fsdp")
  assert mesh.devices.shape == shape


@pytest.mark.parametrize(
  "data, fsdp", [(3, 1), (-1, 3), (-1, -1), (2, 2), (0, 8), (-2, -4)]
)
def test_mesh_that_does_not_fit_is_refused(data, fsdp):
  with pytest.raises(ValueError, match=r"does not make the 8 devices.*\[1, 2, 4, 8\]"):
    sharding.make_mesh(data, fsdp)


@pytest.mark.parametrize(
  "batch, nearest", [(3, 8), (9, 8), (15, 16), (12, 8), (257, 256)]
)
def test_batch_that_does_not_divide_names_both_numbers_and_the_nearest(batch, nearest):
  mesh = sharding.make_mesh()
  with pytest.raises(
    ValueError, match=rf"{batch} .* 8 devices; the nearest .* {nearest}\."
  ):
    sharding.check_batch(batch, mesh)
  sharding.check_batch(nearest, mesh)


@pytest.mark.parametrize(
  "batch, micro_batches, pieces, nearest",
  [(96, 5, 4, 80), (32, 3, 2, 24), (64, 9, 8, 72), (8, 2, 1, 16), (504, 64, 63, 512)],
)
def test_micro_batches_that_do_not_divide_name_the_nearest_that_fit(
  batch, micro_batches, pieces, nearest
):
  mesh = sharding.make_mesh()
  with pytest.raises(
    ValueError,
    match=rf"{batch // 8} rows, which optim.micro_batches={micro_batches} does not .*"
    rf"micro_batches={pieces} or data.batch_size={nearest}\.",
  ):
    sharding.check_batch(batch, mesh, micro_batches=micro_batches)
  sharding.check_batch(batch, mesh, micro_batches=pieces)
  sharding.check_batch(nearest, mesh, micro_batches=micro_batches)


@given(
  st.lists(st.sampled_from([1, 3, 8, 64, 96, 100, 4096]), min_size=0, max_size=4),
  st.sampled_from([1, 2, 4, 8]),
  st.booleans(),
)
def test_a_spec_divides_at_most_one_axis_and_evenly(shape, fsdp, stacked):
  path = ("vision", "blocks" if stacked else "patches", "kernel")
  spec = sharding.spec(path, tuple(shape), fsdp)
  axes = [i for i, name in enumerate(spec) if name is not None]
  assert len(axes) <= 1
  for axis in axes:
    assert fsdp > 1
    assert shape[axis] % fsdp == 0
    assert not (stacked and axis == 0)


def test_largest_axis_is_sharded_and_small_arrays_are_not():
  assert sharding.spec(("a",), (64, 4096), 8) == P(None, "fsdp")
  assert sharding.spec(("a",), (4096, 64), 8) == P("fsdp")
  assert sharding.spec(("blocks", "a"), (4096, 64, 64), 8) == P(None, "fsdp")
  assert sharding.spec(("a",), (64,), 8) == P()
  assert sharding.spec(("a",), (63, 4097), 8) == P()


def test_fsdp_that_shards_nothing_is_refused():
  shapes = {"a": jax.ShapeDtypeStruct((81, 81), jnp.float32)}
  with pytest.raises(ValueError, match="mesh.fsdp=8 divides no array"):
    sharding.of_tree(shapes, sharding.make_mesh(1, 8))
  assert sharding.of_tree(shapes, sharding.make_mesh(8, 1))["a"].spec == P()
