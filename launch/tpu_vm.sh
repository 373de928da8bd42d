#!/usr/bin/env bash
# A slice of Cloud TPU VMs: the image runs on every worker, with a workdir on NFS.
#
#   launch/tpu_vm.sh ACTION [--dry-run] [flags of main.py]
#
#   queue, unqueue   ask for a slice as a queued resource; give it back, or withdraw
#   create, delete   the same at once, or not at all
#   wait             until a queued slice is there
#   install          on all workers: mount NFS, fetch the image
#   run FLAGS        on all workers, as processes of one run
#   follow FLAGS     the same for an evaluation beside a training, on a slice of its own
#   merge FLAGS      join what the shards of an evaluation measured
#   status, logs     what the slice and its workers do; the last lines of worker 0
#   stop             save and stop
#   resume FLAGS     after a pre-emption or a stop: what is needed of the above (for queued slices)
#
# TPU_NAME, ZONE, PROJECT (gcloud's), ACCELERATOR_TYPE, RUNTIME_VERSION, SPOT=1, IMAGE, NFS
# (host:/share), MOUNT (/shared). With SHARDS=n every action is for n slices of one host
# each, TPU_NAME-0 and so on, and run gives each a shard of an evaluation. PASS_ENV: names of
# variables that containers get too, such as "LIBTPU_INIT_ARGS WANDB_API_KEY".
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/dry_run.sh
. launch/values.sh

counts SHARDS
expect NFS '[A-Za-z0-9._:/-]+' "host:/share"
action=${1:-}
shift || true
: "${TPU_NAME:?is the name of the slice, which you choose}" "${ZONE:?is the zone, such as us-west4-a}"
# What an action needs is asked for before any of it is done.
case $action in queue | create | resume)
  type=${ACCELERATOR_TYPE:?is the size of a slice, such as v5litepod-16}
  version=${RUNTIME_VERSION:?is the software of the VMs, such as v2-alpha-tpuv5-lite}
  ;;
esac
case $action in install | resume) nfs=${NFS:?is host:/share, where workdirs lie} ;; esac
case $action in install | run | follow | merge | resume)
  image=${IMAGE:?is a Docker image, such as us-docker.pkg.dev/me/rankclip/rankclip:tpu}
  ;;
esac
place=(--zone="$ZONE" ${PROJECT:+--project="$PROJECT"})
mount=${MOUNT:-/shared}
inside "$mount" "$@"
mounted="{ mountpoint -q $mount || sudo mount -t nfs ${nfs:-} $mount; }"
# Also after a reboot; what ended as it should is left alone.
started="$mounted && { [ \"\$(sudo docker inspect -f '{{.State.ExitCode}}' rankclip)\" = 0 ] \
|| sudo docker start rankclip; }"
# What asks Google for its images; those of Docker Hub are there for all.
[[ ${image:-} != *.*/* ]] || asking="sudo gcloud auth configure-docker ${image%%/*} --quiet && "
installed="sudo apt-get install --yes nfs-common && sudo mkdir -p $mount && $mounted \
&& ${asking:-}sudo docker pull ${image:-}"
tpus=(gcloud compute tpus)

on_workers() { # NAME WORKER COMMAND
  run "${tpus[@]}" tpu-vm ssh "$1" "${place[@]}" --worker="$2" --command="$3"
}

# A container with the program: OPTIONS -- FLAGS.
container() {
  local options=()
  while [[ $1 != -- ]]; do
    options+=("$1")
    shift
  done
  shift
  # TPUs and their metadata server are the host's; ten seconds are too few for a save.
  quoted sudo docker run "${options[@]}" --privileged --network=host --stop-timeout=300 \
    --volume="$mount:$mount" "${passed[@]/#/--env=}" "$image" "$@"
}

# Docker starts a process that failed again, twenty times, later and later: the others end
# after JAX's 100 seconds without a sign of it. What `stop` ended it leaves.
detached() { container --detach --name=rankclip --restart=on-failure:20 -- "$@"; }

state_of() { "${tpus[@]}" queued-resources describe "$1" "${place[@]}" --format="value(state.state)"; }

one() { # ACTION NAME FLAGS...
  local what=$1 name=$2
  shift 2
  case $what in
    queue)
      run "${tpus[@]}" queued-resources create "$name" --node-id="$name" "${place[@]}" \
        --accelerator-type="$type" --runtime-version="$version" ${SPOT:+--spot}
      ;;
    unqueue) run "${tpus[@]}" queued-resources delete "$name" "${place[@]}" --force --quiet ;;
    create)
      run "${tpus[@]}" tpu-vm create "$name" "${place[@]}" \
        --accelerator-type="$type" --version="$version" ${SPOT:+--spot}
      ;;
    delete) run "${tpus[@]}" tpu-vm delete "$name" "${place[@]}" --quiet ;;
    wait)
      if [[ $DRY_RUN ]]; then
        printf '# every 30 seconds, until it says ACTIVE:\n'
        shown "${tpus[@]}" queued-resources describe "$name" "${place[@]}" --format="value(state.state)"
        return
      fi
      local state
      while true; do
        state=$(state_of "$name") || refuse "$name is no queued resource in $ZONE."
        [[ $state != ACTIVE ]] || break
        [[ ! $state =~ FAILED|SUSPEND ]] || refuse "$name is $state; queue it again: $0 resume."
        printf '%s is %s.\n' "$name" "$state"
        sleep 30
      done
      ;;
    install)
      on_workers "$name" all "$installed"
      ;;
    run)
      # The container of an earlier run goes, but not one that still runs: then the name is
      # taken.
      on_workers "$name" all "sudo docker rm rankclip 2>/dev/null; $(detached "$@")"
      ;;
    status)
      # What `create` made is in no queue.
      run "${tpus[@]}" queued-resources describe "$name" "${place[@]}" \
        --format="value(state.state)" || true
      on_workers "$name" all "sudo docker ps --all --filter=name=rankclip --format='{{.Status}}'"
      ;;
    logs) on_workers "$name" 0 "sudo docker logs --tail=50 rankclip" ;;
    stop) on_workers "$name" all "sudo docker stop rankclip" ;;
  esac
}

resume() { # NAME FLAGS...
  local name=$1 state again
  shift
  # A resume that was itself cut off may have left a slice without a container.
  again="if sudo docker inspect rankclip >/dev/null 2>&1; then $started; \
else $installed && $(detached "$@"); fi"
  if [[ $DRY_RUN ]]; then
    shown "${tpus[@]}" queued-resources describe "$name" "${place[@]}" --format="value(state.state)"
    printf '# ACTIVE:\n'
    on_workers "$name" all "$again"
    printf '# SUSPENDED or FAILED, the slice is lost:\n'
    state=SUSPENDED
  else
    state=$(state_of "$name")
    printf '%s is %s.\n' "$name" "$state"
  fi
  case $state in
    ACTIVE)
      on_workers "$name" all "$again"
      return
      ;;
    SUSPENDED | FAILED)
      one unqueue "$name"
      one queue "$name"
      ;;
  esac
  one wait "$name"
  one install "$name"
  one run "$name" "$@"
}

# ACTION FLAGS..., for the slice, or for those of the shards.
all() {
  local what=$1 shard
  shift
  if [[ ! ${SHARDS:-} ]]; then
    [[ $what != run && $what != resume ]] || set -- --config.distributed.mode=auto "$@"
    if [[ $what == resume ]]; then resume "$TPU_NAME" "$@"; else one "$what" "$TPU_NAME" "$@"; fi
    return
  fi
  for ((shard = 0; shard < SHARDS; shard++)); do
    local flags=("$@" --config.mode=eval --config.eval.shard="$shard" --config.eval.num_shards="$SHARDS")
    if [[ $what == resume ]]; then
      resume "$TPU_NAME-$shard" "${flags[@]}"
    else
      one "$what" "$TPU_NAME-$shard" "${flags[@]}"
    fi
  done
}

case $action in
  queue | unqueue | create | delete | wait | install | run | status | logs | stop | resume)
    all "$action" "$@"
    ;;
  follow) all run "$@" --config.mode=eval --config.eval.checkpoint=follow ;;
  merge)
    on_workers "$TPU_NAME${SHARDS:+-0}" 0 "$(container --rm --env=ACCELERATOR=cpu \
      --env=JAX_PLATFORMS=cpu -- "$@" --config.mode=merge \
      ${SHARDS:+--config.eval.num_shards="$SHARDS"})"
    ;;
  *) refuse "the first argument must be one of the actions at the top of $0, got \"$action\"." ;;
esac
