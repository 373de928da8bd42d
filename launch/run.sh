#!/usr/bin/env bash
# One process: the environment of its ACCELERATOR, and main.py. All else here, the image and
# the manifests start this. `exec`, so that signals reach the program itself.
#
#   ACCELERATOR=gpu launch/run.sh [--dry-run] --config=... --workdir=...
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/dry_run.sh
. launch/environment.sh

if [[ $DRY_RUN ]]; then
  for name in XLA_FLAGS XLA_PYTHON_CLIENT_MEM_FRACTION LIBTPU_INIT_ARGS GLIBC_TUNABLES PYTHONUNBUFFERED; do
    [[ -z ${!name:-} ]] || run export "$name=${!name}"
  done
  run exec python main.py "$@"
  exit
fi
exec python main.py "$@"
