"""What a process wants of all, and what all have agreed on.

Clocks, signals and disks differ between processes, and all must save or stop at the same
step. So each puts its wishes into the rows of its batch, and what any of them wants comes
back, the same everywhere, with the numbers of that step: nothing is exchanged beside the
step itself, and no step is waited for.
"""

import enum
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int


class Wish(enum.IntFlag):
  """What one process can want of all."""

  NONE = 0
  STOP = 1  # a signal came
  SAVE = 2  # the clock is up, or a save that failed is due again
  GIVE_UP = 4  # saves have failed for too long


class Wishes:
  """This process's wishes, and those that all know of.

  Args:
    own: what this process wants now.
  """

  def __init__(self, own: Callable[[], Wish]):
    self._own = own
    self._heard = Wish.NONE

  @property
  def agreed(self) -> Wish:
    """What any process wants, the same on all at the same step.

    Alone a process need not wait until it hears its own wishes.
    """
    return self._own() if jax.process_count() == 1 else self._heard

  def rows(self, count: int) -> np.ndarray:
    """What goes to the devices with a batch of `count` rows of this process."""
    return np.full(count, int(self._own()), np.int32)

  def heard(self, wishes: float) -> None:
    """Takes what `any_of` made of the rows of all."""
    self._heard = Wish(int(wishes))

  def done(self, wish: Wish) -> None:
    """Forgets a wish that was heard and is fulfilled; batches on their way still ask."""
    self._heard &= ~wish


def any_of(rows: Int[Array, " batch"]) -> Int[Array, ""]:
  """The wishes of all processes together, inside a jitted function."""
  bits = [jnp.max(rows & int(wish)) for wish in Wish]
  return jnp.sum(jnp.stack(bits))
