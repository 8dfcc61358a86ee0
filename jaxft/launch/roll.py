"""The parents of a run's processes find each other and keep a line open, beside jax's own.

Process 0's parent listens on the port after the coordinator's. It calls the roll before any jax
starts, so that who is missing has a name, and later hears from each how its process ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from jaxft.errors import UserError
from jaxft.launch.cluster import Cluster

PORT = "JAXFT_SUPERVISOR_PORT"
LONGEST = 1 << 20  # bytes of a message
RETRY = 0.2  # seconds


@dataclass(frozen=True)
class Member:
    """A process of the run, as its parent introduces it.

    Attributes:
        process: its number.
        of: how many it was told that there are.
        host: the machine.
        pid: its parent's.
    """

    process: int
    of: int
    host: str
    pid: int

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}"


class Line:
    """A connection that carries JSON, one message a line."""

    def __init__(self, connection: socket.socket):
        self._socket = connection
        self._read = connection.makefile("rb")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        # A host that loses its power says no goodbye: ask after 10 silent seconds, 4 times.
        for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):
            if hasattr(socket, name):
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def send(self, message: dict[str, Any]) -> None:
        """Send, unless the other end is gone: then reading says so."""
        with contextlib.suppress(OSError):
            self._socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self, seconds: float | None = None) -> dict[str, Any] | None:
        """The next message; None where the other end is gone, silent for too long, or no parent."""
        try:
            self._socket.settimeout(seconds)
            message = json.loads(self._read.readline(LONGEST))
        except (OSError, ValueError):
            return None
        return message if isinstance(message, dict) else None

    def close(self) -> None:
        """Hang up; a reader elsewhere sees the end."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._read.close()
        self._socket.close()


def myself(cluster: Cluster) -> Member:
    """This process, introduced."""
    return Member(cluster.process, cluster.processes, socket.gethostname(), os.getpid())


def supervisor_port(cluster: Cluster) -> int:
    """Where process 0's parent listens: `JAXFT_SUPERVISOR_PORT`, or the coordinator's port + 1."""
    given = os.environ.get(PORT, "")
    if given and not given.isdecimal():
        raise UserError(f"{PORT} is a port's number, not '{given}'.")
    port = int(cluster.address.rpartition(":")[2])
    return int(given) if given else port + (1 if port < 65535 else -1)


def call_roll(cluster: Cluster, seconds: float) -> tuple[list[Member], dict[int, Line]]:
    """As process 0's parent: wait for the others, and tell all who is here.

    Args:
        cluster: the run's processes.
        seconds: to wait for them.

    Returns:
        The members in order, and the line to each but the first.

    Raises:
        UserError: one is missing, there twice, or was told of another number; all hear it.
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
                line.close()  # no parent of a run
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
    """As any other parent: find process 0's, and hear who is here.

    Args:
        cluster: the run's processes.
        seconds: to look for it.

    Raises:
        UserError: it cannot be reached, or process 0 refused the roll.
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
                f"{str(myself(cluster)).capitalize()} could not reach process 0 at {host}, port "
                f"{port}, for {seconds:.0f} s: {reason}.",
                "Is it running, and is the port open between the hosts?",
            )
        time.sleep(RETRY)
    line.send(asdict(myself(cluster)))
    answer = line.receive(seconds + 10)
    if answer is not None and "roll" in answer:
        return [Member(**member) for member in answer["roll"]], line
    line.close()
    said = (answer or {}).get("refused")
    raise UserError(str(said) if said else f"Process 0 at {host} ended before all were there.")


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
            f"Choose another coordinator port, or set {PORT} alike on every host.",
        ) from error


def _introduced(line: Line) -> Member | None:
    said = line.receive(5)
    try:
        return Member(**said) if said is not None else None
    except TypeError:
        return None


def _out_of_place(member: Member, members: dict[int, Member], cluster: Cluster) -> str:
    """What is wrong with one that arrives, in a sentence; empty where nothing is."""
    first = members[0]
    if member.of != cluster.processes:
        return (
            f"{str(member).capitalize()} was told of {member.of} processes, and {first} of "
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
