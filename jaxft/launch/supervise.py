"""A parent process beside each process of a run, which turns a dead peer into a message.

jax's client ends its process at once when a peer is gone, and names a number in a page of C++. The
parents of all processes are connected, so that each learns within moments how the others ended,
stops its own process, and prints which one failed first and why.
"""

from __future__ import annotations

import collections
import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence

from jaxft.errors import opening
from jaxft.launch.cluster import SUPERVISED, Cluster, join_seconds
from jaxft.launch.roll import Member
from jaxft.launch.team import COMPUTATION_FAILED, STOPPED, End, Team, join

# A peer died: not this host's fault; the run resumes from its last save when started again.
PEER_LOST = 75  # EX_TEMPFAIL of sysexits.h
GRACE = 5.0  # seconds for a process to end by itself once a peer has failed
ABORTED = b"JAX distributed service detected fatal errors"
UNHEALTHY = re.compile(rb"unhealthy \(stopped sending heartbeats\):\s*([\d, \n]+)")
LEADER = b"Either the leader task was preempted"


def supervise(cluster: Cluster, words: Sequence[str]) -> int:
    """Run one process of several, and watch it and the others.

    Args:
        cluster: this process among the others.
        words: the command line after `jaxft`.

    Returns:
        Its exit code if it ended by itself; 2 if another process failed with a user error, 75 if
        another died.

    Raises:
        UserError: not all processes started.
    """
    with join(cluster, join_seconds()) as team, _child(cluster, words) as child:
        ended = _watch(child, team)
        return _report(cluster, team, child, ended)


class Child:
    """The training process, with the last lines of its standard error."""

    def __init__(self, cluster: Cluster, words: Sequence[str]):
        self._number = cluster.process
        life, self._life = os.pipe()
        environment = {**os.environ, **cluster.environment(), SUPERVISED: str(life)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "jaxft.cli.supervised", *words],
            env=environment,
            stdout=None if cluster.process == 0 else subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=(life,),
            process_group=0,  # Ctrl-C goes to the parent, which asks all to save and stop
        )
        os.close(life)
        self.tail: collections.deque[bytes] = collections.deque(maxlen=200)
        self.asked = 0
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        mark = b"" if self._number == 0 else f"[process {self._number}] ".encode()
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.tail.append(line)
            with contextlib.suppress(OSError, ValueError):
                sys.stderr.buffer.write(mark + line)
                sys.stderr.buffer.flush()

    def stop(self, number: int, frame: object) -> None:
        """Forward a signal; a second Ctrl-C kills the process."""
        del frame
        again = self.asked and number == signal.SIGINT
        self.asked = self.asked or number
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGKILL if again else signal.SIGTERM)

    def end(self) -> End:
        """Return how the process ended; call it afterwards only."""
        self._reader.join(5)
        code, output = self.process.returncode, b"".join(self.tail)
        last = [line.strip() for line in self.tail if line.strip()]
        if code == -signal.SIGABRT and ABORTED in output:
            match = UNHEALTHY.search(output)
            blamed = tuple(map(int, re.findall(rb"\d+", match[1]))) if match else ()
            blamed = blamed or ((0,) if LEADER in output else ())
            return End(self._number, code, "lost touch with the others", blamed)
        if code == COMPUTATION_FAILED:
            text = last[-1].decode(errors="replace") if last else "no output"
            return End(self._number, code, f"could not compute with the others ({text})", ())
        if code < 0:
            if self.asked and -code in (signal.SIGTERM, signal.SIGKILL):
                return End(self._number, code, "was stopped before it could save")
            name = signal.Signals(-code).name
            return End(self._number, code, f"was killed by signal {-code} ({name})")
        sentences = [line for line in last if line.startswith(b"jaxft: ")]
        if code == 2 and sentences:
            text = sentences[-1].removeprefix(b"jaxft: ").decode(errors="replace")
            return End(self._number, code, f"ended: {text}")
        return End(self._number, code, f"ended with exit code {code}")

    def close(self) -> None:
        """Kill the process if it still runs."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._life)


@contextlib.contextmanager
def _child(cluster: Cluster, words: Sequence[str]) -> Iterator[Child]:
    child = Child(cluster, words)
    before = {n: signal.signal(n, child.stop) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield child
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        child.close()


def _watch(child: Child, team: Team) -> End | None:
    """Wait until the process has ended; return how, or None if it had to be killed."""
    since: float | None = None
    while child.process.poll() is None:
        time.sleep(0.05)
        first = team.first
        if first is None:
            continue
        since = time.monotonic() if since is None else since
        if time.monotonic() - since > GRACE:
            child.process.kill()
            child.process.wait()
            return None
    ended = child.end()
    team.tell(ended)
    return ended


def _report(cluster: Cluster, team: Team, child: Child, ended: End | None) -> int:
    """Wait for the others, print which one failed if not this one, return the exit code."""
    team.wait()
    first = team.first
    if first is None:  # all ended well
        assert ended is not None
        return _exit_code(ended.code or 0)
    culprit, name = first, team.members[first.process]
    own = ended is not None and culprit.process == cluster.process
    said_itself = ended is not None and ended.code == 2
    if not said_itself and not (own and culprit.code == 1):
        _say(name, culprit, cluster)
    if own and culprit.code is not None:
        return _exit_code(culprit.code)
    if ended is not None and ended.code in (2, STOPPED):
        return ended.code
    return 2 if culprit.code == 2 else PEER_LOST


def _exit_code(code: int) -> int:
    """Return the exit code as a shell does: 128 + the number of a signal."""
    return 128 - code if code < 0 else code


def _say(name: Member, culprit: End, cluster: Cluster) -> None:
    again = " Run it again with --resume, on any number of processes."
    hint = "" if culprit.code == 2 else again
    print(
        f"jaxft: {opening(str(name))} {culprit.why.rstrip('.')}, and the run of "
        f"{cluster.processes} processes ended.{hint}",
        file=sys.stderr,
        flush=True,
    )
