"""The step compiled before it is needed: what that took, and what it will take."""

import concurrent.futures
import dataclasses
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jaxtyping import Array

from rankclip_jax import state as states
from rankclip_jax.plan import Plan
from rankclip_jax.state import TrainState
from rankclip_jax.step import compile_step
from rankclip_jax.stopping import Stopped

_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class CompiledStep:
  """A step ready to be called.

  Attributes:
    call: (state, rows) to the state after it and its numbers; the old state is given up.
    seconds: that tracing and compiling took, less where a cache had it.
    arguments: bytes of state and batch on a device.
    temporaries: bytes of a device beside them, at most, as the compiler plans.
  """

  call: Callable[[TrainState, Mapping[str, Array]], tuple[TrainState, dict[str, Array]]]
  seconds: float
  arguments: int
  temporaries: int

  def __str__(self) -> str:
    return (
      f"Compiled the step in {self.seconds:.1f} s: {self.arguments / _GIB:.2f} GiB of "
      f"state and batch and {self.temporaries / _GIB:.2f} GiB of temporaries a device."
    )


def compile_ahead(
  p: Plan,
  rows: Mapping[str, jax.ShapeDtypeStruct],
  told: Callable[[], bool] = lambda: False,
) -> CompiledStep:
  """`step.compile_step`, compiled for a plan.

  Args:
    p: of the run.
    rows: shapes and types of a global batch.
    told: whether to stop. Nothing ends a compiler, which may take many minutes: its
      thread is left behind.

  Raises:
    Stopped: soon after this process is told.
  """
  compiled: concurrent.futures.Future[CompiledStep] = concurrent.futures.Future()

  def work() -> None:
    try:
      compiled.set_result(_compiled(p, rows))
    except BaseException as error:
      compiled.set_exception(error)

  # Not of a pool, whose threads Python waits for at its end.
  threading.Thread(target=work, name="compile", daemon=True).start()
  while not concurrent.futures.wait([compiled], timeout=0.1).done:
    if told():
      raise Stopped
  return compiled.result()


def _compiled(p: Plan, rows: Mapping[str, jax.ShapeDtypeStruct]) -> CompiledStep:
  began = time.perf_counter()
  before = states.abstract(p.size, p.objective, p.optimizer, p.mesh)
  jitted: Any = compile_step(p)
  compiled = jitted.lower(before, rows).compile()
  seconds = time.perf_counter() - began
  memory = compiled.memory_analysis()
  return CompiledStep(
    compiled,
    seconds,
    getattr(memory, "argument_size_in_bytes", 0),
    getattr(memory, "temp_size_in_bytes", 0),
  )
