"""A model on the field's data sets, by name: `run` is mode=eval with eval.datasets."""

from rankclip_jax.suite.measuring import run as run
from rankclip_jax.suite.merge import merge as merge
