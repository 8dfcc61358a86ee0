"""The same command on several hosts over ssh, as the processes of one run."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence

from jaxft.errors import UserError
from jaxft.launch.cluster import Cluster

SSH = ("ssh", "-o", "BatchMode=yes")  # asks for no password
PORT = 8476  # of the coordinator; the parents of the processes meet on the next one


def named_hosts(text: str) -> list[str]:
    """Split `host-0,host-1`.

    Raises:
        UserError: a name is empty, starts with a hyphen, or comes twice.
    """
    hosts = [host.strip() for host in text.split(",")]
    for host in hosts:
        if not host or host.startswith("-") or len(host.split()) > 1:
            raise UserError(
                f"--hosts: '{host}' is not the name of a host.", "Write host-0,host-1,host-2."
            )
        if hosts.count(host) > 1:
            raise UserError(
                f"--hosts: {host} is named twice; one process uses all devices of a host."
            )
    return hosts


def commands_of(hosts: Sequence[str], words: Sequence[str], port: int = PORT) -> dict[str, str]:
    """Return the shell command of each host, in the order of the processes.

    They run in this folder with this interpreter, which every host has at the same place.

    Args:
        hosts: the first one coordinates.
        words: the command line after `jaxft`.
        port: of the coordinator, on the first host.
    """
    address = f"{hosts[0].rpartition('@')[2]}:{port}"
    commands = {}
    for number, host in enumerate(hosts):
        variables = Cluster(address, len(hosts), number).environment()
        each = [f"{name}={value}" for name, value in variables.items()]
        line = shlex.join(["env", *each, sys.executable, "-m", "jaxft", *words])
        commands[host] = f"cd {shlex.quote(os.getcwd())} && exec {line}"
    return commands


def run_on(commands: Mapping[str, str]) -> int:
    """Run each host's command; return the first exit code that is not 0.

    SIGINT and SIGTERM ask every process to save and stop, and so does the end of this one.

    Args:
        commands: host -> a shell command.
    """
    started = [
        subprocess.Popen(
            [*SSH, host, _stoppable(command)], stdin=subprocess.PIPE, start_new_session=True
        )
        for host, command in commands.items()
    ]

    def end_inputs() -> None:
        for process in started:
            assert process.stdin is not None
            process.stdin.close()

    def stop(number: int, frame: object) -> None:
        del number, frame
        end_inputs()

    before = {name: signal.signal(name, stop) for name in (signal.SIGINT, signal.SIGTERM)}
    try:
        codes = [process.wait() for process in started]
    finally:
        end_inputs()
        for name, handler in before.items():
            signal.signal(name, handler)
    return next((code for code in codes if code), 0)


def _stoppable(command: str) -> str:
    """Return a command that gets SIGTERM when the input of its shell ends."""
    watch = "{ cat <&3; kill -TERM $child; } > /dev/null 2>&1 &"
    return f"exec 3<&0; {{ {command}; }} & child=$!; {watch} wait $child"
