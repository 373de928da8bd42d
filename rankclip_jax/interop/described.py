"""What a model's config files say of it, whoever wrote them."""

import dataclasses
import math
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from rankclip_jax.interop.architecture import Fact
from rankclip_jax.models.layers import Activation
from rankclip_jax.models.sizes import CLIP_MEAN, CLIP_STD

# In the words of open_clip; the size of pictures is the model's.
CLIP_PREPROCESSING: Mapping[str, Any] = {
  "mean": list(CLIP_MEAN),
  "std": list(CLIP_STD),
  "interpolation": "bicubic",
  "resize_mode": "shortest",
}
_CHOICES = {
  "interpolation": ("bicubic", "bilinear", "lanczos", "nearest"),
  "resize_mode": ("shortest", "squash", "longest"),
}
_SMALLEST, _LARGEST = 1e-6, 1e6  # of a standard deviation; of any mean


@dataclasses.dataclass(frozen=True)
class Described:
  """A config file's statements.

  Attributes:
    file: the config.
    stated: by the names of `architecture.facts`, the config's key and its value.
    vision_heads: of attention in the image tower.
    text_heads: of attention in the text tower.
    activation: of all MLPs.
    preprocessing: see `preprocessing_facts`.
    bias_key: the config's key for a bias of the logits, if it has one.
  """

  file: pathlib.Path
  stated: Mapping[str, tuple[str, Any]]
  vision_heads: int
  text_heads: int
  activation: Activation
  preprocessing: Mapping[str, Any]
  bias_key: str | None = None

  def contradictions(self, found: Mapping[str, Fact], has_bias: bool) -> list[str]:
    """Where the weights tell otherwise: the key, its value, and the tensor."""
    wrong = [
      f"{key} is {value!r}, but {fact.name} of shape {list(fact.shape)} says {fact.value}"
      for name, fact in found.items()
      for key, value in [self.stated[name]]
      if value != fact.value
    ]
    if self.bias_key and not has_bias:
      wrong.append(f"{self.bias_key} is set, but there is no tensor logit_bias")
    if has_bias and not self.bias_key:
      wrong.append("there is a tensor logit_bias, but no init_logit_bias")
    return wrong


def preprocessing_facts(
  given: Mapping[str, tuple[str, Any]], file: pathlib.Path
) -> dict[str, Any]:
  """How pictures are prepared, in open_clip's words: CLIP's way, but for what is given.

  Args:
    given: by keys of `CLIP_PREPROCESSING`, the config's key and its value, None for none.
    file: the config.

  Raises:
    ValueError: for a value that cannot be, naming the file and the key.
  """
  facts = dict(CLIP_PREPROCESSING)
  for name, (key, value) in given.items():
    if value is None:
      continue
    if name in _CHOICES:
      if value not in _CHOICES[name]:
        raise ValueError(
          f"{file}: {key} is {value!r}; it must be one of {', '.join(_CHOICES[name])}."
        )
      facts[name] = value
      continue
    least = _SMALLEST if name == "std" else -_LARGEST
    fits = isinstance(value, list) and len(value) == 3
    if not fits or not all(is_number(x) and least <= x <= _LARGEST for x in value):
      raise ValueError(
        f"{file}: {key} must be three numbers from {least:g} to {_LARGEST:g}, the {name} "
        f"of pictures on a scale of 0 to 1; got {value!r}."
      )
    facts[name] = [float(x) for x in value]
  return facts


def is_number(value: Any) -> bool:
  """Whether this of JSON is a finite number, which true and false are not."""
  return type(value) in (int, float) and abs(value) < math.inf  # nor is NaN


def is_whole(value: Any) -> bool:
  """Whether this of JSON is a whole number above 0."""
  return type(value) is int and value > 0


def check_boolean(value: Any, key: str, file: pathlib.Path) -> bool:
  """`value`; a ValueError unless it is true or false."""
  if not isinstance(value, bool):
    raise ValueError(f"{file}: {key} must be true or false, got {value!r}.")
  return value


def section(config: Mapping[str, Any], key: str, file: pathlib.Path) -> dict[str, Any]:
  """The object under `key`; a ValueError if there is none."""
  value = config.get(key)
  if not isinstance(value, dict):
    raise ValueError(f"{file} should have an object {key!r}, got {value!r}.")
  return value


def square(value: Any, key: str, file: pathlib.Path) -> int:
  """One side of a size that may be given as a pair; a ValueError if the two differ."""
  sides = value if isinstance(value, list) else [value, value]
  if len(sides) != 2 or sides[0] != sides[1] or not is_whole(sides[0]):
    raise ValueError(f"{file}: {key} is {value!r}; only square ones are supported.")
  return sides[0]


def check_whole(
  options: Mapping[str, Any], keys: Iterable[str], part: str, file: pathlib.Path
) -> None:
  """Raises a ValueError unless all these options are whole numbers above 0."""
  for key in keys:
    if not is_whole(options[key]):
      raise ValueError(
        f"{file}: {part}.{key} must be a whole number above 0, got {options[key]!r}."
      )


def heads(width: int, per: Any, key: str, file: pathlib.Path) -> int:
  """`width` divided by `per`; a ValueError unless that is a whole number above 0."""
  if not is_whole(per) or width % per:
    raise ValueError(f"{file}: {key} is {per!r}, which does not divide {width}.")
  return width // per
