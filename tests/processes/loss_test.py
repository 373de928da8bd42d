import pytest

from rankclip_jax.processes import loss


@pytest.mark.parametrize(
  "text, lost",
  [
    ("UNKNOWN: Gloo all-reduce failed: [external/gloo/gloo/transport/tcp/pair.cc:547] "
     "Connection closed by peer [127.0.0.1]:31463", True),
    ("UNAVAILABLE: Failed to send RPC to coordination service.", True),
    ("INTERNAL: NCCL operation ncclAllReduce failed: remote process exited", True),
    ("INTERNAL: NCCL operation ncclCommInit failed: out of memory", False),
    ("UNKNOWN: Gloo AllGather failed: collective mismatch", False),
    ("No examples in /data/heartbeat_ecg/*.tar", False),
    ("RESOURCE_EXHAUSTED: Out of memory while trying to allocate", False),
  ],
)  # fmt: skip
def test_what_is_seen_of_a_lost_process(text, lost):
  assert loss.is_sign(text) is lost


def test_alone_nobody_is_lost():
  assert not loss.is_loss(RuntimeError("UNAVAILABLE: Socket closed"))
