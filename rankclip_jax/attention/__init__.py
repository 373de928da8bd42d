"""Where in pictures a model finds captions and their words, drawn."""

from rankclip_jax.attention.mapping import run

__all__ = ["run"]
