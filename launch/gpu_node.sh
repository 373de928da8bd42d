#!/usr/bin/env bash
# One machine with GPUs, without a scheduler.
#
#   launch/gpu_node.sh train    [--dry-run] --config=... --workdir=...
#   launch/gpu_node.sh follow   ... --config.eval.datasets=...   beside a training
#   launch/gpu_node.sh evaluate ... --config.eval.datasets=...   a job on each GPU, and merge
#
# CUDA_VISIBLE_DEVICES: the GPUs of train and follow (all). GPUS: evaluate uses 0 to GPUS - 1
# (8). IMAGE: a Docker image to run in; MOUNT: the folder of data and workdirs that it sees
# under the same path (/shared); PASS_ENV: names of variables that it gets, "XLA_FLAGS NCCL_DEBUG".
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/dry_run.sh
. launch/values.sh

counts GPUS
[[ ! ${IMAGE:-} ]] || inside "${MOUNT:-/shared}" "$@"
action=${1:-}
shift || true

# Sets `command` to one process on some GPUs, "all" or "none", with the flags that follow.
on() {
  local gpus=$1 environment=(ACCELERATOR=gpu)
  shift
  case $gpus in
    all) ;;
    none) environment=(ACCELERATOR=cpu JAX_PLATFORMS=cpu) ;;
    *) environment+=("CUDA_VISIBLE_DEVICES=$gpus") ;;
  esac
  if [[ ${IMAGE:-} ]]; then
    # The container sees all GPUs, and the program those of its environment. NCCL's shared
    # memory outgrows Docker's 64 MiB; its ten seconds are too few for a save.
    command=(docker run --rm --init --gpus=all --ipc=host --stop-timeout=300
      --volume="${MOUNT:-/shared}:${MOUNT:-/shared}" "${environment[@]/#/--env=}"
      "${passed[@]/#/--env=}" "$IMAGE" "$@")
  else
    command=(env "${environment[@]}" launch/run.sh "$@")
  fi
}

case $action in
  train)
    on "${CUDA_VISIBLE_DEVICES:-all}" "$@"
    run exec "${command[@]}"
    ;;
  follow)
    on "${CUDA_VISIBLE_DEVICES:-all}" "$@" --config.mode=eval --config.eval.checkpoint=follow
    run exec "${command[@]}"
    ;;
  evaluate)
    gpus=${GPUS:-8}
    jobs=()
    for ((i = 0; i < gpus; i++)); do
      on "$i" "$@" --config.mode=eval --config.eval.shard="$i" \
        --config.eval.num_shards="$gpus"
      if [[ $DRY_RUN ]]; then
        printf '%s &\n' "$(shown "${command[@]}")"
      else
        "${command[@]}" &
        jobs+=($!)
      fi
    done
    # What stops this script stops the jobs: they end with exit code 75.
    # A signal ends `wait`, not the job.
    trap 'interrupted=1; kill -TERM "${jobs[@]}" 2>/dev/null || true' INT TERM USR1
    code=0
    for job in "${jobs[@]}"; do
      while :; do
        interrupted="" status=0
        wait "$job" || status=$?
        [[ $interrupted ]] || break
      done
      ((status == 0)) || code=$status
    done
    [[ ! $DRY_RUN ]] || printf 'wait\n'
    ((code == 0)) || exit "$code"
    on none "$@" --config.mode=merge --config.eval.num_shards="$gpus"
    run "${command[@]}"
    ;;
  *) refuse "the first argument must be train, follow or evaluate, got \"$action\"." ;;
esac
