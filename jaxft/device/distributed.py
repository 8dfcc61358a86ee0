"""The processes of a run: joined, compared, and told what only the first one knows.

What they say to each other here goes through the key-value store of jax's coordination service,
which needs no device and compiles nothing. With one process everything here does nothing.
"""

from __future__ import annotations

import itertools
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from jaxft.errors import UserError, opening
from jaxft.launch.cluster import SUPERVISED, find_cluster, join_seconds

T = TypeVar("T")

HEARTBEAT_SECONDS = 30  # without a sign of life, after which jax takes a process for dead
SHUTDOWN_SECONDS = 60
COMPARE_SECONDS = 60  # in which all have to say what they are
PIECE = 2**20  # characters of a text that are one value of the key-value store
SHARED = "run.dir must be a folder that every host can access, on a shared disk or in a bucket."
_HOST = "jaxft/host/"
_rounds = itertools.count()  # every process asks the same questions in the same order


def start() -> None:
    """Join the other processes, where this is one of several; before jax looks for devices.

    Raises:
        UserError: the variables or the cluster name no whole set of processes.
    """
    import jax

    if jax.distributed.is_initialized():
        return
    cluster = find_cluster()
    if cluster is None:
        return
    if SUPERVISED in os.environ:
        _end_with(int(os.environ.pop(SUPERVISED)))
    jax.distributed.initialize(
        cluster.address,
        cluster.processes,
        cluster.process,
        local_device_ids=cluster.devices,
        cluster_detection_method="deactivate",  # it is found
        initialization_timeout=int(join_seconds()),
        heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        shutdown_timeout_seconds=SHUTDOWN_SECONDS,
    )
    _state().client.key_value_set(f"{_HOST}{cluster.process}", socket.gethostname())


def _end_with(life: int) -> None:
    """End at once when the parent, which holds the other end of a pipe, is gone."""

    def wait() -> None:
        os.read(life, 1)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def processes() -> int:
    """Count the processes; asked without waking the devices."""
    return max(_state().num_processes, 1)


def is_first() -> bool:
    """Return whether this process writes and prints for all."""
    import jax

    return jax.process_index() == 0


def name_of(process: int) -> str:
    """A process as a person would look for it."""
    host = _state().client.key_value_try_get(f"{_HOST}{process}")
    return f"process {process} on {host}"


def from_first(make: Callable[[], T]) -> T:
    """Return in every process what the first one makes; anything JSON holds.

    The others wait for it as long as it lives.

    Args:
        make: called in the first process only.

    Raises:
        UserError: `make` did, in all of them.
    """
    if processes() == 1:
        return make()
    key = f"jaxft/first/{next(_rounds)}"
    if not is_first():
        answer = json.loads(_get(key, 0))
        if "error" in answer:
            raise UserError(*answer["error"])
        return answer["value"]
    try:
        value = make()
    except UserError as error:
        _state().client.key_value_set(key, json.dumps({"error": (error.message, error.hint)}))
        raise
    _state().client.key_value_set(key, json.dumps({"value": value}))
    return value


def wait_for_all() -> None:
    """Until every process is here, however long that takes them while they live."""
    if processes() > 1:
        gather("")


def compare(facts: Mapping[str, Any], hint: str = "", *, patient: bool = False) -> None:
    """Check that all processes agree, and name the first that does not and what differs.

    Args:
        facts: name -> anything JSON holds.
        hint: what to do where they differ.
        patient: wait for the others as long as they live, and say for whom; else a minute.

    Raises:
        UserError: some differ, or one has said nothing for a minute; in all of them.
    """
    if processes() == 1:
        return
    answers = [json.loads(text) for text in gather(json.dumps(facts), patient=patient)]
    for process, other in enumerate(answers):
        for name in dict.fromkeys((*answers[0], *other)):
            here, there = answers[0].get(name), other.get(name)
            if here != there:
                raise UserError(
                    f"{opening(name_of(process))} differs from {name_of(0)} in {name}: "
                    f"{_shown(there)} there, {_shown(here)} on the first.",
                    hint,
                )


def _shown(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) < 80 else f"{text[:77]}..."


def gather(text: str, *, patient: bool = True) -> list[str]:
    """Return the text of each process, in order; all have to call it.

    Args:
        text: this process's, of any length.
        patient: wait for the others as long as they live, and say for whom; else a minute.
    """
    topic, me, client = f"jaxft/all/{next(_rounds)}/", _state().process_id, _state().client
    pieces = [text[start : start + PIECE] for start in range(0, len(text), PIECE)] or [""]
    for number, piece in enumerate(pieces[1:], 1):
        client.key_value_set(f"{topic}{me}/{number}", piece)
    client.key_value_set(f"{topic}{me}", f"{len(pieces)} {pieces[0]}")
    end = None if patient else time.monotonic() + COMPARE_SECONDS
    return [_pieces(f"{topic}{process}", process, end) for process in range(processes())]


def _pieces(key: str, process: int, end: float | None) -> str:
    """Return a text that a process has said in pieces."""
    count, _, first = _get(key, process, end).partition(" ")
    rest = (_get(f"{key}/{number}", process, end) for number in range(1, int(count)))
    return "".join([first, *rest])


def _get(key: str, process: int, end: float | None = None) -> str:
    """Wait for the value of a key, without or with a deadline; a dead process ends this one."""
    import jax

    while True:
        seconds = COMPARE_SECONDS if end is None else max(end - time.monotonic(), 0.1)
        try:
            return _state().client.blocking_key_value_get(key, int(seconds * 1000))
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
        if end is not None:
            raise UserError(
                f"{opening(name_of(process))} did not reach this point within {COMPARE_SECONDS} s.",
                "Check its output; all processes must run the same command.",
            )
        print(f"waiting for {name_of(process)}", file=sys.stderr, flush=True)


def _state() -> Any:
    # jax has no public face of its key-value store; Orbax reaches for it in the same way.
    from jax._src.distributed import global_state

    return global_state
