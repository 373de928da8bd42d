"""Weights from and to other tools: `read`, `write_transformers`, `write_open_clip`."""

from rankclip_jax.interop.exporting import write_open_clip, write_transformers
from rankclip_jax.interop.importing import Weights, read
from rankclip_jax.interop.model_card import Card

__all__ = ["Card", "Weights", "read", "write_open_clip", "write_transformers"]
