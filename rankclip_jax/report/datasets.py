"""What the report knows of data sets by itself: their spellings, and their prompts.

The evaluation has the same in its own table, which other tools' results do not pass.
"""

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Known:
  """A data set of the field.

  Attributes:
    prompts: how many templates its ensemble has, 0 without any.
    aliases: other names, beside those without "vtab/" and with "tfds/" or "wds/".
  """

  prompts: int
  aliases: tuple[str, ...] = ()


# By CLIP_benchmark's names.
KNOWN: Mapping[str, Known] = {
  "imagenet1k": Known(80, ("imagenet", "imagenet1k-unverified", "imagenet2012")),
  "imagenetv2": Known(
    80,
    ("imagenet_v2", "imagenetv2/matched-frequency", "imagenet_v2/matched-frequency"),
  ),
  "imagenetv2/threshold-0.7": Known(80, ("imagenet_v2/threshold-0.7",)),
  "imagenetv2/top-images": Known(80, ("imagenet_v2/topimages",)),
  "imagenet_sketch": Known(80),
  "imagenet-a": Known(80, ("imagenet_a",)),
  "imagenet-r": Known(80, ("imagenet_r",)),
  "vtab/cifar10": Known(18),
  "vtab/cifar100": Known(18),
  "vtab/caltech101": Known(34),
  "vtab/dtd": Known(8),
  "vtab/flowers": Known(1, ("oxford_flowers102",)),
  "vtab/pets": Known(1, ("oxford_iiit_pet",)),
  "vtab/svhn": Known(6, ("svhn_cropped",)),
  "fgvc_aircraft": Known(2),
  "food101": Known(1),
  "gtsrb": Known(3),
  "renderedsst2": Known(1, ("rendered_sst2", "sst2")),
  "cars": Known(8, ("cars196", "stanford_cars")),
  "stl10": Known(2),
  "tfds/fashion_mnist": Known(80),
  "mscoco_captions": Known(0, ("mscoco", "coco_captions")),
  "flickr30k": Known(0),
}


def canonical(name: str) -> str:
  """A data set as CLIP_benchmark spells it; a name that is not known stays as it is."""
  return _BY_SHORT.get(_short(name), name)


def _short(name: str) -> str:
  """Without what says where a tool has it from."""
  return name.removeprefix("wds/").removeprefix("tfds/").removeprefix("vtab/")


_BY_SHORT = {
  _short(spelling): name
  for name, known in KNOWN.items()
  for spelling in (name, *known.aliases)
}
