"""Lines of HLO by hand: each way of writing a collective, and what it costs a device."""

import pytest

from aot import exchange

HEADER = "HloModule jit_f, entry_computation_layout={()->f32[]}, num_partitions=8\n\n"
FLOAT = 4  # bytes


def read(*lines, header=HEADER):
  """The exchanges of a program of these lines alone."""
  body = "\n".join(f"  {line}" for line in lines)
  return exchange.exchanges(f"{header}ENTRY %main (x: f32[8]) -> f32[8] {{\n{body}\n}}\n")


def received(one):
  return sum(one.received(shape) for shape in one.arrays)


ALL = "replica_groups={}, use_global_device_ids=true"


@pytest.mark.parametrize(
  "line, kind, arrays, size",
  [
    (
      f"%g = f32[64,2]{{1,0}} all-gather(%x), channel_id=1, {ALL}, dimensions={{0}}",
      "all-gather", ["f32[64,2]"], 64 * 2 * FLOAT * 7 / 8,
    ),
    (
      "%s = ((f32[8]{0}, bf16[4]{0}), (f32[64]{0}, bf16[32]{0})) all-gather-start(%x, "
      f"/*index=1*/%y), channel_id=1, {ALL}, dimensions={{0}}",
      "all-gather", ["f32[64]", "bf16[32]"], (64 * FLOAT + 32 * 2) * 7 / 8,
    ),
    (
      f"%s = (f32[8]{{0}}, f32[64]{{0}}) all-gather-start(%x), {ALL}, dimensions={{0}}",
      "all-gather", ["f32[64]"], 64 * FLOAT * 7 / 8,
    ),
    (
      f"%r = f32[3,8]{{1,0}} reduce-scatter(%x), {ALL}, dimensions={{1}}, to_apply=%add",
      "reduce-scatter", ["f32[3,64]"], 3 * 64 * FLOAT * 7 / 8,
    ),
    (
      "%r = ((f32[64]{0}, f32[16]{0}), (f32[8]{0}, f32[2]{0})) reduce-scatter-start(%x, "
      f"%y), {ALL}, dimensions={{0}}, to_apply=%add",
      "reduce-scatter", ["f32[64]", "f32[16]"], (64 + 16) * FLOAT * 7 / 8,
    ),
    (
      f"%a = (f32[8]{{0:T(128)}}, bf16[2,3]{{1,0:T(8,128)(2,1)}}) all-reduce(%x), {ALL}",
      "all-reduce", ["f32[8]", "bf16[2,3]"], 2 * (8 * FLOAT + 6 * 2) * 7 / 8,
    ),
    (
      f"%a = f32[8]{{0}} all-reduce-start(%x), {ALL}, to_apply=%add",
      "all-reduce", ["f32[8]"], 2 * 8 * FLOAT * 7 / 8,
    ),
    (
      f"%a = (f32[8]{{0}}, f32[4]{{0}}) all-reduce-start(%x, %y), {ALL}, to_apply=%add",
      "all-reduce", ["f32[8]", "f32[4]"], 2 * 12 * FLOAT * 7 / 8,
    ),
    (
      f"%t = f32[16]{{0}} all-to-all(%x), {ALL}, dimensions={{0}}",
      "all-to-all", ["f32[16]"], 16 * FLOAT * 7 / 8,
    ),
    (
      "%p = f32[16]{0} collective-permute(%x), source_target_pairs={{0,1},{1,0}}",
      "collective-permute", ["f32[16]"], 16 * FLOAT,
    ),
    (
      "%p = (f32[16]{0}, f32[16]{0}, u32[], u32[]) collective-permute-start(%x), "
      "source_target_pairs={{0,1},{1,0}}",
      "collective-permute", ["f32[16]"], 16 * FLOAT,
    ),
    (
      f"%m = pred[64]{{0}} all-gather(%x), {ALL}, dimensions={{0}}",
      "all-gather", ["pred[64]"], 64 * 7 / 8,
    ),
  ],
)  # fmt: skip
def test_what_a_device_receives(line, kind, arrays, size):
  (one,) = read(line)
  assert (one.kind, [str(x) for x in one.arrays]) == (kind, arrays)
  assert received(one) == size
  assert one.times == 1


@pytest.mark.parametrize(
  "groups, size",
  [
    ("{}", 8),
    ("{{0,1,2,3},{4,5,6,7}}", 4),
    ("[4,2]<=[8]", 2),
    ("[2,4]<=[4,2]T(1,0)", 4),
    ("mesh['axis_0'=8,'axis_1'=1] {'axis_0'}", 8),
    ("mesh['axis_0'=2,'axis_1'=4] {'axis_1'}", 4),
    ("mesh['axis_0'=2,'axis_1'=4] {'axis_0','axis_1'}", 8),
    ("mesh['axis_0'=4,'axis_1'=2], device_ids=([2,4]T(1,0)) {'axis_0'}", 4),
  ],
)
def test_groups(groups, size):
  (one,) = read(
    f"%a = f32[8]{{0}} all-reduce(%x), replica_groups={groups}, to_apply=%add"
  )
  assert one.group == size
  assert received(one) == 2 * 8 * FLOAT * (size - 1) / size


@pytest.mark.parametrize("groups", ["{{0},{1},{2},{3}}", "[8,1]<=[8]"])
def test_a_device_alone_exchanges_nothing(groups):
  assert read(f"%a = f32[8]{{0}} all-reduce(%x), replica_groups={groups}") == []


@pytest.mark.parametrize(
  "groups", ["replica_groups=@somewhere", "replica_groups=mesh['a'=8] {'a':(1)2}", ""]
)
def test_unknown_groups_are_refused(groups):
  with pytest.raises(ValueError, match="Cannot read the"):
    read(f"%a = f32[8]{{0}} all-reduce(%x), {groups}")


def test_a_done_is_no_exchange_of_its_own():
  found = read(
    f"%s = (f32[8]{{0}}, f32[64]{{0}}) all-gather-start(%x), {ALL}, dimensions={{0}}",
    "%d = f32[64]{0} all-gather-done(%s)",
  )
  assert len(found) == 1


LOOPS = """\
%cond (s: (s32[], f32[8])) -> pred[] {
  %limit = s32[]{:T(128)} constant(12)
  %s = (s32[], f32[8]{0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  ROOT %lt = pred[] compare(%i, %limit), direction=LT
}

%unclear (s: (s32[], f32[8])) -> pred[] {
  %s = (s32[], f32[8]{0}) parameter(0)
  ROOT %any = pred[] custom-call(%s), custom_call_target="Any"
}

%fused (s: f32[8]) -> f32[8] {
  ROOT %inner = f32[8]{0} all-reduce(%s), replica_groups={}, to_apply=%add
}

%body (s: (s32[], f32[8])) -> (s32[], f32[8]) {
  %f = f32[8]{0} fusion(%s), kind=kCustom, calls=%fused
  ROOT %again = f32[8]{0} while(%f), condition=%CONDITION, body=%deep
}

%deep (s: f32[8]) -> f32[8] {
  ROOT %swap = f32[8]{0} collective-permute(%s), source_target_pairs={{0,1}}
}

ENTRY %main (x: f32[8]) -> f32[8] {
  ROOT %loop = f32[8]{0} while(%x), condition=%cond, body=%body, \
backend_config={"known_trip_count":{"n":"5"},"known_init_step":{"init":"0","step":"1"}}
}
"""


def test_loops_multiply_by_what_xla_knows_or_by_their_condition():
  found = exchange.exchanges(HEADER + LOOPS.replace("CONDITION", "cond"))
  assert {x.kind: x.times for x in found} == {
    "all-reduce": 5,
    "collective-permute": 5 * 12,
  }
  reduced = next(x for x in found if x.kind == "all-reduce")
  assert reduced.elements == 5 * 8
  assert received(reduced) == 5 * 2 * 8 * FLOAT * 7 / 8


def test_a_loop_of_unknown_length_around_a_collective_is_refused():
  with pytest.raises(ValueError, match=r"how often a loop runs around 'swap' in 'deep'"):
    exchange.exchanges(HEADER + LOOPS.replace("CONDITION", "unclear"))


def test_steps_of_one_chain_are_one_exchange_and_two_chains_are_two():
  step = (
    "%g.{n} = f32[64]{{0}} all-gather(%x), replica_groups={{}}, dimensions={{0}}, "
    'frontend_attributes={{chain_id="{chain}"}}'
  )
  found = read(*(step.format(n=n, chain=chain) for n, chain in enumerate("00011")))
  assert [x.times for x in found] == [1, 1]


def test_a_chain_runs_as_often_as_its_start_though_its_steps_hide_in_a_loop():
  gather = (
    "f32[64]{0} all-gather(%x), replica_groups={}, dimensions={0}, "
    'frontend_attributes={chain_id="0"}'
  )
  looped = LOOPS.replace(
    "collective-permute(%s), source_target_pairs={{0,1}}", "copy(%s)"
  )
  text = looped.replace("CONDITION", "cond").replace(
    "  ROOT %loop", f"  %start = {gather}\n  ROOT %loop"
  )
  text = text.replace("  ROOT %inner", f"  %step = {gather}\n  ROOT %inner")
  found = {x.kind: x.times for x in exchange.exchanges(HEADER + text)}
  assert found == {"all-gather": 1, "all-reduce": 5}


def test_an_all_reduce_of_which_a_slice_is_kept_is_a_reduce_scatter():
  text = HEADER + (
    "%all-reduce-scatter.1 (s: f32[64]) -> f32[8] {\n"
    "  %all = f32[64]{0} all-reduce(%s), replica_groups={}, to_apply=%add\n"
    "  ROOT %own = f32[8]{0} dynamic-slice(%all, %i), dynamic_slice_sizes={8}\n"
    "}\n\nENTRY %main (x: f32[64]) -> f32[8] {\n"
    "  ROOT %f = f32[8]{0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1\n}\n"
  )
  (one,) = exchange.exchanges(text)
  assert one.kind == "reduce-scatter"
  assert received(one) == 64 * FLOAT * 7 / 8


@pytest.mark.parametrize("text", ["", "HloModule jit_f\n"])
def test_no_program_is_refused(text):
  with pytest.raises(ValueError, match="not the text of a program"):
    exchange.exchanges(text)
