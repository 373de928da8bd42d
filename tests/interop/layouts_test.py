"""Names and arrangements of tensors, held against the libraries that invented them."""

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from hypothesis import given, settings
from hypothesis import strategies as st

from rankclip_jax.interop import architecture, layouts
from rankclip_jax.models import two_tower
from rankclip_jax.models.sizes import ResNetSize, TextSize, TwoTowerSize, ViTSize

small = st.integers(1, 3)
vits = st.builds(
  lambda grid, patch, heads, depth: ViTSize(
    grid * patch, patch, 64 * heads, depth, heads
  ),
  small, small, small, small,
)  # fmt: skip
resnets = st.builds(
  lambda grid, blocks, width: ResNetSize(32 * grid, blocks, 2 * width, heads=width),
  small, st.tuples(small, small, small, small), small,
)  # fmt: skip
texts = st.builds(
  lambda width, depth, length, vocabulary: TextSize(
    64 * width, depth, width, length, vocabulary
  ),
  small, small, st.integers(1, 5), st.integers(2, 9),
)  # fmt: skip


def two_towers(vision):
  return st.builds(TwoTowerSize, vision, texts, embed_dim=st.integers(1, 5))


def numbered(size: TwoTowerSize, with_bias: bool = False) -> dict:
  """Parameters in which every number is another one, so that no two can be confused."""
  flat = flatten_dict(two_tower.abstract(size, with_bias=with_bias)[1])
  start, arrays = 1, {}
  for path, x in flat.items():
    arrays[path] = np.arange(start, start + x.size, dtype=np.float32).reshape(x.shape)
    start += x.size
  assert start < 2**24  # all exact in float32
  return unflatten_dict(arrays)


def assert_bit_equal(a, b) -> None:
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    assert (x.dtype, x.shape, x.tobytes()) == (y.dtype, y.shape, y.tobytes())


@settings(max_examples=15, deadline=None)
@given(size=two_towers(st.one_of(vits, resnets)), with_bias=st.booleans())
def test_openai_there_and_back(size, with_bias):
  params = numbered(size, with_bias)
  state = layouts.to_openai(params, size)
  total = sum(x.size for k, x in state.items() if not k.endswith("batches_tracked"))
  assert total == sum(x.size for x in jax.tree.leaves(params))
  assert_bit_equal(layouts.from_openai(state, size), params)
  prefixed = {
    k if k.startswith(("visual.", "logit_")) else f"text.{k}": v for k, v in state.items()
  }
  assert_bit_equal(layouts.from_openai(prefixed, size), params)


@settings(max_examples=10, deadline=None)
@given(size=two_towers(vits))
def test_transformers_there_and_back_and_its_size_is_told_by_the_shapes(size):
  params = numbered(size)
  state = layouts.to_transformers(params, size)
  assert_bit_equal(layouts.from_transformers(state, size), params)
  for names, shapes in (
    (architecture.TRANSFORMERS, state),
    (architecture.OPENAI, layouts.to_openai(params, size)),
  ):
    assert architecture.names_of(shapes) is names
    found = architecture.facts(shapes, names)
    assert architecture.size_of(found) == size  # all heads are 64 wide


@settings(max_examples=10, deadline=None)
@given(size=two_towers(resnets))
def test_a_resnets_size_is_told_by_the_shapes(size):
  state = layouts.to_openai(numbered(size), size)
  found = architecture.facts(state, architecture.OPENAI)
  heads = size.vision.heads
  assert architecture.size_of(found, vision_heads=heads) == size


@pytest.mark.parametrize("tower", ["vit", "resnet"])
@pytest.mark.parametrize("custom_text", [False, True])
def test_names_shapes_and_types_are_open_clips(peer, tower, custom_text):
  model, _ = peer.open_clip(tower, bias=-1.0, custom_text=custom_text)
  theirs = {k: v.numpy() for k, v in model.state_dict().items()}
  size = architecture.size_of(
    architecture.facts(
      {k.removeprefix("text."): v for k, v in theirs.items()}, architecture.OPENAI
    ),
    vision_heads=1,
    text_heads=1,
  )
  state = layouts.to_openai(layouts.from_openai(theirs, size), size)
  assert {k.removeprefix("text.") for k in theirs} == state.keys()
  for name, x in theirs.items():
    # The model has them as it was built; the rest of the state does not count batches.
    if not name.endswith("num_batches_tracked"):
      assert_bit_equal(state[name.removeprefix("text.")], np.asarray(x))


def test_names_and_shapes_are_those_of_transformers(peer):
  theirs = {k: v.numpy() for k, v in peer.transformers().state_dict().items()}
  found = architecture.facts(theirs, architecture.TRANSFORMERS)
  size = architecture.size_of(found, vision_heads=1, text_heads=1)
  state = layouts.to_transformers(layouts.from_transformers(theirs, size), size)
  assert state.keys() == theirs.keys()
  for name, x in theirs.items():
    assert_bit_equal(state[name], x)


SIZE = TwoTowerSize(ViTSize(4, 2, 64, 2, 1), TextSize(64, 1, 1, 3, 5), embed_dim=2)


def test_everything_that_does_not_fit_is_listed_in_one_error():
  state = layouts.to_openai(numbered(SIZE), SIZE)
  del state["visual.ln_post.bias"], state["ln_final.weight"]
  state["visual.head.weight"] = np.zeros(3)
  state["visual.proj"] = state["visual.proj"].T
  with pytest.raises(ValueError) as error:
    layouts.from_openai(state, SIZE)
  for part in (
    "2 missing: visual.ln_post.bias, ln_final.weight",
    "1 unexpected: visual.head.weight",
    "1 of the wrong shape: visual.proj (expected [64, 2], got [2, 64])",
  ):
    assert part in str(error.value)


def test_long_lists_are_cut_after_ten_names():
  state = {k: v for k, v in layouts.to_openai(numbered(SIZE), SIZE).items()
           if "resblocks" not in k}  # fmt: skip
  with pytest.raises(ValueError, match=r"36 missing: ([\w.]+, ){10}\.\.\.\."):
    layouts.from_openai(state, SIZE)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300])
def test_numbers_that_are_none_are_refused(bad):
  state = layouts.to_openai(numbered(SIZE), SIZE)
  state["ln_final.bias"] = np.float64(state["ln_final.bias"])
  state["ln_final.bias"][3] = bad
  with pytest.raises(ValueError, match="ln_final.bias holds NaN or infinite"):
    layouts.from_openai(state, SIZE)


def test_integers_are_refused():
  state = layouts.to_openai(numbered(SIZE), SIZE)
  state["ln_final.bias"] = np.int8(state["ln_final.bias"] % 100)
  with pytest.raises(ValueError, match=r"ln_final.bias holds integers \(int8\)"):
    layouts.from_openai(state, SIZE)


def test_complex_numbers_are_refused():
  state = layouts.to_openai(numbered(SIZE), SIZE)
  state["ln_final.bias"] = state["ln_final.bias"] + 1j
  with pytest.raises(ValueError, match=r"ln_final.bias holds complex numbers \(complex"):
    layouts.from_openai(state, SIZE)


def test_what_is_not_there_is_called_so_whatever_was_named():
  state = layouts.to_openai(numbered(SIZE), SIZE)
  del state["logit_scale"]
  with pytest.raises(ValueError, match=r"one whole CLIP of their shapes: 1 missing: "
                     r"logit_scale. Save the model's whole state_dict"):  # fmt: skip
    layouts.from_openai(state, SIZE)


def test_facts_and_buffers_of_archives_are_no_weights():
  params = numbered(SIZE)
  state = layouts.to_openai(params, SIZE)
  extra = dict.fromkeys(("input_resolution", "context_length", "vocab_size"), np.array(3))
  extra["attn_mask"] = np.full((3, 3), -np.inf)
  state["logit_scale"] = state["logit_scale"].reshape(1)  # open_clip's nonscalar option
  assert_bit_equal(layouts.from_openai(state | extra, SIZE), params)
