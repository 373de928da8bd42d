#!/usr/bin/env bash
# Submits jobs to SLURM, from a checkout on a file system that the nodes share.
#
#   launch/slurm.sh train    [--dry-run] --config=... --workdir=...
#   launch/slurm.sh follow   ... --config.eval.datasets=...   beside a training
#   launch/slurm.sh evaluate ... --config.eval.datasets=...   an array of jobs, and their merge
#
# NODES (2) and GPUS of each (8) are train's, SHARDS (4) is the number of evaluate's jobs. All
# else of sbatch by its own variables: SBATCH_PARTITION, SBATCH_ACCOUNT, SBATCH_TIMELIMIT.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/dry_run.sh
. launch/values.sh

counts NODES GPUS SHARDS
action=${1:-}
shift || true
one=launch/slurm/one_gpu.sbatch

case $action in
  train)
    run sbatch --nodes="${NODES:-2}" --ntasks-per-node="${GPUS:-8}" --gres=gpu:"${GPUS:-8}" \
      launch/slurm/train.sbatch "$@"
    ;;
  follow)
    run sbatch --job-name=rankclip-follow "$one" "$@" --config.mode=eval \
      --config.eval.checkpoint=follow
    ;;
  evaluate)
    shards=${SHARDS:-4}
    array=(sbatch --parsable --job-name=rankclip-eval --array="0-$((shards - 1))" "$one" "$@"
      --config.mode=eval --config.eval.num_shards="$shards")
    if [[ $DRY_RUN ]]; then
      shown "${array[@]}"
      job=ARRAY
    else
      job=$("${array[@]}")
      job=${job%%;*} # of several clusters, sbatch adds the name of its own
      printf 'Submitted array %s.\n' "$job"
    fi
    run sbatch --job-name=rankclip-merge --dependency="afterok:$job" \
      --kill-on-invalid-dep=yes --gres=none --export=ALL,ACCELERATOR=cpu,JAX_PLATFORMS=cpu \
      "$one" "$@" --config.mode=merge --config.eval.num_shards="$shards"
    ;;
  *) refuse "the first argument must be train, follow or evaluate, got \"$action\"." ;;
esac
