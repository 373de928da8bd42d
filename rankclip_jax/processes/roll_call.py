"""All processes meet where JAX's runtime will start, before it does.

JAX's runtime ends a process from within, with a stack of C++ and no word about who is
missing. So all say hello to process 0 first, at the same address: it sees who does not
come, who was told other numbers, and who is not like the others, and answers all of them
alike. No process knows more of another than what that one says: a line of JSON.
"""

import contextlib
import dataclasses
import errno
import json
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any

# For a hello that was begun; whoever connects and is silent is no process of ours.
_SECONDS_FOR_A_HELLO = 5.0
# How long process 0 stays after a failure for those that come late.
_SECONDS_FOR_LATE_ONES = 5.0
_MOST_BYTES = 2**20
_GREETING = "rankclip_jax"

Facts = Mapping[str, Any]
Judge = Callable[[Sequence["Present"]], str]


@dataclasses.dataclass(frozen=True)
class Present:
  """A process that has come, and what it says of itself."""

  index: int
  count: int
  host: str
  pid: int
  facts: Facts

  def __str__(self) -> str:
    return f"process {self.index} (host {self.host}, pid {self.pid})"


def meet(
  address: str, count: int, index: int, facts: Facts, timeout: float, judge: Judge
) -> None:
  """Returns when all processes have come and `judge` has nothing against them.

  Args:
    address: host:port of process 0.
    count: of processes.
    index: of this one.
    facts: JSON-serialisable, of this process.
    timeout: seconds to wait for others.
    judge: called by process 0 with all of them in order; what it answers, unless it is
      "", is why nobody goes on.

  Raises:
    ValueError: the same on every process that came: who is missing after `timeout`, who
      was told other numbers, or what `judge` says. Where process 0 is not reached, that.
  """
  host, _, port = address.rpartition(":")
  if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
    raise ValueError(
      f"The coordinator must be HOST:PORT of process 0, got {address!r}; give "
      "--config.distributed.coordinator."
    )
  own = Present(index, count, socket.gethostname(), os.getpid(), facts)
  until = time.monotonic() + timeout
  if index == 0:
    problem = _call(int(port), own, address, timeout, judge)
  else:
    problem = _answer_from(host.strip("[]"), int(port), own, timeout, until)
  if problem:
    raise ValueError(problem)


def spans(numbers: Sequence[int]) -> str:
  """[0, 1, 2, 5] as "0-2, 5"."""
  parts: list[list[int]] = []
  for n in sorted(numbers):
    if parts and n == parts[-1][-1] + 1:
      parts[-1].append(n)
    else:
      parts.append([n])
  return ", ".join(str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts)


def named(numbers: Sequence[int]) -> str:
  """ "Process 3" or "Processes 1-3"."""
  return f"Process{'es' if len(numbers) > 1 else ''} {spans(numbers)}"


class _Roll:
  """Process 0's side: who is there, each with the connection that it waits at."""

  def __init__(self, server: socket.socket, own: Present, stack: contextlib.ExitStack):
    self._server, self._own, self._stack = server, own, stack
    self.there: dict[int, Present] = {0: own}
    self._connections: dict[int, socket.socket] = {}
    self._untold: list[socket.socket] = []

  def receive(self, until: float) -> str | None:
    """Waits for one more; returns what is wrong with it, or None if none came."""
    self._server.settimeout(max(until - time.monotonic(), 0.01))
    try:
      connection, _ = self._server.accept()
    except TimeoutError:
      return None
    self._stack.enter_context(connection)
    file = self._stack.enter_context(connection.makefile(encoding="utf-8"))
    other = _hello(connection, file)
    if other is None:
      return ""
    _say(connection, [_GREETING])  # it has reached us, and may wait
    self.missing()  # one that was started again may have left its place
    self._untold.append(connection)
    problem = _misfit(other, self._own, self.there)
    if not problem:
      self.there[other.index] = other
      self._connections[other.index] = connection
    return problem

  def missing(self) -> list[int]:
    """Who has not come, or has left since."""
    for index, connection in list(self._connections.items()):
      if _has_left(connection):
        del self.there[index], self._connections[index]
    return sorted(set(range(self._own.count)) - set(self.there))

  def tell(self, problem: str) -> None:
    """Answers all that wait for it, whatever is wrong with them."""
    for connection in self._untold:
      _say(connection, [_GREETING, problem])
    self._untold.clear()


def _say(connection: socket.socket, words: Sequence[str]) -> None:
  with contextlib.suppress(OSError):  # whoever left has its own reasons
    connection.sendall(json.dumps(words).encode() + b"\n")


def _call(port: int, own: Present, address: str, timeout: float, judge: Judge) -> str:
  """Process 0: waits for the others and tells all the same; returns what it told."""
  with contextlib.ExitStack() as stack:
    roll = _Roll(stack.enter_context(_listening(port)), own, stack)
    until = time.monotonic() + timeout
    problem: str | None = ""
    while problem == "" and roll.missing():
      problem = roll.receive(until)
    if problem is None:
      problem = (
        f"{named(roll.missing())} of {own.count} did not come within {timeout:.0f} s to "
        f"process 0 on host {own.host}, port {port}; see whether they were started, what "
        f"they say, and whether they reach {address}, or give them more time by "
        "--config.distributed.timeout_seconds."
      )
    problem = problem or judge([roll.there[i] for i in sorted(roll.there)])
    roll.tell(problem)
    if problem:  # those that come a little late hear it too
      until = time.monotonic() + _SECONDS_FOR_LATE_ONES
      while len(roll.there) < own.count and roll.receive(until) is not None:
        roll.tell(problem)
    return problem


def _listening(port: int) -> socket.socket:
  both = socket.has_dualstack_ipv6()
  family = socket.AF_INET6 if both else socket.AF_INET
  try:
    return socket.create_server(
      ("", port), family=family, backlog=1024, dualstack_ipv6=both
    )
  except OSError as error:
    if error.errno not in (errno.EADDRINUSE, errno.EACCES):
      raise
    raise ValueError(
      f"Process 0 cannot listen on port {port} of {socket.gethostname()} "
      f"({os.strerror(error.errno)}): another run or program may have it. Choose another "
      "by --config.distributed.coordinator=HOST:PORT, or with distributed.mode=auto by "
      "the variable JAX_COORDINATOR_PORT, the same for all."
    ) from error


def _hello(connection: socket.socket, file: IO[str]) -> Present | None:
  """Who connected; None for anything that is no process of this program."""
  connection.settimeout(_SECONDS_FOR_A_HELLO)
  try:
    greeting, *rest = json.loads(file.readline(_MOST_BYTES))
    return Present(*rest) if greeting == _GREETING else None
  except (OSError, ValueError, TypeError):
    return None


def _misfit(other: Present, own: Present, there: Mapping[int, Present]) -> str:
  if other.count != own.count:
    return (
      f"The processes were told different numbers of processes: {own} of {own.count}, "
      f"{other} of {other.count}. Give all the same --config.distributed.num_processes."
    )
  if other.index in there:
    return (
      f"Two processes have the same index: {there[other.index]} and {other}. Give each "
      "its own --config.distributed.process_id."
    )
  return ""


def _has_left(connection: socket.socket) -> bool:
  connection.settimeout(0.0)
  try:
    return not connection.recv(1, socket.MSG_PEEK)
  except BlockingIOError:
    return False
  except OSError:
    return True
  finally:
    connection.settimeout(_SECONDS_FOR_A_HELLO)


def _answer_from(host: str, port: int, own: Present, timeout: float, until: float) -> str:
  """Another process: what process 0 says of all."""
  reason, silent = "not tried", False
  while time.monotonic() < until:
    try:
      with socket.create_connection((host, port), timeout=5.0) as connection:
        file = connection.makefile("rw", encoding="utf-8", errors="replace")
        hello = [_GREETING, own.index, own.count, own.host, own.pid, own.facts]
        file.write(json.dumps(hello) + "\n")
        file.flush()
        # Process 0 may look at something slow first.
        connection.settimeout(3 * _SECONDS_FOR_A_HELLO)
        try:
          answer = file.readline(_MOST_BYTES)
        except TimeoutError:
          if silent:
            return _stranger(host, port)
          silent = True  # once may be for what came before this one
          raise
        if answer.strip() == json.dumps([_GREETING]):
          # It may have begun to wait later than this one.
          connection.settimeout(timeout + 2 * _SECONDS_FOR_A_HELLO)
          answer = file.readline(_MOST_BYTES)
    except TimeoutError:
      reason = "no answer"
    except OSError as error:
      reason = error.strerror or str(error)
    else:
      if answer:
        return _parsed(answer, host, port)
      reason = "it left before all had come"
    time.sleep(min(0.5, max(until - time.monotonic(), 0.0)))
  return (
    f"Process {own.index} of {own.count} did not reach process 0 at {host}:{port} within "
    f"{timeout:.0f} s ({reason}); see whether process 0 runs and what it says, whether "
    "that is its address, and whether a firewall is between, or give it more time by "
    "--config.distributed.timeout_seconds."
  )


def _parsed(answer: str, host: str, port: int) -> str:
  with contextlib.suppress(ValueError, TypeError):
    greeting, problem = json.loads(answer)
    if greeting == _GREETING:
      return str(problem)
  return _stranger(host, port)


def _stranger(host: str, port: int) -> str:
  return (
    f"Something else than process 0 of this run answers at {host}:{port}, perhaps "
    "another run; choose another port by --config.distributed.coordinator=HOST:PORT, or "
    "with distributed.mode=auto by the variable JAX_COORDINATOR_PORT, the same for all."
  )
