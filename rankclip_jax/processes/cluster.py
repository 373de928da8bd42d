"""Where this process stands among others, as JAX recognises it.

JAX's own detection is asked, so that what it learns of clusters is known here too. It is
not part of JAX's public interface, and this is the only file that calls it.
"""

import contextlib
import dataclasses
import os
import warnings

from jax._src import clusters

from rankclip_jax.config import DistributedConfig

_NAMES = {
  "ompi": "Open MPI",
  "slurm": "SLURM",
  "gcetpu": "a Cloud TPU",
  "gketpu": "Cloud TPUs of GKE",
  "k8s": "Kubernetes",
}
# These are recognised by environment variables, without asking a server.
_LOCAL = ("ompi", "slurm")


@dataclasses.dataclass(frozen=True)
class Place:
  """One process of several.

  Attributes:
    cluster: what gave the numbers, for people.
    coordinator: host:port where process 0 listens.
    count: of processes.
    index: of this one.
    devices: which of the host's GPUs it takes, by position among those that it could
      see; None is all.
  """

  cluster: str
  coordinator: str
  count: int
  index: int
  devices: tuple[int, ...] | None = None


def find(settings: DistributedConfig) -> Place | None:
  """The place of this process; None with mode="off", or "auto" on a lone machine.

  Raises:
    ValueError: if a cluster is recognised but does not say all that is needed, or this
      process is not started as the cluster's processes should be.
  """
  if settings.mode == "off":
    return None
  name = "the config"
  if settings.mode == "auto":
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")  # of what is missing `_check_started` tells
      found = _asked(_environment, "The cluster")
    if found is None:
      _check_started()
      return None
    name = _NAMES.get(found.name, found.name)
  devices = _devices_told()
  with warnings.catch_warnings():
    if settings.mode == "explicit":  # what is missing to recognise a cluster is not asked
      warnings.simplefilter("ignore")
    coordinator, count, index, devices = _asked(
      lambda: clusters.ClusterEnv.auto_detect_unset_distributed_params(
        settings.coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS"),
        settings.num_processes,
        settings.process_id,
        devices,
        None,
        settings.timeout_seconds,
      ),
      name,
    )
  if coordinator is None or count is None or index is None:
    raise ValueError(
      f"{name} gives no coordinator, number or index of processes ({coordinator}, "
      f"{count}, {index}); give them with --config.distributed.mode=explicit."
    )
  if not 0 <= index < count:
    raise ValueError(
      f"Process {index} of {count} cannot be: processes count from 0 to {count - 1}; "
      "give another --config.distributed.process_id or num_processes."
    )
  return Place(name, coordinator, count, index, tuple(devices) if devices else None)


def _devices_told() -> list[int] | None:
  """Those of the host that this process takes, where the user says."""
  told = os.environ.get("JAX_LOCAL_DEVICE_IDS", "")
  try:
    return [int(i) for i in told.split(",")] if told else None
  except ValueError as error:
    raise ValueError(
      f"The variable JAX_LOCAL_DEVICE_IDS={told!r} must be numbers of this host's "
      "devices, such as 0,1; unset it for all of them."
    ) from error


def check_alone() -> None:
  """Refuses a training that is one of several that a scheduler started, each alone.

  Raises:
    ValueError: naming the scheduler.
  """
  for kind in clusters.ClusterEnv._cluster_types:
    if kind.name not in _LOCAL or not kind.is_env_present():
      continue
    count = 1
    with contextlib.suppress(RuntimeError):  # Open MPI 5 tells mpi4py alone
      count = kind.get_process_count()
    if count > 1:
      raise ValueError(
        f"{_NAMES[kind.name]} started {count} processes, and with "
        '--config.distributed.mode=off each would train alone; give "auto", or start one '
        "process only."
      )


def _environment() -> type[clusters.ClusterEnv] | None:
  """What JAX would choose."""
  for kind in clusters.ClusterEnv._cluster_types:
    if not kind.opt_in_only_method and kind.is_env_present():
      return kind
  return None


def _check_started() -> None:
  """Refuses to take for a lone machine what is not."""
  tasks = os.environ.get("SLURM_NTASKS", "1")
  if "SLURM_JOB_ID" in os.environ and tasks != "1":
    raise ValueError(
      f"SLURM has {tasks} tasks for this job, but this process was not started by srun "
      "and would run alone; put srun before the command, or give "
      "--config.distributed.mode=off."
    )
  tasks = os.environ.get("OMPI_COMM_WORLD_SIZE", "1")
  if tasks != "1":
    raise ValueError(
      f"Open MPI started {tasks} processes in a way that this version of JAX does not "
      "recognise (newer ones know Open MPI 5, with mpi4py); give each its place by "
      "--config.distributed.mode=explicit."
    )
  if "KUBERNETES_SERVICE_HOST" in os.environ and "JOB_COMPLETION_INDEX" in os.environ:
    raise ValueError(
      "This is a pod of an indexed Kubernetes job, and JAX cannot ask for the others "
      "without the package kubernetes: pip install 'jax[k8s]'; one pod alone trains with "
      "--config.distributed.mode=off."
    )


def _asked(question, what: str):
  try:
    return question()
  except Exception as error:  # clients of several servers, each with errors of its own
    lines = str(error).strip().splitlines() or [""]
    raise ValueError(
      f"{what} was asked for its processes and failed ({type(error).__name__}: "
      f"{' '.join(lines)[:500]}); mend that, or give the processes with "
      "--config.distributed.mode=explicit."
    ) from error
