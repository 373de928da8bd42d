"""Whether all processes run the same program: code, versions, config."""

import dataclasses
import hashlib
import importlib.metadata
import pathlib
from collections.abc import Sequence

from rankclip_jax.config import Config, leaves
from rankclip_jax.processes.roll_call import Present, named

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint")
# What hosts may have of their own: their index, their paths, and how busy their CPUs are.
# Whether different paths lead to the same data is compared when the data are open.
_OF_A_HOST = (
  "distributed.process_id",
  "data.train",
  "data.test",
  "data.tfds_dir",
  "data.num_threads",
  "data.num_workers",
  "data.prefetch",
  "eval.folder_dir",
  "init.weights",
)


def facts_of(cfg: Config) -> dict[str, str]:
  """By name, what must be the same in all processes."""
  fields = dict(leaves(dataclasses.asdict(cfg)))
  return {
    "rankclip_jax code": code_digest(),
    **{f"{name} version": importlib.metadata.version(name) for name in _PACKAGES},
    **{f"config.{k}": repr(v) for k, v in fields.items() if k not in _OF_A_HOST},
  }


def code_digest() -> str:
  """Of the package's files, whatever git says of them."""
  package = pathlib.Path(__file__).parents[1]
  digest = hashlib.sha256()
  for path in sorted(p for p in package.rglob("*") if p.suffix in (".py", ".cc")):
    digest.update(str(path.relative_to(package)).encode() + b"\0" + path.read_bytes())
  return digest.hexdigest()[:12]


def problem_of(everyone: Sequence[Present]) -> str:
  """Names what differs from process 0, how, and in which processes; "" if nothing does.

  The fact is `same`, as of `facts_of`.
  """
  first = everyone[0].facts["same"]
  names = dict.fromkeys(name for one in everyone for name in one.facts["same"])
  differences = []
  for name in names:
    wanted, others = first.get(name), {}
    for one in everyone:
      if (value := one.facts["same"].get(name)) != wanted:
        others.setdefault(value, []).append(one.index)
    differences += [
      f"{named(who)} {'have' if who[1:] else 'has'} {name} {value}, process 0 {wanted}"
      for value, who in others.items()
    ]
  if not differences:
    return ""
  more = f"; and {len(differences) - 3} more" if len(differences) > 3 else ""
  return (
    f"The processes are not alike: {'; '.join(differences[:3])}{more}. Give all the same "
    "command, code and packages."
  )
