"""Rows of training batches: an example read, drawn from, and replaced if it is bad."""

import dataclasses
import zlib
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from rankclip_jax.data.order import Order
from rankclip_jax.data.source import BadExample, Example, Source
from rankclip_jax.data.tokenizer import END_OF_TEXT, Tokenizer
from rankclip_jax.data.views import View

Batch = dict[str, np.ndarray]
Same = Literal["none", "picture", "caption", "either"]

_KINDS: dict[Same, int] = {"none": 0, "picture": 1, "caption": 1, "either": 2}
# So many bad examples in a row are no accident, up to nine bad ones of ten.
_MOST_SUBSTITUTES = 200


def blank(rows: int, image_size: int, length: int, same: Same = "none") -> Batch:
  """A batch of zeros; see `pipeline.train_batches`."""
  batch = {
    "image": np.zeros((rows, image_size, image_size, 3), np.uint8),
    "tokens": np.zeros((rows, length), np.int32),
    "id": np.zeros(rows, np.int32),
    "replaced": np.zeros(rows, np.int32),
  }
  kinds = _KINDS[same]
  return batch | ({"same": np.zeros((rows, kinds), np.int32)} if kinds else {})


@dataclasses.dataclass(frozen=True)
class Rows:
  """Makes the rows at given positions of training, wherever it is asked for them.

  Attributes:
    source: of the examples.
    order: what stands where.
    view: what becomes of a picture.
    tokenizer: what becomes of a caption.
    seed: of crops, captions and substitutes.
    same: what is noted of rows for the masks of the loss, see `train_batches`.
    on_bad: told of every bad example, which is then replaced by another; None raises.
  """

  source: Source
  order: Order
  view: View
  tokenizer: Tokenizer
  seed: int
  same: Same = "none"
  on_bad: Callable[[BadExample], None] | None = None

  def blank(self, rows: int) -> Batch:
    """A batch for `fill`."""
    return blank(rows, self.view.size, self.tokenizer.context_length, self.same)

  def fill(self, batch: Batch, rows: range, positions: Sequence[int]) -> None:
    """Writes `rows` of a batch, whose examples stand at `positions` of the order."""
    for row, position in zip(rows, positions, strict=True):
      image, tokens = batch["image"][row], batch["tokens"][row]
      index, replaced, example = self._fill(position, image, tokens)
      batch["id"][row], batch["replaced"][row] = index, replaced
      if self.same != "none":
        batch["same"][row] = _hashes(self.same, example, tokens)

  def _fill(
    self, position: int, image: np.ndarray, tokens: np.ndarray
  ) -> tuple[int, int, Example]:
    """Writes one row; returns its example's index, how many were bad, and the example."""
    index, visit = self.order[position]
    rng = None
    for replaced in range(_MOST_SUBSTITUTES + 1):
      try:
        example = self.source[index]
        self._draw(example, visit, index, image, tokens)
        return index, replaced, example
      except BadExample as bad:
        if self.on_bad is None:
          raise
        self.on_bad(bad)
        if replaced == _MOST_SUBSTITUTES:
          raise ValueError(
            f"{replaced + 1} examples in a row could not be used, so nearly none can; "
            f"see python -m rankclip_jax.data check. The last one: {bad}"
          ) from bad
        if rng is None:  # by the place's own draw, not by who asks when
          rng = np.random.default_rng((self.seed, visit, index, 1))
        index = self.order.substitute(index, rng)
    raise AssertionError("unreachable")

  def _draw(self, example, visit, index, image, tokens) -> None:
    if isinstance(example.image, np.ndarray):
      _check_pixels(example)
    rng = np.random.default_rng((self.seed, visit, index))
    tokens[:] = _draw_caption(example, rng, self.tokenizer)
    self.view.fill(image, example, rng)


def _check_pixels(example: Example) -> None:
  image = example.image
  assert isinstance(image, np.ndarray)
  if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
    raise ValueError(
      f"the image of example {example.key!r} must be uint8 [height, width, 3], got"
      f" {image.dtype} {list(image.shape)}: convert it with transforms.to_rgb"
    )


def _draw_caption(
  example: Example, rng: np.random.Generator, tokenizer: Tokenizer
) -> np.ndarray:
  """Returns the ids [length] of one of the captions, each as likely as the others."""
  _check_some(example)
  caption = example.captions[rng.integers(len(example.captions))]
  tokens = tokenizer([caption])[0]
  _check_not_empty(example, caption, tokens)
  return tokens


def check_captions(example: Example, tokenizer: Tokenizer) -> None:
  """Refuses an example of which any caption could not be used.

  Raises:
    BadExample: with its key.
  """
  _check_some(example)
  for caption, tokens in zip(example.captions, tokenizer(example.captions), strict=True):
    _check_not_empty(example, caption, tokens)


def _check_some(example: Example) -> None:
  if not example.captions:
    raise BadExample(
      f"example {example.key!r} has no caption: give it one or drop it",
      reason="missing caption",
      key=example.key,
      shard=example.shard,
    )


def _check_not_empty(example: Example, caption: str, tokens: np.ndarray) -> None:
  if tokens[1] == END_OF_TEXT:
    raise BadExample(
      f"a caption of example {example.key!r} is empty after cleaning, got {caption!r}:"
      " drop it from the source",
      reason="empty caption",
      key=example.key,
      shard=example.shard,
    )


def _hashes(same: Same, example: Example, tokens: np.ndarray) -> np.ndarray:
  """Int32 [kinds]: rows that share a number of one kind show the same.

  32 bits: of the two billion pairs among 65,536 different pictures, every other batch has
  one that shares a number by chance, and is masked.
  """
  numbers = []
  if same in ("picture", "either"):
    # By what the picture is, not by where it lies: lists name one file twice, web data
    # has copies, and resharding renames.
    image = example.image
    data = image.tobytes() if isinstance(image, np.ndarray) else image
    numbers.append(zlib.crc32(data))
  if same in ("caption", "either"):
    numbers.append(zlib.crc32(tokens.tobytes()))
  return np.array(numbers, np.uint32).view(np.int32)
