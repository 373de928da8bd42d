"""The processes of a run: found, compared, joined, and shown."""

import logging
import os

import jax
from jax._src import hardware_utils

from rankclip_jax import stopping
from rankclip_jax.config import Config
from rankclip_jax.processes import alike, cluster, gpus, roll_call, table
from rankclip_jax.processes.cluster import Place
from rankclip_jax.processes.loss import is_loss, leave
from rankclip_jax.processes.workdir import prepare
from rankclip_jax.together import together

__all__ = ["is_loss", "join", "leave", "prepare"]

# Modes that only read and write files.
_WITHOUT_DEVICES = ("report", "merge")

log = logging.getLogger(__name__)


def join(cfg: Config) -> None:
  """Makes this process one of all that run this config; call before anything uses jax.

  Raises:
    ValueError: on every process, in one line, if they do not all come, were told other
      numbers, are not alike, or leave accelerators idle or take them twice.
  """
  place = cluster.find(cfg.distributed)
  if place is None or place.count == 1:
    _alone(cfg, place)
    return
  facts = {
    "same": alike.facts_of(cfg),
    "gpus": [] if _is_cpu_wanted() else gpus.visible(),
    "devices": place.devices,
  }
  roll_call.meet(
    place.coordinator, place.count, place.index, facts, cfg.distributed.timeout_seconds,
    lambda everyone: alike.problem_of(everyone) or gpus.problem_of(everyone),
  )  # fmt: skip
  try:
    with stopping.keeping_handlers():
      jax.distributed.initialize(
        place.coordinator,
        place.count,
        place.index,
        local_device_ids=place.devices,
        cluster_detection_method="deactivate",
        initialization_timeout=cfg.distributed.timeout_seconds,
        heartbeat_timeout_seconds=cfg.distributed.heartbeat_seconds,
        shutdown_timeout_seconds=cfg.distributed.heartbeat_seconds,
      )
    # Well before heartbeats tell it that those who left are gone.
    stopping.joined(place.index, patience=cfg.distributed.heartbeat_seconds / 10)
    _open_devices()
  except RuntimeError as error:
    raise ValueError(
      f"Process {place.index} of {place.count} could not start JAX's runtime: "
      f"{' '.join(str(error).split())[:500]}"
    ) from error
  together(_check_platform)
  shown = table.of_all()
  if jax.process_index() == 0:
    log.info("By %s, coordinator %s: %s", place.cluster, place.coordinator, shown)


def _alone(cfg: Config, place: Place | None) -> None:
  if cfg.mode not in _WITHOUT_DEVICES:
    _open_devices()
  if cfg.distributed.mode == "off":
    if cfg.mode == "train":
      cluster.check_alone()
    if cfg.mode not in _WITHOUT_DEVICES and (problem := _problem_of_platform()):
      if os.environ.get("ACCELERATOR"):  # launch/ was told what is to be used
        raise ValueError(problem)
      log.warning("%s", problem)
    return
  if place is None:
    log.info(
      "No cluster was found (Cloud TPU, SLURM, Kubernetes, Open MPI): one process."
    )
  else:
    log.info("By %s this is the only process; it takes all devices.", place.cluster)
  _check_platform()


def _open_devices() -> None:
  """Has JAX look for its devices, which is when it fails if there are none.

  Raises:
    ValueError: saying what was asked for.
  """
  try:
    jax.devices()
  except (RuntimeError, AssertionError) as error:  # the latter for CUDA without plugin
    platforms = os.environ.get("JAX_PLATFORMS", "")
    why = " ".join(str(error).split())[:300] or "its plugin is not installed"
    raise ValueError(
      f"JAX cannot use the devices of JAX_PLATFORMS={platforms!r}: {why}. Unset the "
      "variable for what JAX finds itself, or pip install 'jax[cuda12]' or 'jax[tpu]' in "
      "this environment."
    ) from error


def _check_platform() -> None:
  """Refuses to compute on CPUs beside accelerators that were not ruled out."""
  if problem := _problem_of_platform():
    raise ValueError(problem)


def _problem_of_platform() -> str:
  """What accelerators are idle, or were promised and are not there; "" if none are."""
  if jax.default_backend() != "cpu" or _is_cpu_wanted():
    return ""
  tpus, _ = hardware_utils.num_available_tpu_chips_and_device_id()
  idle = [f"{tpus} TPU chips"] * bool(tpus) + ["GPUs"] * bool(gpus.visible())
  promised = os.environ.get("ACCELERATOR", "")
  if not idle and promised not in ("gpu", "tpu"):
    return ""
  extra = "tpu" if tpus or promised == "tpu" else "cuda12"
  what = f"This host has {' and '.join(idle)}" if idle else f"ACCELERATOR={promised}"
  return (
    f"{what}, but JAX sees only its CPU: pip install 'jax[{extra}]' in this environment "
    "(a container must be given the devices too), or rule them out by the variable "
    "JAX_PLATFORMS=cpu."
  )


def _is_cpu_wanted() -> bool:
  # A setting of JAX's that type checkers do not know; JAX_PLATFORMS is its default.
  return getattr(jax.config, "jax_platforms", None) == "cpu"
