"""Runs jaxft's commands one after another in one process, some with faults of the file system.

The process has the library of `faults.c` preloaded. The train step, the eval step and the count of
FLOPs are traced once for all runs, which have one config: a run then takes a second or two, most of
it for its files. A command that is to be killed runs in a fork, made before jax starts its threads.

Reads one JSON object a line from standard input, and answers each with one on standard output; see
`harness.Driver`.
"""

from __future__ import annotations

import ctypes
import faulthandler
import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

from jaxft.cli.main import main
from jaxft.cli.parts.process import prepare_command_line
from jaxft.engine import evaluate, initial_state
from jaxft.training import metadata, phase
from jaxft.training import story as _story  # noqa: F401 imported before the forks

PRELOADED = "LD_PRELOAD" in os.environ
LIBRARY = ctypes.CDLL(None)
SECONDS = 600  # for one command, after which it counts as one that never ends


def once(function: Callable) -> Callable:
    """Return a function that keeps its first result, whatever it is called with."""
    results: list[Any] = []

    def first(*arguments: Any, **named: Any) -> Any:
        if not results:
            results.append(function(*arguments, **named))
        return results[0]

    return first


def trace_once() -> None:
    """Share what is traced between the runs of this process, which differ in their files only."""
    phase.make_train_step = once(phase.make_train_step)
    evaluate.make_eval_step = once(evaluate.make_eval_step)
    metadata.step_flops = once(metadata.step_flops)
    initial_state._maker = once(initial_state._maker)


def arm(fault: dict[str, Any]) -> None:
    """Have the library count calls, and do at one of them what `fault` says."""
    texts = [ctypes.c_char_p(fault[name].encode()) for name in ("folder", "copies")]
    numbers = [ctypes.c_long(fault[name]) for name in ("at", "step")]
    LIBRARY.fault_arm(texts[0], fault["mode"], *numbers, fault["error"], texts[1])


def run(asked: dict[str, Any]) -> dict[str, Any]:
    """Run a command; return its exit code and how many calls it made below the folder."""
    streams = [os.dup(1), os.dup(2)]
    output = os.open(asked["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for number in (1, 2):
        os.dup2(output, number)
    faulthandler.dump_traceback_later(SECONDS, exit=True, file=2)
    if PRELOADED:
        arm(asked["fault"])
    try:
        code = main(asked["words"])
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    calls = LIBRARY.fault_disarm() if PRELOADED else 0
    faulthandler.cancel_dump_traceback_later()
    sys.stdout.flush()
    sys.stderr.flush()
    for number, stream in enumerate(streams, 1):
        os.dup2(stream, number)
        os.close(stream)
    os.close(output)
    return {"code": code, "calls": calls}


def killed(asked: dict[str, Any]) -> dict[str, Any]:
    """Run a command in a fork, which a fault is to kill; return the signal's negative number."""
    child = os.fork()
    if child == 0:
        os._exit(run(asked)["code"])
    _, status = os.waitpid(child, 0)
    return {"code": os.waitstatus_to_exitcode(status), "calls": 0}


def serve() -> None:
    """Answer each line of standard input."""
    prepare_command_line()
    trace_once()
    print(json.dumps({"code": 0, "calls": 0}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        answer = killed(asked) if asked["fork"] else run(asked)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve()
