"""What a model's config files say of it, whoever wrote them."""

import dataclasses
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from rankclip_jax.interop.architecture import Fact
from rankclip_jax.models.layers import Activation
from rankclip_jax.models.sizes import CLIP_MEAN, CLIP_STD


@dataclasses.dataclass(frozen=True)
class Described:
  """A config file's statements.

  Attributes:
    file: the config.
    stated: by the names of `architecture.facts`, the config's key and its value.
    vision_heads: of attention in the image tower.
    text_heads: of attention in the text tower.
    activation: of all MLPs.
    preprocessing: see `preprocessing_facts`; without the size of pictures.
    bias_key: the config's key for a bias of the logits, if it has one.
  """

  file: pathlib.Path
  stated: Mapping[str, tuple[str, Any]]
  vision_heads: int
  text_heads: int
  activation: Activation
  preprocessing: Mapping[str, Any]
  bias_key: str | None = None

  def check(self, found: Mapping[str, Fact], has_bias: bool) -> None:
    """Compares the statements with what the weights tell.

    Raises:
      ValueError: that names the key, its value, and the weight that contradicts.
    """
    wrong = [
      f"{key} is {value}, but {fact.name} of shape {list(fact.shape)} says {fact.value}"
      for name, fact in found.items()
      for key, value in [self.stated[name]]
      if value != fact.value
    ]
    if self.bias_key and not has_bias:
      wrong.append(f"{self.bias_key} is set, but there is no tensor logit_bias")
    if has_bias and not self.bias_key:
      wrong.append("there is a tensor logit_bias, but no init_logit_bias")
    if wrong:
      raise ValueError(
        f"{self.file} does not describe the weights beside it: {'; '.join(wrong)}. "
        "Put the config of this very model there."
      )


def preprocessing_facts(
  mean: Any = CLIP_MEAN,
  std: Any = CLIP_STD,
  interpolation: str = "bicubic",
  resize_mode: str = "shortest",
) -> dict[str, Any]:
  """How pictures are prepared, in open_clip's words; the defaults are CLIP's.

  Raises:
    ValueError: if `mean` or `std` are not three numbers.
  """
  for name, value in (("mean", mean), ("std", std)):
    if not isinstance(value, list | tuple) or len(value) != 3:
      raise ValueError(
        f"The {name} of pictures must be three numbers, got {value!r}; correct it in the "
        "config of the preprocessing."
      )
  return {
    "mean": [float(x) for x in mean],
    "std": [float(x) for x in std],
    "interpolation": interpolation,
    "resize_mode": resize_mode,
  }


def section(config: Mapping[str, Any], key: str, file: pathlib.Path) -> dict[str, Any]:
  """The object under `key`; a ValueError if there is none."""
  value = config.get(key)
  if not isinstance(value, dict):
    raise ValueError(f"{file} should have an object {key!r}, got {value!r}.")
  return value


def square(value: Any, key: str, file: pathlib.Path) -> int:
  """One side of a size that may be given as a pair; a ValueError if the two differ."""
  sides = value if isinstance(value, list) else [value, value]
  if len(sides) != 2 or sides[0] != sides[1] or not isinstance(sides[0], int):
    raise ValueError(f"{file}: {key} is {value!r}; only square ones are supported.")
  return sides[0]


def check_whole(
  options: Mapping[str, Any], keys: Iterable[str], part: str, file: pathlib.Path
) -> None:
  """Raises a ValueError unless all these options are whole numbers above 0."""
  for key in keys:
    if not isinstance(options[key], int) or options[key] < 1:
      raise ValueError(
        f"{file}: {part}.{key} must be a whole number above 0, got {options[key]!r}."
      )


def heads(width: int, per: Any, key: str, file: pathlib.Path) -> int:
  """`width` divided by `per`; a ValueError unless that is a whole number above 0."""
  if not isinstance(per, int) or per < 1 or width % per:
    raise ValueError(f"{file}: {key} is {per!r}, which does not divide {width}.")
  return width // per
