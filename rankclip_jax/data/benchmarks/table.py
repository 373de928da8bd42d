"""The data sets of the evaluation: what each is called, where, and how it is scored.

Names are CLIP_benchmark's. What it cannot open (two variants of ImageNetV2, the built-in
set) is named alike.
"""

import dataclasses
import difflib
import re
from typing import Literal

Task = Literal["classification", "retrieval"]
# CLIP_benchmark's names; "recall" are both directions of retrieval at 1, 5 and 10.
Metric = Literal["acc1", "mean_per_class_recall", "recall"]
Split = Literal["train", "val", "trainval", "test"]

BUILT_IN = "openmoji"


@dataclasses.dataclass(frozen=True)
class Splits:
  """What TFDS calls the splits; "" is one that the data set does not have.

  Attributes:
    train: without the validation examples, where those are apart.
    val: on which hyperparameters are chosen.
    test: which the field reports.
  """

  train: str = "train"
  val: str = ""
  test: str = "test"


_ONLY_TEST = Splits(train="")


@dataclasses.dataclass(frozen=True)
class Benchmark:
  """A data set of the evaluation.

  Attributes:
    name: as CLIP_benchmark spells it.
    title: for tables and figures.
    test_examples: of the whole test split, 0 where that is not fixed.
    tfds: TFDS's `NAME[/CONFIG]`; "" where TFDS lacks it, which then is read from
      CLIP_benchmark's webdataset layout or a folder of class folders.
    splits: of TFDS.
    task: "classification" or "retrieval".
    metric: which the field reports (CLIP, Radford et al. 2021, appendix A.1).
    label: TFDS's feature with the class; for retrieval, with the captions.
    names: the file of class names in `names/`.
    subset: the file in `subsets/` with the labels that are evaluated; "" is all.
    templates: the file of prompts in `templates/`.
    duplicates: class names that OpenAI's list is known to have twice.
    aliases: other names that mean this set.
  """

  name: str
  title: str
  test_examples: int = 0
  tfds: str = ""
  splits: Splits = Splits()
  task: Task = "classification"
  metric: Metric = "acc1"
  label: str = "label"
  names: str = ""
  subset: str = ""
  templates: str = ""
  duplicates: tuple[str, ...] = ()
  aliases: tuple[str, ...] = ()

  @property
  def built_in(self) -> bool:
    """Whether it comes with this project's requirements."""
    return self.name.partition("/")[0] == BUILT_IN


def _imagenet(
  name: str, title: str, test_examples: int, tfds: str, **others
) -> Benchmark:
  options = {
    "splits": _ONLY_TEST,
    "names": "imagenet1k",
    "templates": "imagenet1k",
    "duplicates": ("missile", "sunglasses"),
  }
  return Benchmark(name, title, test_examples, tfds, **(options | others))


_SETS = (
  _imagenet(
    "imagenet1k", "ImageNet-1K", 50_000, "imagenet2012",
    splits=Splits(test="validation"),
    aliases=("imagenet", "imagenet1k-unverified"),
  ),
  _imagenet(
    "imagenetv2", "ImageNetV2 (matched frequency)", 10_000,
    "imagenet_v2/matched-frequency",
    aliases=("imagenetv2/matched-frequency", "imagenet_v2"),
  ),
  _imagenet(
    "imagenetv2/threshold-0.7", "ImageNetV2 (threshold 0.7)", 10_000,
    "imagenet_v2/threshold-0.7",
  ),
  _imagenet(
    "imagenetv2/top-images", "ImageNetV2 (top images)", 10_000, "imagenet_v2/topimages",
  ),
  _imagenet("imagenet_sketch", "ImageNet-Sketch", 50_889, "imagenet_sketch"),
  _imagenet(
    "imagenet-a", "ImageNet-A", 7_500, "imagenet_a", subset="imagenet-a",
  ),
  _imagenet(
    "imagenet-r", "ImageNet-R", 30_000, "imagenet_r", subset="imagenet-r",
  ),
  Benchmark(
    "vtab/cifar10", "CIFAR-10", 10_000, "cifar10", names="cifar10", templates="cifar",
  ),
  Benchmark(
    "vtab/cifar100", "CIFAR-100", 10_000, "cifar100", names="cifar100", templates="cifar",
  ),
  Benchmark(
    "vtab/caltech101", "Caltech-101", 6_084, "caltech101",
    metric="mean_per_class_recall", names="caltech101", templates="caltech101",
  ),
  Benchmark(
    "vtab/dtd", "DTD", 1_880, "dtd", Splits(val="validation"),
    names="dtd", templates="dtd",
  ),
  Benchmark(
    "fgvc_aircraft", "FGVC-Aircraft", 3_333,
    metric="mean_per_class_recall", names="fgvc_aircraft", templates="fgvc_aircraft",
  ),
  Benchmark(
    "vtab/flowers", "Flowers-102", 6_149, "oxford_flowers102", Splits(val="validation"),
    metric="mean_per_class_recall", names="flowers", templates="flowers",
  ),
  Benchmark(
    "food101", "Food-101", 25_250, "food101", Splits(test="validation"),
    names="food101", templates="food101", aliases=("vtab/food101",),
  ),
  Benchmark("gtsrb", "GTSRB", 12_630, names="gtsrb", templates="gtsrb"),
  Benchmark(
    "vtab/pets", "Oxford-IIIT Pet", 3_669, "oxford_iiit_pet",
    metric="mean_per_class_recall", names="pets", templates="pets",
  ),
  Benchmark(
    "renderedsst2", "Rendered SST-2", 1_821,
    names="renderedsst2", templates="renderedsst2", aliases=("sst2",),
  ),
  Benchmark(
    "cars", "Stanford Cars", 8_041, "cars196",
    names="cars", templates="cars", aliases=("vtab/cars", "stanford_cars"),
  ),
  Benchmark("stl10", "STL-10", 8_000, "stl10", names="stl10", templates="stl10"),
  Benchmark(
    "vtab/svhn", "SVHN", 26_032, "svhn_cropped", names="svhn", templates="svhn",
  ),
  Benchmark(
    "tfds/fashion_mnist", "Fashion-MNIST", 10_000, "fashion_mnist",
    names="fashion_mnist", templates="imagenet1k",
  ),
  Benchmark(
    "mscoco_captions", "MS-COCO (Karpathy's 5K test)", 5_000, "coco_captions",
    Splits(val="val"), "retrieval", "recall", label="captions", aliases=("mscoco",),
  ),
  Benchmark(
    "flickr30k", "Flickr30K (1K test)", 1_000,
    task="retrieval", metric="recall", label="captions",
  ),
  Benchmark(BUILT_IN, "OpenMoji", task="retrieval", metric="recall"),
  Benchmark(f"{BUILT_IN}/skin_tone", "OpenMoji: skin tone"),
  Benchmark(f"{BUILT_IN}/gender", "OpenMoji: gender"),
  Benchmark(f"{BUILT_IN}/kind", "OpenMoji: kind"),
)  # fmt: skip

BENCHMARKS = {benchmark.name: benchmark for benchmark in _SETS}


def _aliases(benchmark: Benchmark) -> set[str]:
  """Also TFDS's name, and the name without a prefix or with one of CLIP_benchmark's."""
  name = benchmark.name
  short = name.removeprefix("vtab/").removeprefix("tfds/")
  more = {benchmark.tfds, f"tfds/{benchmark.tfds}"} if benchmark.tfds else set()
  return {name, short, f"wds/{name}", f"wds/{short}", *benchmark.aliases} | more


def _plain(name: str) -> str:
  """Without what people spell one way or the other: CIFAR10, cifar-10, cifar_10."""
  return re.sub(r"[-_/ ]", "", name.lower())


# Sorted: sets of strings have another order in every process.
_BY_ALIAS = {alias: one for one in _SETS for alias in sorted(_aliases(one))}
_BY_PLAIN = {_plain(alias): one for alias, one in _BY_ALIAS.items()}


def find(name: str) -> Benchmark:
  """The data set that a name or an alias means.

  Raises:
    ValueError: if it means none; says which names are nearest.
  """
  plain = _plain(name)
  if plain in _BY_PLAIN:
    return _BY_PLAIN[plain]
  close = difflib.get_close_matches(name.lower(), _BY_ALIAS, n=3)
  hint = (
    f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(BENCHMARKS)}"
  )
  raise ValueError(
    f"expected a data set of the evaluation, or a folder with one, got {name!r}; {hint}"
  )


def by_file_name(name: str) -> Benchmark | None:
  """The data set whose results' files begin with this name; None for none."""
  return {one.name.replace("/", "-"): one for one in _SETS}.get(name)
