"""A folder of pictures as embeddings in a file, and the nearest of them to a query."""

from rankclip_jax.search.embedding import embed
from rankclip_jax.search.finding import search

__all__ = ["embed", "search"]
