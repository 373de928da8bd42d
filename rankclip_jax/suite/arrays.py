"""Named arrays in files: written at once, and read only where they are whole."""

import logging
import pathlib
import zipfile
import zlib
from collections.abc import Mapping, Sequence

import numpy as np

from rankclip_jax.evals import results

# What numpy raises for a file that is cut short, or was changed.
_DAMAGE = (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error)

log = logging.getLogger(__name__)


def write(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
  """Writes a .npz; a reader sees the old one or the new one whole."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with results.replacing(path) as temporary, temporary.open("wb") as file:
    np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]


def read(path: pathlib.Path, names: Sequence[str]) -> dict[str, np.ndarray] | None:
  """These arrays of a .npz; None, with a warning, for a damaged one, and for none."""
  try:
    # Opened here: np.load leaves a file open that turns out to be broken.
    with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
      return {name: stored[name] for name in names}
  except FileNotFoundError:
    return None
  except _DAMAGE as error:
    log.warning("%s is damaged and is made again: %s", path, error)
    return None
