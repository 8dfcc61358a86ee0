"""A command that several processes run together, each with its share of the model."""

from __future__ import annotations

import collections
import os
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import typer

from jaxft.errors import UserError
from jaxft.launch.cluster import SUPERVISED, find_cluster
from jaxft.launch.supervise import supervise


def join_processes(words: Sequence[str]) -> None:
    """Join the other processes, or watch the one that does; nothing where there is no cluster.

    Args:
        words: the command line after `jaxft`.

    Raises:
        UserError: not all processes started, or their commands differ.
    """
    if SUPERVISED in os.environ:
        from jaxft.device.distributed import compare, start

        start()
        compare({"the command": " ".join(words)}, "Start every process with the same command.")
    elif (cluster := find_cluster()) is not None:
        raise typer.Exit(supervise(cluster, words))


def are_several() -> bool:
    """Return whether this process has joined others; jax is not imported to find out."""
    if "jax" not in sys.modules:
        return False
    from jaxft.device.distributed import processes

    return processes() > 1


def is_another() -> bool:
    """Return whether another process prints and writes for this one."""
    if not are_several():
        return False
    from jaxft.device.distributed import is_first

    return not is_first()


def from_first_inputs(inputs: Iterable[str] | None) -> Iterable[str] | None:
    """Return what the first process reads, in all of them.

    Raises:
        UserError: there are several, and a person is to type the inputs.
    """
    if not are_several():
        return inputs
    if inputs is None:
        raise UserError(
            "Several processes cannot read what one person types.", "Give inputs, or --file."
        )
    from jaxft.device.distributed import from_first

    return from_first(lambda: list(inputs))


def consume(lines: Iterable[Any]) -> None:
    """Compute lines that another process prints."""
    collections.deque(lines, maxlen=0)
