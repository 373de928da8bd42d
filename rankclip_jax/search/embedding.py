"""`--config.mode=embed`: a folder of pictures and a file of texts to one `.npz`."""

import json
import os
import pathlib
import time

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from rankclip_jax import inference, start
from rankclip_jax.config import Config

DEFAULT = "embeddings.npz"
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")

_SHOWN = 5  # unreadable files on screen; all of them are in the file beside


def model_of(cfg: Config, workdir: pathlib.Path) -> inference.Model:
  """The model of the workdir if it was trained in, and else that of `init.weights`.

  Raises:
    ValueError: as `start.to_use`.
  """
  _, weights = start.to_use(cfg, workdir)
  return inference.Model(weights, batch_size=cfg.eval.batch_size)


def embed(cfg: Config, workdir: pathlib.Path) -> str:
  """Writes what `embed` of the config names; returns what is to be printed.

  The file holds `image` [pictures, dim] and `text` [texts, dim], float32 and of length
  1; `image_paths`, relative to `image_folder`; `texts`; `logit_scale`, the factor;
  `logit_bias`; `model`, the facts of the model as JSON, and its `source`. It appears
  complete or not at all.

  Raises:
    ValueError: if there is nothing to embed, no file can be read, or a text is empty.
  """
  began = time.monotonic()
  folder = start.path_of(cfg.embed.images)
  paths = pictures_below(folder) if cfg.embed.images else []
  texts = []
  if cfg.embed.texts:
    texts = read_texts(start.path_of(cfg.embed.texts), "config.embed.texts")
  if not paths and not texts:
    raise ValueError(
      "There is nothing to embed; give --config.embed.images=FOLDER, "
      "--config.embed.texts=FILE, or both."
    )
  output = start.path_of(cfg.embed.output or workdir / DEFAULT)
  if output.is_dir():
    raise ValueError(f"config.embed.output={output} is a folder; name a file in it.")
  output.parent.mkdir(parents=True, exist_ok=True)

  model = model_of(cfg, workdir)
  text = model.encode_text(
    texts
  )  # first: a model may be unable to, and pictures take long
  image, unreadable = _embed_pictures(model, folder, paths)
  side = output.with_suffix(".unreadable.txt")
  _note_unreadable(side, paths, unreadable)
  readable = [path for i, path in enumerate(paths) if i not in unreadable]
  if paths and not readable:
    raise ValueError(
      f"None of the {len(paths)} pictures below {folder} can be read; see {side}."
    )
  _write(
    output,
    image=image,
    text=text,
    image_paths=np.array(readable, str),
    image_folder=str(folder.resolve()) if paths else "",
    texts=np.array(texts, str),
    logit_scale=np.float32(model.logit_scale),
    logit_bias=np.float32(model.logit_bias),
    model=json.dumps(model.facts),
    source=model.source,
  )
  seconds = time.monotonic() - began
  return "\n".join(
    [
      *_shown(paths, unreadable, side),
      f"Embedded {len(readable):,} pictures and {len(texts):,} texts in {seconds:.1f} s "
      f"with {model.source}.",
      f"Embeddings: {output}",
    ]
  )


def pictures_below(folder: pathlib.Path) -> list[str]:
  """Paths of all pictures in a folder and its sub-folders, relative to it, sorted.

  Raises:
    ValueError: if there is no such folder, or no picture in it.
  """
  if not folder.is_dir():
    raise ValueError(f"config.embed.images={folder} is no folder; give one of pictures.")
  found = sorted(
    pathlib.Path(parent, name).relative_to(folder).as_posix()
    for parent, _, names in os.walk(folder)
    for name in names
    if name.lower().endswith(SUFFIXES)
  )
  if not found:
    raise ValueError(
      f"There is no picture below {folder}; looked for {', '.join(SUFFIXES)}."
    )
  return found


def read_texts(path: pathlib.Path, setting: str) -> list[str]:
  """The lines of a UTF-8 file.

  Args:
    path: of the file.
    setting: that names it, for errors.

  Raises:
    ValueError: if there is no such file, or no text in it; with its number, if a line is
      empty or not UTF-8.
  """
  if not path.is_file():
    raise ValueError(f"{setting}={path} is no file; give one text a line.")
  lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").removesuffix(b"\n").split(b"\n")
  if lines == [b""]:
    raise ValueError(f"{setting}={path} is empty; give one text a line.")
  texts = []
  for number, line in enumerate(lines, 1):
    try:
      texts.append(line.decode().strip())
    except UnicodeDecodeError as error:
      raise ValueError(
        f"{path}, line {number}: {error}; convert the file to UTF-8."
      ) from error
    if not texts[-1]:
      raise ValueError(f"{path}, line {number} is empty; every line must be a text.")
  return texts


def printable(text: str) -> str:
  """`text` for a terminal, also where it is the name of a file that is no UTF-8."""
  return text.encode(errors="backslashreplace").decode()


def _embed_pictures(
  model: inference.Model, folder: pathlib.Path, paths: list[str]
) -> tuple[np.ndarray, dict[int, str]]:
  """`Model.encode_readable`, with a bar on a terminal."""
  console = Console(soft_wrap=True)
  bar = Progress(
    "embedding",
    BarColumn(bar_width=20),
    MofNCompleteColumn(),
    TimeRemainingColumn(elapsed_when_finished=True),
    console=console,
    disable=not console.is_terminal,
  )
  with bar:
    task = bar.add_task("", total=len(paths))
    return model.encode_readable(
      [folder / path for path in paths], lambda count: bar.advance(task, count)
    )


def _note_unreadable(
  side: pathlib.Path, paths: list[str], unreadable: dict[int, str]
) -> None:
  """Writes which files could not be read and why; removes an older list if all could."""
  if not unreadable:
    side.unlink(missing_ok=True)
    return
  lines = [f"{paths[i]}\t{' '.join(why.split())}\n" for i, why in unreadable.items()]
  side.write_text("".join(lines), encoding="utf-8", errors="backslashreplace")


def _shown(paths: list[str], unreadable: dict[int, str], side: pathlib.Path) -> list[str]:
  """What is printed of the files that could not be read."""
  if not unreadable:
    return []
  some = [f"  {printable(paths[i])}" for i in list(unreadable)[:_SHOWN]]
  more = len(unreadable) - len(some)
  return [
    f"{len(unreadable):,} of {len(paths):,} files cannot be read and were left out "
    f"(why: {side}):",
    *some,
    *([f"  and {more:,} more"] if more else []),
  ]


def _write(output: pathlib.Path, **arrays: np.ndarray | np.float32 | str) -> None:
  temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
  try:
    with temporary.open("wb") as file:
      np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]
    temporary.replace(output)
  finally:
    temporary.unlink(missing_ok=True)
