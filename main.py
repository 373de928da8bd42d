"""RankCLIP: `python main.py --config=configs/openmoji.py --workdir=runs/openmoji`."""

from rankclip_jax import stopping

if __name__ == "__main__":
  stopping.leave_when_told()  # what follows takes seconds to import

import pathlib
import sys

from absl import app, flags
from ml_collections import config_flags

from rankclip_jax import config, launcher, pending

_CONFIG = config_flags.DEFINE_config_file("config", help_string="A file of configs/.")
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Where everything is written.", required=True
)


def main(argv: list[str]) -> None:
  """Hands the resolved config over."""
  if len(argv) > 1:
    raise app.UsageError(f"Unexpected words: {argv[1:]}; flags begin with --.")
  resolved = config.from_config_dict(_CONFIG.value)
  sys.exit(launcher.run(resolved, pathlib.Path(_WORKDIR.value)))


if __name__ == "__main__":
  try:
    config.check_flag_names(sys.argv[1:])
    flags.mark_flags_as_required(["config"])
    app.run(main)
  except (ValueError, OSError, pending.NonFiniteError) as error:
    sys.exit(f"Error: {error}")
  except KeyboardInterrupt:  # a second Ctrl-C, or one before anything could be saved
    sys.exit(130)
