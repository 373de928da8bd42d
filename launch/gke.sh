#!/usr/bin/env bash
# Runs on GKE, with JobSet installed and a ReadWriteMany volume for data and workdirs.
#
#   launch/gke.sh ACTION [--dry-run] [flags of main.py]
#
#   train FLAGS      a JobSet; with XPK=CLUSTER by `xpk workload create`, on TPUs
#   follow FLAGS     an evaluation beside it, on one node
#   evaluate FLAGS   SHARDS jobs that share an evaluation, on a node each
#   merge FLAGS      join what they measured
#   status, logs     of all of this NAME
#   delete           all of this NAME; a training saves first
#
# NAME, IMAGE, CLAIM (the volume's claim), MOUNT (/shared), ACCELERATOR: gpu or tpu.
# gpu: GPU_ACCELERATOR (nvidia-h100-80gb), GPUS of a node (8), NODES (2).
# tpu: TPU_ACCELERATOR (tpu-v5-lite-podslice), TPU_TOPOLOGY (4x4), HOSTS (4), CHIPS of a host
# (4); follow and evaluate run on slices of one host, of ONE_HOST_TOPOLOGY (2x2).
# PASS_ENV: names of variables that the pods get too, such as "XLA_FLAGS NCCL_DEBUG".
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/dry_run.sh
. launch/values.sh

counts GPUS NODES HOSTS CHIPS SHARDS
expect NAME '[a-z]([-a-z0-9]{0,38}[a-z0-9])?' "at most 40 of a-z, 0-9 and -, from a letter on"
action=${1:-}
shift || true
export NAME=${NAME:?is what the run is called}
export GROUP=$NAME MOUNT=${MOUNT:-/shared}
case $action in train | follow | evaluate | merge)
  export IMAGE=${IMAGE:?is a Docker image, such as us-docker.pkg.dev/me/rankclip/rankclip:gpu}
  [[ ${XPK:-} && $action == train ]] || export CLAIM=${CLAIM:?is the claim of a volume, ReadWriteMany}
  [[ $action == merge || ${ACCELERATOR:-} =~ ^(gpu|tpu)$ ]] ||
    refuse "ACCELERATOR must be gpu or tpu, got \"${ACCELERATOR:-}\"."
  [[ ${XPK:-} && $action == train ]] || inside "$MOUNT" "$@"
  ;;
esac
export GPU_ACCELERATOR=${GPU_ACCELERATOR:-nvidia-h100-80gb} GPUS=${GPUS:-8} NODES=${NODES:-2}
export TPU_ACCELERATOR=${TPU_ACCELERATOR:-tpu-v5-lite-podslice} TPU_TOPOLOGY=${TPU_TOPOLOGY:-4x4}
export HOSTS=${HOSTS:-4} CHIPS=${CHIPS:-4}

# A template with the environment's values, FLAGS as $ARGS, and more of a list of variables
# as $PASSED; an unset name is an error.
apply() { # TEMPLATE FLAGS...
  local manifest
  manifest=$(python3 -c '
import json, os, string, sys
template = string.Template(open(sys.argv[1], encoding="utf-8").read())
said = {name: json.dumps(os.environ[name], ensure_ascii=False) for name in os.environ.get("PASS_ENV", "").split()}
passed = "".join(f", {{name: {name}, value: {value}}}" for name, value in said.items())
print(template.substitute(os.environ, ARGS=json.dumps(sys.argv[2:]), PASSED=passed), end="")' "$@")
  if [[ $DRY_RUN ]]; then
    printf "kubectl create --filename - <<'EOF'\n%s\nEOF\n" "$manifest"
  else
    kubectl create --filename - <<<"$manifest"
  fi
}

# One pod with the flags that follow, on a node with accelerators or (cpu) on any.
one() { # NAME ACCELERATOR FLAGS...
  local name=$1 accelerator=$2
  shift 2
  case $accelerator in
    gpu)
      SELECTOR="{cloud.google.com/gke-accelerator: $GPU_ACCELERATOR}"
      RESOURCES="{limits: {nvidia.com/gpu: 1}}"
      ;;
    tpu)
      SELECTOR="{cloud.google.com/gke-tpu-accelerator: $TPU_ACCELERATOR, cloud.google.com/gke-tpu-topology: ${ONE_HOST_TOPOLOGY:-2x2}}"
      RESOURCES="{limits: {google.com/tpu: $CHIPS}}"
      ;;
    cpu)
      SELECTOR="{}"
      RESOURCES="{requests: {cpu: 2, memory: 8Gi}}"
      ;;
  esac
  ENVIRONMENT="{name: ACCELERATOR, value: $accelerator}"
  # Where there is an accelerator, JAX takes it.
  [[ $accelerator != cpu ]] ||
    ENVIRONMENT="{name: ACCELERATOR, value: cpu}, {name: JAX_PLATFORMS, value: cpu}"
  export SELECTOR RESOURCES ENVIRONMENT
  NAME=$name apply launch/gke/one.yaml "$@"
}

case $action in
  train)
    if [[ ${XPK:-} ]]; then
      [[ $ACCELERATOR == tpu ]] || refuse "XPK is for ACCELERATOR=tpu here, got $ACCELERATOR; leave XPK out."
      run xpk workload create --cluster="$XPK" --workload="$NAME" --docker-image="$IMAGE" \
        --tpu-type="${TPU_TYPE:?is the size of a slice, such as v5litepod-16}" \
        --max-restarts=100 --restart-on-exit-codes=75,134 \
        --termination-grace-period-seconds=300 --env=ACCELERATOR=tpu "${passed[@]/#/--env=}" \
        --command="$(quoted /opt/rankclip/launch/run.sh --config.distributed.mode=auto "$@")"
    elif [[ $ACCELERATOR == tpu ]]; then
      apply launch/gke/train_tpu.yaml --config.distributed.mode=auto "$@"
    else
      # JAX would ask Kubernetes' API for the same, which takes a package and permissions.
      # Kubernetes puts the number of the pod for $(PROCESS_ID).
      # shellcheck disable=SC2016
      apply launch/gke/train_gpu.yaml --config.distributed.mode=explicit \
        --config.distributed.coordinator="$NAME-worker-0-0.$NAME:8476" \
        --config.distributed.num_processes="$NODES" \
        '--config.distributed.process_id=$(PROCESS_ID)' "$@"
    fi
    ;;
  follow)
    one "$NAME-follow" "$ACCELERATOR" "$@" --config.mode=eval --config.eval.checkpoint=follow
    ;;
  evaluate)
    shards=${SHARDS:-4}
    for ((i = 0; i < shards; i++)); do
      one "$NAME-eval-$i" "$ACCELERATOR" "$@" --config.mode=eval --config.eval.shard="$i" \
        --config.eval.num_shards="$shards"
    done
    ;;
  merge)
    one "$NAME-merge" cpu "$@" --config.mode=merge --config.eval.num_shards="${SHARDS:-4}"
    ;;
  status) run kubectl get jobset,job,pod --selector="rankclip=$NAME" ;;
  logs) run kubectl logs --selector="rankclip=$NAME" --prefix --tail=50 --max-log-requests=64 ;;
  delete) run kubectl delete jobset,job --selector="rankclip=$NAME" ;;
  *) refuse "the first argument must be one of the actions at the top of $0, got \"$action\"." ;;
esac
