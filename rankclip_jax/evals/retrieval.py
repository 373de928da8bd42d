"""Image-text retrieval in both directions: recall@k, median and mean rank.

Names and meaning follow CLIP_benchmark: *image retrieval* asks a text for its image,
*text retrieval* asks an image for any of its captions; the best-placed one counts.

A rank is counted, not sorted for: it is one more than the number of candidates ahead of
the right answer. Equal scores stand in order of index, as a stable sort puts them, so
collapsed embeddings score at chance.

Finding equal scores needs care, because the same pair multiplied in another block may
differ in its last bit. So each score is computed exactly once. With the captions grouped
by image, every correct pair lies in a tile on the diagonal of the score matrix: these
tiles come first and give the scores to beat. All other tiles are then counted against
them, each for both directions, and thrown away.
"""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt

from rankclip_jax.evals import geometry

RECALL_AT = (1, 5, 10)

TILE_BYTES = 16 * 2**20
"""Budget of one float32 tile of scores; comparing it takes about as much again."""


def evaluate(
  image: npt.ArrayLike, text: npt.ArrayLike, image_of_text: npt.ArrayLike
) -> dict[str, float]:
  """Computes retrieval metrics in both directions (RankCLIP, Table 1: T2I and I2T).

  Args:
    image: [images, dim] L2-normalised.
    text: [texts, dim] L2-normalised.
    image_of_text: [texts] integers, the image that each text describes, in any order.

  Returns:
    For `image_retrieval` (one query per text) and `text_retrieval` (one per image):
    `*_recall@{1,5,10}` as fractions (1 where there are no more than k candidates),
    `*_median_rank` and `*_mean_rank`, counted from 1.

  Raises:
    ValueError: see `ranks`.
  """
  image_ranks, text_ranks = ranks(image, text, image_of_text)
  return {
    **_summary("image_retrieval", image_ranks),
    **_summary("text_retrieval", text_ranks),
  }


def ranks(
  image: npt.ArrayLike,
  text: npt.ArrayLike,
  image_of_text: npt.ArrayLike,
  *,
  tile_bytes: int = TILE_BYTES,
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the rank, from 1, of the right answer to every query.

  Args:
    image: [images, dim] L2-normalised.
    text: [texts, dim] L2-normalised.
    image_of_text: [texts] integers, the image that each text describes, in any order.
    tile_bytes: budget of one tile of scores. An image with more captions than a tile has
      columns makes its tiles wider.

  Returns:
    image_ranks [texts], the rank of a text's image among the images, and text_ranks
    [images], the rank of an image's best-placed caption among the texts.

  Raises:
    ValueError: see `geometry.unit_rows`; or `image_of_text` is not [texts] integers,
      points outside the images, or leaves an image without a caption.
  """
  image, text = geometry.unit_rows(image=image, text=text)
  owner = _checked_owner(image_of_text, len(image), len(text))
  # From here on texts are handled image by image: `grouped` holds their real indices.
  grouped = np.argsort(owner, kind="stable")
  owner = owner[grouped]
  first_text = np.searchsorted(owner, np.arange(len(image) + 1))
  blocks = list(_blocks(first_text, tile_bytes))
  image_index = np.arange(len(image))
  texts, images = _Queries.none_asked(len(text)), _Queries.none_asked(len(image))

  def count(scores: np.ndarray, rows: _Block, columns: _Block) -> None:
    texts.count(columns.texts, scores.T, image_index[rows.images])
    images.count(rows.images, scores, grouped[columns.texts])

  for block in blocks:
    scores = image[block.images] @ text[grouped[block.texts]].T
    row = owner[block.texts] - block.images.start
    matched = scores[row, np.arange(len(row))]
    texts.ask(block.texts, matched, owner[block.texts])
    starts = first_text[block.images] - block.texts.start
    best = np.maximum.reduceat(matched, starts)
    # Of equally good captions the one with the lowest index stands first.
    tied_best = np.where(matched == best[row], grouped[block.texts], len(text))
    images.ask(block.images, best, np.minimum.reduceat(tied_best, starts))
    count(scores, block, block)

  for columns in blocks:
    column_text = text[grouped[columns.texts]]
    for rows in blocks:
      if rows is not columns:
        count(image[rows.images] @ column_text.T, rows, columns)

  image_ranks = np.empty_like(texts.ahead)
  image_ranks[grouped] = texts.ahead + 1
  return image_ranks, images.ahead + 1


def count_ahead(
  scores: np.ndarray,
  candidates: np.ndarray,
  answer_scores: np.ndarray,
  answers: np.ndarray,
) -> np.ndarray:
  """Counts, per query, the candidates that a stable sort puts before the answer.

  Args:
    scores: [queries, candidates].
    candidates: [candidates] integers, the index of each candidate.
    answer_scores: [queries], taken from the same product as `scores`, since a tie must
      be exact to be seen.
    answers: [queries] integers, the index of each right answer.

  Returns:
    [queries] integers: candidates with a higher score, or with the same score and a
    lower index.
  """
  ahead = np.count_nonzero(scores > answer_scores[:, None], axis=1)
  tied = scores == answer_scores[:, None]
  # Ties are rare: most tiles are spared the comparison of indices.
  if tied.any():
    tied &= candidates < answers[:, None]
    ahead += np.count_nonzero(tied, axis=1)
  return ahead


@dataclasses.dataclass(frozen=True)
class _Queries:
  """The queries of one direction: the answer sought, and the candidates before it."""

  score: np.ndarray  # [queries] float32, the score of the right answer
  answer: np.ndarray  # [queries] its index among all candidates
  ahead: np.ndarray  # [queries] the candidates counted so far

  @classmethod
  def none_asked(cls, count: int) -> Self:
    return cls(
      score=np.full(count, np.nan, np.float32),
      answer=np.full(count, -1),
      ahead=np.zeros(count, np.int64),
    )

  def ask(self, queries: slice, score: np.ndarray, answer: np.ndarray) -> None:
    self.score[queries] = score
    self.answer[queries] = answer

  def count(self, queries: slice, scores: np.ndarray, candidates: np.ndarray) -> None:
    self.ahead[queries] += count_ahead(
      scores, candidates, self.score[queries], self.answer[queries]
    )


class _Block(NamedTuple):
  """A run of images together with all their captions."""

  images: slice
  texts: slice


def _blocks(first_text: np.ndarray, tile_bytes: int) -> Iterator[_Block]:
  """Cuts the images into runs, any two of which span a tile that fits the budget.

  `first_text` [images + 1] is where each image's captions begin, and the end of all.
  """
  images, texts = len(first_text) - 1, first_text[-1]
  # Tiles keep the shape of the whole score matrix, so both operands are cut alike.
  max_images = max(1, int((tile_bytes / 4 * images / texts) ** 0.5))
  max_texts = max_images * texts / images
  start = 0
  while start < images:
    within = np.searchsorted(first_text, first_text[start] + max_texts, side="right") - 1
    stop = min(max(int(within), start + 1), start + max_images, images)
    yield _Block(slice(start, stop), slice(first_text[start], first_text[stop]))
    start = stop


def _checked_owner(image_of_text: npt.ArrayLike, images: int, texts: int) -> np.ndarray:
  owner = geometry.integers("image_of_text", image_of_text, texts, "text")
  outside = np.flatnonzero((owner < 0) | (owner >= images))
  if outside.size:
    raise ValueError(
      f"image_of_text: expected indices from 0 to {images - 1} for {images} images, got "
      f"{owner[outside[0]]} for text {outside[0]}"
    )
  silent = np.flatnonzero(np.bincount(owner, minlength=images) == 0)
  if silent.size:
    raise ValueError(
      f"expected a caption for each of {images} images, but {silent.size} have none, the "
      f"first is image {silent[0]}: leave these images out"
    )
  return owner


def _summary(direction: str, ranks: np.ndarray) -> dict[str, float]:
  return {
    **{f"{direction}_recall@{k}": float(np.mean(ranks <= k)) for k in RECALL_AT},
    f"{direction}_median_rank": float(np.median(ranks)),
    f"{direction}_mean_rank": float(np.mean(ranks)),
  }
