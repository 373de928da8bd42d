"""What `--config.mode=search` is asked for: texts and pictures, and names for them."""

import dataclasses
import os
import pathlib
import re

from rankclip_jax import start
from rankclip_jax.config import SearchConfig
from rankclip_jax.search import embedding

_NAME_LENGTH = 60  # characters of a panel's file name


@dataclasses.dataclass(frozen=True)
class Query:
  """A text, or a picture where there is a path of one; `name` is for files."""

  text: str
  picture: pathlib.Path | None
  name: str


def asked(settings: SearchConfig) -> list[Query]:
  """All queries of the config, those of the file last; no two have the same name.

  Raises:
    ValueError: if there is none, one is empty, or one is a picture that is not there.
  """
  texts = (
    [t.strip() for t in settings.query.split("::")] if settings.query.strip() else []
  )
  if not all(texts):
    raise ValueError(
      f"config.search.query={settings.query!r} has an empty query between its ::."
    )
  if settings.queries:
    file = start.path_of(settings.queries)
    texts += embedding.read_texts(file, "config.search.queries")
  if not texts:
    raise ValueError(
      "There is no query; give --config.search.query=TEXT or the path of a picture, or "
      "several, one a line, by --config.search.queries=FILE."
    )
  pictures = [_picture_of(text) for text in texts]
  stems = [p.stem if p else t for t, p in zip(texts, pictures, strict=True)]
  names = distinct([file_name(stem) for stem in stems])
  return [Query(*each) for each in zip(texts, pictures, names, strict=True)]


def file_name(text: str) -> str:
  """The letters and digits of a text, as the name of a file."""
  words = re.findall(r"\w+", embedding.printable(text))
  return "-".join(words)[:_NAME_LENGTH] or "query"


def distinct(names: list[str]) -> list[str]:
  """The same names, with a number where one comes again, whatever the case."""
  out, taken = [], set()
  for name in names:
    free, number = name, 2
    while free.lower() in taken:
      free, number = f"{name}-{number}", number + 1
    taken.add(free.lower())
    out.append(free)
  return out


def _picture_of(query: str) -> pathlib.Path | None:
  """The query as a path, if it is one; None for a text."""
  path = os.path.expanduser(query)
  if os.path.isfile(path):
    return pathlib.Path(path)
  if path.lower().endswith(embedding.SUFFIXES):
    raise ValueError(
      f"The query {query} ends like a picture, and there is no such file; give the path "
      "of one, or a text."
    )
  return None
