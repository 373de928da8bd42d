import pytest

from aot import hlo

# As XLA writes it: layouts with tiles, tuples, comments, a fusion, asynchronous halves.
PROGRAM = """\
HloModule jit_f, is_scheduled=true, entry_computation_layout={(f32[64]{0})->f32[64]{0}}

FileNames
1 "loss.py"

%compare (a: u32[], b: u32[]) -> pred[] {
  %a = u32[] parameter(0)
  %b = u32[] parameter(1)
  ROOT %lt = pred[] compare(%a, %b), direction=LT
}

%inside (p: f32[64]) -> f32[64,64] {
  %p = f32[64]{0} parameter(0)
  ROOT %wide = f32[64,64]{1,0:T(8,128)S(1)} broadcast(%p), dimensions={0}
}

%sorting (q: u32[4,64]) -> (u32[4,64], s32[4,64]) {
  %q = u32[4,64]{1,0} parameter(0)
  %i = s32[4,64]{1,0} iota(), iota_dimension=1
  ROOT %sort.1 = (u32[4,64]{1,0:T(8,128)}, s32[4,64]{1,0}) sort(%q, %i), dimensions={1}, \
to_apply=%compare
}

%body (s: f32[8]) -> f32[8] {
  %s = f32[8]{0} parameter(0)
  %swap = f32[8]{0} collective-permute(%s), channel_id=3
  ROOT %inner = f32[8]{0} fusion(%swap), kind=kLoop, calls=%inside
}

%more (s: f32[8]) -> pred[] {
  ROOT %yes = pred[] constant(true)
}

ENTRY %main (x: f32[8], k: u32[4,64]) -> f32[64] {
  %x = f32[8]{0} parameter(0)
  %k = u32[4,64]{1,0} parameter(1)
  %all-gather-start = (f32[8]{0}, f32[64]{0}) all-gather-start(%x), channel_id=1
  %all-gather-done = f32[64]{0} all-gather-done(%all-gather-start)
  %sorted = (u32[4,64]{1,0}, /*index=1*/s32[4,64]{1,0}) fusion(%k), kind=kCustom, \
calls=%sorting
  %cub = (u32[4,64]{1,0}, u8[99999]{0}) custom-call(%k), \
custom_call_target="xla.gpu.ext.cub_sort_keys", api_version=API_VERSION_TYPED_FFI
  %fused = f32[64]{0} fusion(%all-gather-done), kind=kLoop, calls=%inside
  %loop = f32[8]{0} while(%x), condition=%more, body=%body
  ROOT %sum = f32[64]{0} all-reduce(%fused), channel_id=2
}
"""


@pytest.fixture(scope="module")
def program():
  return hlo.instructions(PROGRAM)


def test_instructions_have_shapes_opcodes_and_targets(program):
  named = {x.name: x for x in program}
  assert str(named["sort.1"]) == "sort.1 = sort -> u32[4,64], s32[4,64]"
  assert str(named["cub"]) == ("cub = xla.gpu.ext.cub_sort_keys -> u32[4,64], u8[99999]")
  assert named["wide"].elements == 64 * 64
  assert named["a"].elements == 1


def test_buffers_are_what_is_in_memory(program):
  assert [x.name for x in hlo.buffers(program, 256)] == ["k", "sorted", "cub"]
  assert hlo.buffers(program, 257) == []


def test_sorts_are_found_inside_of_fusions_and_calls(program):
  assert [x.name for x in hlo.slow_sorts(program, 65)] == ["sort.1"]
  assert [x.name for x in hlo.cub_sorts(program, 65)] == ["cub"]
  assert hlo.slow_sorts(program, 257) == hlo.cub_sorts(program, 257) == []


def test_collectives_count_once(program):
  found = hlo.collectives(program)
  assert {kind: len(xs) for kind, xs in found.items()} == {
    "all-gather": 1,
    "all-reduce": 1,
    "collective-permute": 1,
  }
  assert [x.name for xs in found.values() for x in xs if x.looped] == ["swap"]


def test_a_loop_holds_all_that_its_body_calls(program):
  looped = [x.name for x in program if x.looped]
  assert looped == ["p", "wide", "s", "swap", "inner", "yes"]


@pytest.mark.parametrize("text", ["", "HloModule jit_f\n"])
def test_no_program_is_refused(text):
  with pytest.raises(ValueError, match="not the text of a program"):
    hlo.instructions(text)


def test_unknown_lines_are_refused():
  with pytest.raises(ValueError, match="must learn its form"):
    hlo.instructions("%f (x: f32[]) -> f32[] {\n  %y = something else\n}")
