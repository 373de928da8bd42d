import pytest

from aot import targets

PLAN = """\
BufferAssignment:
allocation 0: size 4096, output shape is |f32[1024]|, maybe-live-out:
 value: <2 sum @0> (size=4096,offset=0): f32[1024]{0}
allocation 1: size 512, parameter 0, shape |f32[128]| at ShapeIndex {}, maybe-live-out:
 value: <1 x @0> (size=512,offset=0): f32[128]{0}
allocation 2: size 64, parameter 1, shape |f32[16]| at ShapeIndex {}:
 value: <1 y @0> (size=64,offset=0): f32[16]{0}
allocation 3: size 32, constant:
 value: <4 c @0> (size=32,offset=0): f32[8]{0}
allocation 4: size 9000, preallocated-temp:
 value: <3 sorted @0> (size=8192,offset=0): u32[2048]{0}
"""


def test_a_plan_is_read(tmp_path):
  stem = "module_0001.jit_f.sm_9.0a_gpu_after_optimizations"
  (tmp_path / f"{stem}-buffer-assignment.txt").write_text(PLAN)
  (tmp_path / f"{stem}.txt").write_text("HloModule jit_f")
  memory, text = targets.read_plan(tmp_path)
  assert memory == targets.Memory(
    argument=512 + 64, output=4096 + 512, donated=512, temp=9000
  )
  assert memory.total == 64 + 512 + 4096 + 9000
  assert text == "HloModule jit_f"


def test_no_plan_is_an_error(tmp_path):
  with pytest.raises(FileNotFoundError, match="plan of one program"):
    targets.read_plan(tmp_path)


def test_a_missing_compiler_says_how_to_get_it(monkeypatch):
  monkeypatch.setattr(targets, "TPU_PACKAGES", ("no-such-compiler",))
  with pytest.raises(ModuleNotFoundError, match=r"-r requirements-aot\.txt"):
    targets.tpu("v5e", "2x4")
