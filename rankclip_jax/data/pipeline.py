"""Batches for training and evaluation, on any number of processes.

The step number alone is the position in the training data. A global batch is the same
set of rows however many processes share it, so a run may stop on one host and continue
on eight, and nothing but the step is needed to resume.
"""

from collections.abc import Callable, Iterator, Mapping

import grain
import numpy as np

from rankclip_jax.data.source import Example, Source
from rankclip_jax.data.tokenizer import END_OF_TEXT, Tokenizer
from rankclip_jax.data.transforms import random_resized_crop, resize_center_crop

Batch = dict[str, np.ndarray]


def steps_per_epoch(num_examples: int, global_batch: int) -> int:
  """Returns how many whole global batches an epoch has; its remainder is dropped.

  Raises:
    ValueError: if there is not even one.
  """
  if not 1 <= global_batch <= num_examples:
    raise ValueError(
      f"an epoch of {num_examples} examples has no batch of {global_batch}: choose a"
      f" global batch from 1 to {num_examples}"
    )
  return num_examples // global_batch


def train_batches(
  source: Source,
  *,
  image_size: int,
  tokenizer: Tokenizer,
  augment_scale: tuple[float, float] | None,
  global_batch: int,
  num_steps: int,
  seed: int,
  process_index: int = 0,
  process_count: int = 1,
  start_step: int = 0,
  num_threads: int = 2,
  prefetch: int = 4,
) -> Iterator[Batch]:
  """Iterates over this process's rows of the batches of steps start_step..num_steps-1.

  Every epoch is a fresh permutation by (seed, epoch). Crop and caption of an example
  depend on (seed, epoch, example) only, wherever it stands in whichever batch.

  Args:
    source: read by `num_threads` threads at once.
    image_size: height and width of the pictures in pixels.
    tokenizer: maps captions to ids.
    augment_scale: area fractions of `random_resized_crop`; None takes the centre.
    global_batch: rows of a batch over all processes.
    num_steps: the step at which training ends.
    seed: from 0 to 2**32 - 1.
    process_index: which rows are ours: the process_index-th of `process_count` parts.
    process_count: the number of processes; must divide `global_batch`.
    start_step: the step to start at; nothing is read in order to get there.
    num_threads: background threads; 0 makes each batch when it is asked for.
    prefetch: batches made ahead.

  Returns:
    An iterator of {"image": uint8 [local_batch, size, size, 3], "tokens": int32
    [local_batch, length], "id": int32 [local_batch]}, the id being the index in
    `source`. Its threads end when it is dropped.

  Raises:
    ValueError: if numbers do not fit; from the iterator, with the key of the example,
      if an image is not uint8 [height, width, 3] or a caption is empty.
  """
  local_batch = _local_batch(global_batch, process_index, process_count)
  epoch_rows = steps_per_epoch(len(source), global_batch) * global_batch
  if not 0 <= start_step <= num_steps:
    raise ValueError(f"start_step must be from 0 to {num_steps=}, got {start_step}")
  if not 0 <= seed < 2**32:
    raise ValueError(f"seed must be from 0 to 2**32 - 1, got {seed}")

  def row(position: int, index: int) -> Batch:
    """Makes one row. `position` goes on counting where an epoch ends."""
    example = source[index]
    _check_image(example)
    rng = np.random.default_rng((seed, position // epoch_rows, index))
    tokens = _draw_caption(example, rng, tokenizer)
    if augment_scale is None:
      image = resize_center_crop(example.image, image_size)
    else:
      image = random_resized_crop(example.image, image_size, rng, augment_scale)
    return {
      "image": image,
      "tokens": tokens,
      "id": np.asarray(index, np.int32),
    }

  # The remainder is sliced off after shuffling, so each epoch drops other examples.
  # Consecutive local batches are the processes' parts of one global batch.
  batches = (
    grain.MapDataset.range(len(source))
    .seed(seed)
    .shuffle()[:epoch_rows]
    .map_with_index(row)
    .batch(local_batch)[process_index::process_count]
    .repeat()[start_step:num_steps]
  )
  options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=prefetch)
  return iter(batches.to_iter_dataset(options))


def eval_batches(
  count: int,
  *,
  batch_size: int,
  load: Callable[[int], Mapping[str, np.ndarray]],
  process_index: int = 0,
  process_count: int = 1,
) -> Iterator[Batch]:
  """Iterates over this process's rows of batches that hold every index exactly once.

  All processes get equally many batches of equal shape, since their collectives must
  match. The last batch is filled up with rows that repeat the last example (a blank
  row could turn into NaNs) and are masked out.

  Args:
    count: the number of examples.
    batch_size: rows of a batch over all processes.
    load: maps an index below `count` to the arrays of that example.
    process_index: which rows are ours: the process_index-th of `process_count` parts.
    process_count: the number of processes; must divide `batch_size`.

  Returns:
    An iterator of the stacked arrays, with "index": int32 [local_batch] and "mask":
    bool [local_batch], false where a row is padding.

  Raises:
    ValueError: if `count` is 0 or `batch_size` does not fit the processes.
  """
  local_batch = _local_batch(batch_size, process_index, process_count)
  if count < 1:
    raise ValueError(f"there must be an example to evaluate, got {count=}")

  def batch(start: int) -> Batch:
    rows = np.arange(start, start + local_batch, dtype=np.int32)
    index = np.minimum(rows, count - 1)
    examples = [load(int(i)) for i in index]
    stacked = {name: np.stack([e[name] for e in examples]) for name in examples[0]}
    return stacked | {"index": index, "mask": rows < count}

  return (
    batch(start + process_index * local_batch) for start in range(0, count, batch_size)
  )


def _local_batch(batch: int, process_index: int, process_count: int) -> int:
  """Returns the rows of each process, having checked that they come out even."""
  if not 0 <= process_index < process_count:
    raise ValueError(
      f"process_index must be from 0 to {process_count - 1}, got {process_index}"
    )
  if batch < 1 or batch % process_count:
    raise ValueError(
      f"the batch must be a positive multiple of the {process_count} processes, got"
      f" {batch}"
    )
  return batch // process_count


def _check_image(example: Example) -> None:
  image = example.image
  if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
    raise ValueError(
      f"the image of example {example.key!r} must be uint8 [height, width, 3], got"
      f" {image.dtype} {list(image.shape)}: convert it with transforms.to_rgb"
    )


def _draw_caption(
  example: Example, rng: np.random.Generator, tokenizer: Tokenizer
) -> np.ndarray:
  """Returns the ids [length] of one of the captions, each as likely as the others."""
  if not example.captions:
    raise ValueError(f"example {example.key!r} has no caption: give it one or drop it")
  caption = example.captions[rng.integers(len(example.captions))]
  tokens = tokenizer([caption])[0]
  if tokens[1] == END_OF_TEXT:
    raise ValueError(
      f"a caption of example {example.key!r} is empty after cleaning, got {caption!r}:"
      " drop it from the source"
    )
  return tokens
