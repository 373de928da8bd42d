"""The loss of another process, as the survivors see it.

Where devices exchange over sockets, a step fails soon after. Where they wait in hardware,
nothing returns, and JAX's coordination service ends the process from within (SIGABRT,
code 134) once heartbeats have been missed for `distributed.heartbeat_seconds`.
"""

import logging
import re
from typing import NoReturn

import jax

from rankclip_jax.stopping import leave_now

# What Gloo, NCCL, and JAX's own services say when they no longer reach another process.
# They begin with a status, as all errors of XLA do, and are not of memory or of a bug.
_SIGNS = re.compile(
  r"^(UNKNOWN|UNAVAILABLE|INTERNAL|ABORTED|CANCELLED|DEADLINE_EXCEEDED)\b"
  r"(?!.*(out of memory|mismatch))"
  r".*(Gloo .* failed|gloo/transport|NCCL|coordination service|heartbeat"
  r"|Connection (closed|reset) by peer|Socket closed|failed to connect)",
  re.DOTALL,
)

log = logging.getLogger(__name__)


def is_loss(error: BaseException) -> bool:
  """Whether this is what is seen of another process that is gone."""
  several = jax.distributed.is_initialized() and jax.process_count() > 1
  return several and not isinstance(error, OSError) and is_sign(str(error))


def is_sign(text: str) -> bool:
  """Whether an error's text is one of a lost process."""
  return bool(_SIGNS.search(text))


def leave(error: BaseException, code: int) -> NoReturn:
  """Ends this process at once: an orderly end would wait for the one that is gone."""
  log.error(
    "Another process of this run is gone, or cannot be reached: %s. Its own messages say "
    "why; process %d ends too, and the same command on all goes on.",
    " ".join(str(error).split())[:300],
    jax.process_index(),
  )
  leave_now(code)
