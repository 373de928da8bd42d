"""Meshes and the rule that says which device holds what."""

import dataclasses
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from rankclip_jax import evaluate, sharding


@dataclasses.dataclass(frozen=True)
class Device:
  """What `make_mesh` asks of a GPU."""

  id: int
  process_index: int
  slice_index: int
  platform: str = "gpu"
  device_kind: str = "NVIDIA H100 80GB HBM3"


def nodes(*counts, processes_each=1):
  """GPUs of nodes with so many each, numbered through."""
  owners = [(node, i * processes_each // n) for node, n in enumerate(counts)
            for i in range(n)]  # fmt: skip
  return [
    Device(i, node * processes_each + process, node)
    for i, (node, process) in enumerate(owners)
  ]


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
  "data, fsdp, said",
  [
    (-1, 4, "data 4 (2 NVLink domains over the network x 2) x fsdp 4 over NVLink"),
    (-1, 8, "data 2 (2 NVLink domains over the network x 1) x fsdp 8 over NVLink"),
    (-1, 1, "data 16 (2 NVLink domains over the network x 8) x fsdp 1"),
    (1, -1, "data 1 x fsdp 16 (2 NVLink domains over the network x 8)"),
  ],
)
@pytest.mark.parametrize("processes_each", [1, 8])
def test_fsdp_stays_within_a_node_and_data_spans_them(data, fsdp, said, processes_each):
  devices = nodes(8, 8, processes_each=processes_each)
  mesh = sharding.make_mesh(data, fsdp, devices[::-1])
  assert sorted(d.id for d in mesh.devices.flat) == list(range(16))
  for group in mesh.devices:
    assert len({d.slice_index for d in group}) == max(1, mesh.shape["fsdp"] // 8)
  assert sharding.describe(mesh) == f"Mesh: {said}."


def test_weights_that_cross_the_network_are_warned_of(caplog):
  with caplog.at_level(logging.WARNING, "rankclip_jax"):
    sharding.make_mesh(2, 8, nodes(8, 8))
    assert not caplog.records
    mesh = sharding.make_mesh(-1, 8, nodes(4, 4, 4, 4))
  assert "mesh.fsdp=8 is more than the 4 devices" in caplog.text
  assert "If the model fits, use mesh.fsdp=4." in caplog.text
  assert [sorted({d.slice_index for d in g}) for g in mesh.devices] == [[0, 1], [2, 3]]


@pytest.mark.parametrize(
  "fsdp, counts, message",
  [
    (
      3,
      (8, 8, 8),
      r"mesh.fsdp=3 neither .* 3 NVLink domains of 8 .* \[1, 2, 4, 8\]",
    ),
    (12, (8, 8, 8), "mesh.fsdp=12 neither fits"),
    (1, (8, 4), "Every slice must have .* slice 1 has 4, slice 0 has 8"),
  ],
)
def test_slices_that_do_not_fit_are_refused(fsdp, counts, message):
  with pytest.raises(ValueError, match=message):
    sharding.make_mesh(-1, fsdp, nodes(*counts))


def test_processes_with_different_numbers_of_devices_are_refused():
  devices = [Device(i, process, 0) for i, process in enumerate([0, 0, 0, 1])]
  with pytest.raises(ValueError, match="Every process .* process 1 has 1, process 0 has"):
    sharding.make_mesh(devices=devices)


@given(st.permutations(range(8)), st.sampled_from([1, 2, 4, 8]), st.integers(1, 3))
def test_every_row_is_some_process_own_wherever_its_devices_are(places, fsdp, each):
  """Rows that processes load by their own numbers are those their devices hold."""
  devices = [Device(i, place // 2, 0) for i, place in enumerate(places)]
  mesh = sharding.make_mesh(-1, fsdp, devices)
  own = [sharding.own_rows(mesh, 8 * each, process) for process in range(4)]
  assert sorted(row for rows in own for row in rows) == list(range(8 * each))
  owner = {row: process for process, rows in enumerate(own) for row in rows}
  for place, device in enumerate(mesh.devices.flat):
    rows = range(place * each, (place + 1) * each)
    assert {owner[row] for row in rows} == {device.process_index}
  assert all(rows == sorted(rows) for rows in own)


def test_a_batch_is_the_same_in_any_order_of_devices():
  order = np.random.default_rng(0).permutation(jax.devices())
  mesh = jax.sharding.Mesh(order.reshape(2, 4), sharding.BATCH_AXES)
  whole = np.arange(24, dtype=np.int32)
  rows = whole[sharding.own_rows(mesh, 24)]
  batch = evaluate.global_batch({"x": rows}, mesh)["x"]
  np.testing.assert_array_equal(batch, whole)
  first = {s.device: s.data[0] for s in batch.addressable_shards}
  assert [int(first[d]) for d in order] == list(range(0, 24, 3))


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
