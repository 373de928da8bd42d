"""Where panels lie in a workdir, and how they get there whole."""

import pathlib

from PIL import Image

from rankclip_jax.evals import results


def folder(workdir: pathlib.Path, name: str) -> pathlib.Path:
  """The folder of this name in a workdir, made if it is missing.

  Raises:
    ValueError: if there is a file of that name.
  """
  path = workdir / name
  if path.exists() and not path.is_dir():
    raise ValueError(
      f"{path} is a file, and panels go to a folder of that name; move it."
    )
  path.mkdir(exist_ok=True)
  return path


def save(picture: Image.Image, path: pathlib.Path) -> None:
  """Writes a PNG at once: a reader, such as the report, sees the old or the new one."""
  with results.replacing(path) as temporary:
    picture.save(temporary, format="PNG")
