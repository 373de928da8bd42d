"""One static HTML page about a run, or about several side by side."""

from rankclip_jax.report.page import build

__all__ = ["build"]
