"""Who comes, who does not, and who was told other numbers; processes as threads."""

import concurrent.futures
import contextlib
import json
import re
import socket
import threading
import time

import pytest

from benchmarks.loopback import free_port
from rankclip_jax.processes import roll_call

FINE = lambda everyone: ""


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
  monkeypatch.setattr(roll_call, "_SECONDS_FOR_A_HELLO", 0.3)
  monkeypatch.setattr(roll_call, "_SECONDS_FOR_LATE_ONES", 0.5)


def meet(*numbers, judge=FINE, timeout=1.0, port=None) -> list[str]:
  """What each of these processes, as (index, count), is told; "" is to go on."""
  address = f"127.0.0.1:{port or free_port()}"

  def one(index, count):
    try:
      roll_call.meet(address, count, index, {"i": index}, timeout, judge)
    except ValueError as error:
      return str(error)
    return ""

  with concurrent.futures.ThreadPoolExecutor(len(numbers)) as pool:
    return list(pool.map(one, *zip(*numbers, strict=True)))


def knock(port) -> socket.socket:
  """A connection to process 0, as soon as it listens."""
  while True:
    try:
      return socket.create_connection(("127.0.0.1", port), timeout=5)
    except ConnectionRefusedError:
      time.sleep(0.05)


def test_all_come_in_any_order_and_are_shown_to_the_judge():
  seen = []
  assert meet(*((i, 4) for i in (3, 1, 0, 2)), judge=lambda e: seen.extend(e) or "") == [
    "",
    "",
    "",
    "",
  ]
  assert [(p.index, p.facts["i"], p.count) for p in seen] == [(i, i, 4) for i in range(4)]


def test_what_the_judge_says_is_told_to_all():
  assert meet((0, 2), (1, 2), judge=lambda e: "unlike") == ["unlike", "unlike"]


def test_those_who_do_not_come_are_named_to_all_that_did():
  told = meet((0, 5), (2, 5))
  assert told[0] == told[1]
  assert told[0].startswith("Processes 1, 3-4 of 5 did not come within 1 s to process 0")


def test_without_process_0_the_address_is_named():
  port = free_port()
  (told,) = meet((1, 2), port=port)
  assert f"Process 1 of 2 did not reach process 0 at 127.0.0.1:{port} within 1 s" in told
  assert "Connection refused" in told


@pytest.mark.parametrize(
  "other, message",
  [
    ((1, 3), r"different numbers of processes: process 0 .* of 2, process 1 .* of 3"),
    ((2, 3), r"different numbers of processes: process 0 .* of 2, process 2 .* of 3"),
  ],
)
def test_other_numbers_are_told_at_once(other, message):
  begun = time.monotonic()
  told = meet((0, 2), other, timeout=30)
  assert time.monotonic() - begun < 5
  for line in told:
    assert re.search(message, line)


def test_an_index_that_two_have_is_told_at_once():
  told = meet((0, 3), (1, 3), (1, 3), timeout=30)
  assert all("Two processes have the same index: process 1" in line for line in told)


def test_one_that_was_started_again_takes_its_own_place():
  port = free_port()
  told = []
  zero = threading.Thread(target=lambda: told.extend(meet((0, 3), port=port, timeout=9)))
  zero.start()
  dead = knock(port)
  dead.sendall(json.dumps(["rankclip_jax", 1, 3, "host", 7, {}]).encode() + b"\n")
  dead.close()
  assert meet((1, 3), (2, 3), port=port, timeout=9) == ["", ""]
  zero.join()
  assert told == [""]


def test_one_that_left_has_not_come():
  port = free_port()
  told = []
  zero = threading.Thread(target=lambda: told.extend(meet((0, 3), port=port, timeout=2)))
  zero.start()
  with contextlib.closing(knock(port)) as dead:
    dead.sendall(json.dumps(["rankclip_jax", 1, 3, "host", 7, {}]).encode() + b"\n")
    dead.shutdown(socket.SHUT_WR)
  zero.join()
  assert told[0].startswith("Processes 1-2 of 3 did not come within 2 s")


def test_a_port_that_is_taken_is_named():
  with socket.create_server(("", 0)) as server:
    port = server.getsockname()[1]
    with pytest.raises(ValueError, match=f"cannot listen on port {port} of .*in use"):
      roll_call.meet(f"127.0.0.1:{port}", 2, 0, {}, 1.0, FINE)


def test_strangers_neither_count_nor_disturb():
  port = free_port()
  told = []
  zero = threading.Thread(target=lambda: told.extend(meet((0, 2), port=port, timeout=9)))
  zero.start()
  for text in (b"GET / HTTP/1.1\r\n\r\n", b"[1, 2]\n", b'["rankclip_jax"]\n', b""):
    with knock(port) as stranger:
      stranger.sendall(text)
  assert meet((1, 2), port=port, timeout=9) == [""]
  zero.join()
  assert told == [""]


def test_something_else_at_the_address_is_named():
  with socket.create_server(("127.0.0.1", 0)) as server:

    def answer():
      connection, _ = server.accept()
      with connection:
        connection.recv(10_000)
        connection.sendall(json.dumps(["other", ""]).encode() + b"\n")

    thread = threading.Thread(target=answer)
    thread.start()
    (told,) = meet((1, 2), port=server.getsockname()[1])
    thread.join()
  assert told.startswith("Something else than process 0 of this run answers at 127.")


def test_a_silent_stranger_at_the_address_is_named_soon():
  with socket.create_server(("127.0.0.1", 0)) as server:  # nobody accepts
    began = time.monotonic()
    (told,) = meet((1, 2), port=server.getsockname()[1], timeout=60.0)
    assert time.monotonic() - began < 20
  assert told.startswith("Something else than process 0 of this run answers at 127.")


@pytest.mark.parametrize("address", ["", "host", "host:", "host:x", "host:99999", ":80"])
def test_an_address_that_is_none(address):
  with pytest.raises(ValueError, match="must be HOST:PORT of process 0, got"):
    roll_call.meet(address, 2, 1, {}, 1.0, FINE)


def test_spans():
  assert roll_call.spans([5, 0, 1, 2]) == "0-2, 5"
  assert roll_call.named([3]) == "Process 3"
  assert roll_call.named([3, 4]) == "Processes 3-4"
