"""Connections between the parents of a run's processes, beside jax's own.

Process 0's parent listens on the port after the coordinator's. It calls the roll before any jax
starts, so that a missing process is named, and later hears from each how its process ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from jaxft.errors import UserError, opening
from jaxft.launch.cluster import Cluster

PORT = "JAXFT_SUPERVISOR_PORT"
LONGEST = 1 << 20  # bytes of a message
RETRY = 0.2  # seconds
ALIVE = {"alive": True}  # a message that says nothing else


@dataclass(frozen=True)
class Member:
    """A process of the run, as its parent reports it.

    Attributes:
        process: its number.
        of: the number of processes that it was started with.
        host: the machine.
        pid: the process id of its parent.
    """

    process: int
    of: int
    host: str
    pid: int

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}"


class Line:
    """A connection that carries JSON, one message per line."""

    def __init__(self, connection: socket.socket):
        self._socket = connection
        self._sending = threading.Lock()
        self._read = connection.makefile("rb")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        # A host that loses power closes no connection: probe after 10 silent seconds, 4 times.
        for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):
            if hasattr(socket, name):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def send(self, message: dict[str, Any]) -> None:
        """Send a message; if the other end is gone, reading reports it."""
        with contextlib.suppress(OSError), self._sending:
            self._socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self, seconds: float | None = None) -> dict[str, Any] | None:
        """Return the next message; None if the other end is gone, silent for too long, or not a
        parent.
        """
        try:
            self._socket.settimeout(seconds)
            message = json.loads(self._read.readline(LONGEST))
        except (OSError, ValueError):
            return None
        return message if isinstance(message, dict) else None

    def next_report(self, silent_seconds: float) -> dict[str, Any] | None:
        """Return the next message but signs of life; None if the other end is gone.

        Raises:
            TimeoutError: not even a sign of life came for so many seconds. Its system may still
                answer for a process or a machine that has stopped, so TCP does not notice.
        """
        while True:
            try:
                self._socket.settimeout(silent_seconds)
                message = json.loads(self._read.readline(LONGEST))
            except TimeoutError:
                raise
            except (OSError, ValueError):
                return None
            if not isinstance(message, dict):
                return None
            if message != ALIVE:
                return message

    def close(self) -> None:
        """Close the connection; the other end sees that."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._read.close()
        self._socket.close()


def myself(cluster: Cluster) -> Member:
    """Return the description of this process."""
    return Member(cluster.process, cluster.processes, socket.gethostname(), os.getpid())


def supervisor_port(cluster: Cluster) -> int:
    """Return the port of process 0's parent: `JAXFT_SUPERVISOR_PORT`, or the coordinator's + 1."""
    text = os.environ.get(PORT, "")
    if text and not text.isdecimal():
        raise UserError(f"{PORT} must be a port number, not '{text}'.")
    port = int(cluster.address.rpartition(":")[2])
    return int(text) if text else port + (1 if port < 65535 else -1)


def call_roll(cluster: Cluster, seconds: float) -> tuple[list[Member], dict[int, Line]]:
    """Wait, as process 0's parent, for the others, and tell all of them who is present.

    Args:
        cluster: the run's processes.
        seconds: the time to wait for them.

    Returns:
        The members in order, and the connection to each but the first.

    Raises:
        UserError: one is missing, started twice, or expects another number of processes; all are
            told.
    """
    members, lines = {0: myself(cluster)}, {}
    end = time.monotonic() + seconds
    wrong = ""
    with _listen(cluster) as listener:
        while len(members) < cluster.processes and not wrong:
            listener.settimeout(max(end - time.monotonic(), 0.01))
            try:
                line = Line(listener.accept()[0])
            except TimeoutError:
                wrong = _missing(cluster, members, seconds)
                break
            member = _introduced(line)
            if member is None:
                line.close()  # not a parent of a run
                continue
            wrong = _out_of_place(member, members, cluster)
            lines[member.process if not wrong else -1] = line
            members.setdefault(member.process, member)
    roll = [members[process] for process in sorted(members)]
    for line in lines.values():
        line.send({"refused": wrong} if wrong else {"roll": [asdict(member) for member in roll]})
    if wrong:
        for line in lines.values():
            line.close()
        raise UserError(wrong)
    return roll, lines


def answer_roll(cluster: Cluster, seconds: float) -> tuple[list[Member], Line]:
    """Connect, as any other parent, to that of process 0, and learn who is present.

    Args:
        cluster: the run's processes.
        seconds: the time to look for it.

    Raises:
        UserError: it cannot be reached, or process 0 refused.
    """
    host, port = cluster.address.rpartition(":")[0].strip("[]"), supervisor_port(cluster)
    end, reason = time.monotonic() + seconds, ""
    while True:
        try:
            line = Line(socket.create_connection((host, port), timeout=5))
            break
        except OSError as error:
            reason = error.strerror or str(error)
        if time.monotonic() > end:
            raise UserError(
                f"{opening(str(myself(cluster)))} could not reach process 0 at {host}, port "
                f"{port}, for {seconds:.0f} s: {reason}.",
                "Is it running, and is the port open between the hosts?",
            )
        time.sleep(RETRY)
    line.send(asdict(myself(cluster)))
    answer = line.receive(seconds + 10)
    if answer is not None and "roll" in answer:
        return [Member(**member) for member in answer["roll"]], line
    line.close()
    refused = (answer or {}).get("refused")
    raise UserError(
        str(refused) if refused else f"Process 0 at {host} ended before all processes had started."
    )


def _listen(cluster: Cluster) -> socket.socket:
    host, port = cluster.address.rpartition(":")[0].strip("[]"), supervisor_port(cluster)
    local = host in ("localhost", "127.0.0.1", "::1")
    family = socket.AF_INET6 if host == "::1" else socket.AF_INET
    try:
        return socket.create_server(
            (host if local else "", port), family=family, backlog=max(cluster.processes, 16)
        )
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise UserError(
            f"Process 0 cannot listen on port {port}: {reason}.",
            f"Choose another coordinator port, or set {PORT} to the same port on every host.",
        ) from error


def _introduced(line: Line) -> Member | None:
    message = line.receive(5)
    try:
        return Member(**message) if message is not None else None
    except TypeError:
        return None


def _out_of_place(member: Member, members: dict[int, Member], cluster: Cluster) -> str:
    """Return the problem with an arriving process, in a sentence; empty if there is none."""
    first = members[0]
    if member.of != cluster.processes:
        return (
            f"{opening(str(member))} was started with {member.of} processes, and {first} with "
            f"{cluster.processes}."
        )
    if member.process in members:
        there = members[member.process]
        return (
            f"Process {member.process} was started twice: on {there.host} ({there.pid}) and on "
            f"{member.host} ({member.pid})."
        )
    return ""


def _missing(cluster: Cluster, here: dict[int, Member], seconds: float) -> str:
    absent = [process for process in range(cluster.processes) if process not in here]
    names = f"process{'es' if len(absent) > 1 else ''} {_listed(absent)}"
    there = _listed([f"{process} on {here[process].host}" for process in sorted(here)])
    return (
        f"{names.capitalize()} of {cluster.processes} did not start within {seconds:.0f} s; "
        f"here: {there}."
    )


def _listed(parts: Sequence[Any]) -> str:
    return ", ".join(map(str, parts))
