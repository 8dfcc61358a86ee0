"""`jaxft launch`: one command on several hosts."""

from __future__ import annotations

from typing import Annotated

import typer

from jaxft.cli.parts.terminal import echo

Hosts = Annotated[
    str, typer.Option(metavar="HOST,HOST", help="The hosts, by ssh; the first one coordinates.")
]
Words = Annotated[
    list[str], typer.Argument(metavar="COMMAND", help="A command, such as `train CONFIG`.")
]
Port = Annotated[int, typer.Option(help="Port of the coordinator, and the next one.", min=1)]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what runs on which host.")]


def launch(words: Words, hosts: Hosts, port: Port = 8476, dry_run: DryRun = False) -> None:
    """Run a command on several hosts at once, as the processes of one run.

    The hosts are reached by ssh without a password, and have this folder and this Python at the
    same place. On TPU pods use tpu/run.sh, and on clusters their own launchers.
    """
    from jaxft.launch.hosts import commands_of, named_hosts, run_on

    commands = commands_of(named_hosts(hosts), words, port)
    if dry_run:
        for host, command in commands.items():
            echo(f"{host}: {command}")
        return
    raise typer.Exit(run_on(commands))
