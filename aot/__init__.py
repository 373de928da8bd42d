"""Compiling this project for accelerators that are not here, and reading the answer."""
