"""PyTorch peers, importable without CUDA.

PyPI's torchvision is built for CUDA: beside a CPU build of PyTorch its compiled operators
(boxes, video) are missing and importing it fails when it describes them. open_clip needs
only its picture transforms, so the descriptions are left out.
"""

import sys
import types
import warnings

import pytest

if sys.version_info >= (3, 12):  # where they are not pinned; a missing one is no error
  pytest.importorskip("torch")

with warnings.catch_warnings():
  warnings.simplefilter("ignore")  # of imports within the peers
  import torch

  sys.modules.setdefault(
    "torchvision._meta_registrations",
    types.ModuleType("torchvision._meta_registrations"),
  )
  import open_clip
  import transformers

__all__ = ["open_clip", "torch", "transformers"]
