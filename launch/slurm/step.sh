# shellcheck shell=bash
# Sourced by the jobs of this folder, which start where sbatch was called.

[[ -x launch/run.sh ]] || {
  printf 'Error: submit from the checkout: %s has no launch/run.sh.\n' "$PWD" >&2
  exit 2
}
. launch/dry_run.sh

# `step ARGUMENTS...`: srun, and the job again if it was stopped with its state saved (75),
# or a task was lost (137, SIGKILL), or JAX's runtime ended the others for it (134,
# SIGABRT). What fails so every time is not tried for ever.
step() {
  local code=0
  # srun no longer inherits the job's number of CPUs (Slurm 22.05).
  run srun ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} "$@" || code=$?
  [[ ! $DRY_RUN ]] || printf '# after exit codes 75, 134 and 137: scontrol requeue\n'
  if ((code == 75)) || { ((code == 134 || code == 137)) && ((${SLURM_RESTART_COUNT:-0} < 20)); }; then
    scontrol requeue "$SLURM_JOB_ID"
  fi
  exit "$code"
}
