import jax
import numpy as np
import pytest

from rankclip_jax import wishes
from rankclip_jax.wishes import Wish, Wishes


@pytest.mark.parametrize(
  "of_each, expected",
  [
    ([Wish.NONE] * 3, Wish.NONE),
    ([Wish.NONE, Wish.STOP, Wish.SAVE], Wish.STOP | Wish.SAVE),
    ([Wish.SAVE, Wish.SAVE, Wish.SAVE], Wish.SAVE),
    ([Wish.STOP | Wish.GIVE_UP, Wish.STOP, Wish.NONE], Wish.STOP | Wish.GIVE_UP),
  ],
)
def test_what_any_process_wants_all_hear(of_each, expected):
  rows = np.concatenate([Wishes(lambda w=w: w).rows(2) for w in of_each])
  heard = Wishes(lambda: Wish.NONE)
  heard.heard(float(jax.jit(wishes.any_of)(rows)))
  assert heard._heard == expected


def test_alone_a_process_hears_itself_at_once(monkeypatch):
  own = [Wish.NONE]
  w = Wishes(lambda: own[0])
  assert w.agreed == Wish.NONE
  own[0] = Wish.STOP
  assert w.agreed == Wish.STOP
  monkeypatch.setattr(wishes.jax, "process_count", lambda: 2)
  assert w.agreed == Wish.NONE  # the others do not know of it yet
  w.heard(3.0)
  assert w.agreed == Wish.STOP | Wish.SAVE
  w.done(Wish.SAVE)
  assert w.agreed == Wish.STOP
