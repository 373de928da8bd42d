"""The sections with held-out pictures: retrieval, the map of embeddings, neighbours."""

from collections.abc import Sequence

import numpy as np

from rankclip_jax.report import maps, markup, ranking
from rankclip_jax.report.embeddings import Embeddings
from rankclip_jax.report.run import Run

TEXT_QUERIES = 12
IMAGE_QUERIES = 6
RETRIEVED = 10
NEIGHBOUR_QUERIES = 6
NEIGHBOURS = 8

# The runs that have embeddings, by their place in the list of all runs.
_Embedded = dict[int, Embeddings]


def sections(runs: Sequence[Run]) -> str:
  """The sections that need held-out embeddings, or one that says what is missing."""
  embedded = {place: run.embeddings for place, run in enumerate(runs) if run.embeddings}
  missing = "".join(markup.absent(run, "embeddings") for run in runs)
  shared = _shared_keys(list(embedded.values()))
  if embedded and not shared:
    missing += (
      '<p class="absent">The runs were evaluated on held-out sets with no picture in'
      " common: there is no query to show for all of them.</p>"
    )
  if not shared and not missing:
    return ""
  if not shared:
    return markup.section("pictures", "Retrieval in pictures", "", missing)
  thumbnails = markup.Thumbnails()
  return (
    _text_to_image(runs, embedded, shared, missing, thumbnails)
    + _image_to_text(runs, embedded, shared, thumbnails)
    + maps.section(runs, embedded)
    + _neighbour_section(runs, embedded, shared, thumbnails)
  )


def _shared_keys(embedded: Sequence[Embeddings]) -> list[str]:
  """The keys that every run has embedded, so that all runs get the same queries."""
  if not embedded:
    return []
  others = [item.index_of_key.keys() for item in embedded[1:]]
  return [key for key in embedded[0].keys if all(key in keys for keys in others)]


def _text_to_image(
  runs: Sequence[Run],
  embedded: _Embedded,
  shared: Sequence[str],
  missing: str,
  thumbnails: markup.Thumbnails,
) -> str:
  keys = ranking.choose(shared, TEXT_QUERIES, "text to image")
  queries = "".join(_text_query(runs, embedded, key, thumbnails) for key in keys)
  sizes = " and ".join(sorted({f"{len(e.keys):,}" for e in embedded.values()}))
  lead = (
    f"A caption, its own picture at the left, and the {RETRIEVED} nearest of {sizes}"
    " held-out pictures, nearest first; the right one is framed in green. The queries"
    " are not picked by hand: they are the held-out items whose key has the smallest"
    " sha256, whatever the runs make of them."
  )
  return markup.section("text-to-image", "Text → image", lead, missing + queries)


def _text_query(
  runs: Sequence[Run], embedded: _Embedded, key: str, thumbnails: markup.Thumbnails
) -> str:
  rows = []
  for place, items in embedded.items():
    right = items.index_of_key[key]
    scores = items.image @ items.text[items.main_text[right]]
    hits = "".join(
      f'<li class="{"right" if image == right else "other"}"'
      f' data-key="{markup.escape(items.keys[image])}">'
      + thumbnails(
        items.thumbnails[image],
        f"{items.main_caption(image)} ({markup.fixed(float(scores[image]), 2)})",
      )
      + "</li>"
      for image in ranking.top(scores, RETRIEVED)
    )
    found = _found_at(ranking.rank(scores, right), len(items.keys))
    rows.append(_row(runs, place, found, f'<ol class="hits">{hits}</ol>'))
  return _query(next(iter(embedded.values())), key, "".join(rows), thumbnails)


def _image_to_text(
  runs: Sequence[Run],
  embedded: _Embedded,
  shared: Sequence[str],
  thumbnails: markup.Thumbnails,
) -> str:
  keys = ranking.choose(shared, IMAGE_QUERIES, "image to text")
  queries = "".join(_image_query(runs, embedded, key, thumbnails) for key in keys)
  lead = (
    f"A picture and its {RETRIEVED} nearest captions with their cosine; those of the"
    " picture itself are bold and ticked. The pictures are chosen in the same way."
  )
  return markup.section("image-to-text", "Image → text", lead, queries)


def _image_query(
  runs: Sequence[Run], embedded: _Embedded, key: str, thumbnails: markup.Thumbnails
) -> str:
  columns = []
  for place, items in embedded.items():
    picture = items.index_of_key[key]
    scores = items.text @ items.image[picture]
    captions = "".join(
      _caption(items.captions[text], scores[text], items.image_of_text[text] == picture)
      for text in ranking.top(scores, RETRIEVED)
    )
    right = np.flatnonzero(items.image_of_text == picture)
    rank = min(ranking.rank(scores, int(text)) for text in right)
    found = _found_at(rank, len(items.captions))
    columns.append(_row(runs, place, found, f'<ol class="captions">{captions}</ol>'))
  body = f'<div class="columns">{"".join(columns)}</div>'
  return _query(next(iter(embedded.values())), key, body, thumbnails)


def _caption(caption: str, score: float, right: bool) -> str:
  text = f'<span dir="auto">{markup.escape(caption)}</span>'
  if right:
    text = f"<b>{text} ✓</b>"
  css = "right" if right else "other"
  return f'<li class="{css}">{text}<small>{markup.fixed(score, 2)}</small></li>'


def _neighbour_section(
  runs: Sequence[Run],
  embedded: _Embedded,
  shared: Sequence[str],
  thumbnails: markup.Thumbnails,
) -> str:
  count = min(NEIGHBOURS, *(len(items.keys) - 1 for items in embedded.values()))
  lead = (
    f"For a picture, its {count} nearest other pictures by image embedding, and by the"
    " text embedding of their main captions: the in-modal term asks that the two"
    " rankings agree. A dot marks the pictures that are in both. The pictures are"
    " chosen in the same way."
  )
  if count == 0:
    body = '<p class="absent">One held-out picture has no neighbours.</p>'
    return markup.section("neighbours", "In-modal neighbours", lead, body)
  keys = ranking.choose(shared, NEIGHBOUR_QUERIES, "neighbours")
  means = " ".join(
    f'<p class="note">{markup.run_label(runs, place)} shares'
    f" <b>{_mean_overlap(items, count):.2f}</b> of {count} neighbours, the mean over all"
    f" {len(items.keys):,} held-out pictures (chance"
    f" {count * count / (len(items.keys) - 1):.2f}).</p>"
    for place, items in embedded.items()
  )
  rows = "".join(_neighbours(runs, embedded, key, count, thumbnails) for key in keys)
  return markup.section("neighbours", "In-modal neighbours", lead, means + rows)


def _mean_overlap(items: Embeddings, count: int) -> float:
  by_image, by_text = _nearest(items, np.arange(len(items.keys)), count)
  return float(ranking.overlap(by_image, by_text).mean())


def _nearest(
  items: Embeddings, rows: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
  """The nearest pictures by image and by main caption, each [rows, count]."""
  by_image = ranking.neighbours(items.image, rows, count)
  return by_image, ranking.neighbours(items.text[items.main_text], rows, count)


def _neighbours(
  runs: Sequence[Run],
  embedded: _Embedded,
  key: str,
  count: int,
  thumbnails: markup.Thumbnails,
) -> str:
  rows = []
  for place, items in embedded.items():
    row = np.array([items.index_of_key[key]])
    by_image, by_text = _nearest(items, row, count)
    both = set(by_image[0]) & set(by_text[0])
    for title, found in (("by image", by_image[0]), ("by caption", by_text[0])):
      hits = "".join(
        f'<li class="{"both" if image in both else "other"}"'
        f' data-key="{markup.escape(items.keys[image])}">'
        + thumbnails(items.thumbnails[image], items.main_caption(image))
        + "</li>"
        for image in found
      )
      note = f"{title}, overlap {len(both)}/{count}"
      rows.append(_row(runs, place, note, f'<ol class="hits near">{hits}</ol>'))
  return _query(next(iter(embedded.values())), key, "".join(rows), thumbnails)


def _query(items: Embeddings, key: str, body: str, thumbnails: markup.Thumbnails) -> str:
  """A query: its own picture and main caption at the left, `body` at the right."""
  image = items.index_of_key[key]
  caption = items.main_caption(image)
  return (
    f'<article class="query" data-key="{markup.escape(key)}"><div class="own">'
    f"{thumbnails(items.thumbnails[image], caption)}"
    f'<p dir="auto">{markup.escape(caption)}</p></div><div>{body}</div></article>\n'
  )


def _row(runs: Sequence[Run], place: int, note: str, body: str) -> str:
  """What one run makes of a query; the run is named where there are several."""
  label = markup.run_label(runs, place) if len(runs) > 1 else ""
  return (
    f'<div class="row" data-run="{place}"><p class="who">{label}'
    f"<small>{note}</small></p>{body}</div>"
  )


def _found_at(rank: int, size: int) -> str:
  return f"rank {rank:,} of {size:,}"
