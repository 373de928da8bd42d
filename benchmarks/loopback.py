"""Several processes of one command on this machine: ports, and what each is told."""

import socket


def free_port() -> int:
  """Of the loopback interface; nobody has it, for now."""
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    return s.getsockname()[1]


def flags(count: int) -> list[list[str]]:
  """Of `main.py`, for each of `count` processes of a run; one alone needs none."""
  if count == 1:
    return [[]]
  address = f"127.0.0.1:{free_port()}"
  return [
    [
      "--config.distributed.mode=explicit",
      f"--config.distributed.coordinator={address}",
      f"--config.distributed.num_processes={count}",
      f"--config.distributed.process_id={i}",
    ]
    for i in range(count)
  ]
