"""A stand-in for `gcloud`: TPUs are files in a folder, and their workers processes on this machine.

It knows the commands that `tpu/` uses and refuses all others. Each worker has a home folder of its
own, in which `tpu-vm ssh --command` runs; jax is told of its peers by `JAX_COORDINATOR_ADDRESS`,
`JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`, as Google's metadata would. A TPU that was preempted takes
no ssh, and its workers' folders are gone when it is deleted.

`FAKE_GCLOUD` is the folder. `FAKE_GCLOUD_STATES` are the states that a request goes through, one
at each look: `ACCEPTED ACTIVE` by default.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

CHIPS_A_WORKER = 4
GIVEN_UP = "Quota 'TPUV5sLitepodPerProjectPerZoneForTPUAPI' exhausted."


def install(folder: Path) -> dict[str, str]:
    """Put a `gcloud` into `folder/bin`.

    Returns:
        The environment in which it is found and keeps its TPUs in `folder`.
    """
    (folder / "bin").mkdir(parents=True)
    command = folder / "bin" / "gcloud"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{Path(__file__).resolve()}" "$@"\n')
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "FAKE_GCLOUD": str(folder)}


def preempt(folder: Path, name: str, worker: int) -> None:
    """Take a TPU away: a worker's processes die, and Google knows; the others find out."""
    _change(folder, name, node="PREEMPTED", state="SUSPENDED")
    _kill(folder, f"{name}/{worker}")


def calls(folder: Path) -> list[list[str]]:
    """What `gcloud` was asked to do, in order."""
    return [json.loads(line) for line in (folder / "calls.jsonl").read_text().splitlines()]


def end(folder: Path) -> None:
    """End what is still running on any worker."""
    for file in folder.glob("*.json"):
        _kill(folder, f"{file.stem}/")


def _kill(folder: Path, who: str) -> None:
    """Kill every process of a worker (`NAME/0`) or a TPU (`NAME/`), whatever started it."""
    mark = f"FAKE_WORKER={folder}|{who}".encode()
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if any(variable.startswith(mark) for variable in environ.read_bytes().split(b"\0")):
                os.kill(int(environ.parent.name), signal.SIGKILL)


def main(words: list[str]) -> int:
    """Run one command."""
    folder = Path(os.environ["FAKE_GCLOUD"])
    with (folder / "calls.jsonl").open("a") as log:
        log.write(json.dumps(words) + "\n")
    command, names, options = _parse(words)
    run = COMMANDS.get(command)
    if run is None:
        return _refuse(f"Invalid choice: {command}")
    return run(folder, names, options)


def _parse(words: list[str]) -> tuple[str, list[str], dict[str, str]]:
    plain = [word for word in words if not word.startswith("--")]
    options = dict(word.partition("=")[::2] for word in words if word.startswith("--"))
    return " ".join(plain[:4]), plain[4:], options


def _create(folder: Path, names: list[str], options: dict[str, str]) -> int:
    name = names[0]
    if (folder / f"{name}.json").exists():
        return _refuse(f"Resource {name} already exists")
    chips = int(options["--accelerator-type"].rpartition("-")[2])
    _write(
        folder,
        name,
        {
            "states": os.environ.get("FAKE_GCLOUD_STATES", "ACCEPTED ACTIVE").split(),
            "workers": max(1, chips // CHIPS_A_WORKER),
            "node": "READY",
            "label": options.get("--labels", "").partition("jaxft=")[2],
            "spot": "--spot" in options,
            "port": _free_port(),
        },
    )
    return 0


def _describe_request(folder: Path, names: list[str], options: dict[str, str]) -> int:
    tpu = _read(folder, names[0])
    if tpu is None:
        return _refuse(f"Resource {names[0]} was not found")
    state = tpu["states"][0]
    if len(tpu["states"]) > 1 and "state.state" in options["--format"]:
        _write(folder, names[0], {**tpu, "states": tpu["states"][1:]})
    whole = {
        "value(state.state)": state,
        "value(tpu.nodeSpec[0].node.labels.jaxft)": tpu["label"],
        "yaml(state)": f"state:\n  failedData:\n    error:\n      message: {GIVEN_UP}",
    }
    print(whole[options["--format"]])
    return 0


def _list_requests(folder: Path, names: list[str], options: dict[str, str]) -> int:
    del names
    form = "csv[no-heading](name.basename(),state.state,tpu.nodeSpec[0].node.labels.jaxft)"
    assert options["--format"] == form
    for file in sorted(folder.glob("*.json")):
        tpu = json.loads(file.read_text())
        print(f"{file.stem},{tpu['states'][0]},{tpu['label']}")
    return 0


def _delete(folder: Path, names: list[str], options: dict[str, str]) -> int:
    assert "--force" in options
    assert "--quiet" in options
    if _read(folder, names[0]) is None:
        return _refuse(f"Resource {names[0]} was not found")
    _kill(folder, f"{names[0]}/")
    time.sleep(0.1)
    shutil.rmtree(folder / names[0], ignore_errors=True)
    (folder / f"{names[0]}.json").unlink()
    return 0


def _describe_node(folder: Path, names: list[str], options: dict[str, str]) -> int:
    tpu = _read(folder, names[0])
    if tpu is None or not _has_node(tpu):
        return _refuse(f"Resource {names[0]} was not found")
    print(
        {"value(state)": tpu["node"], "value(state,health)": f"{tpu['node']}\tHEALTHY"}[
            options["--format"]
        ]
    )
    return 0


def _has_node(tpu: dict) -> bool:
    return tpu["states"][0] == "ACTIVE" or tpu["node"] == "PREEMPTED"


def _copy(folder: Path, names: list[str], options: dict[str, str]) -> int:
    source, (name, _, target) = names[0], names[1].partition(":")
    workers = _workers(folder, name, options)
    for worker in workers:
        shutil.copy(source, _home(folder, name, worker) / target)
    return 0 if workers else _refuse(f"{name}: no machine answers", 255)


def _ssh(folder: Path, names: list[str], options: dict[str, str]) -> int:
    name, tpu = names[0], _read(folder, names[0])
    workers = _workers(folder, name, options)
    if not workers:
        return _refuse(f"{name}: no machine answers", 255)
    started = []
    for worker in workers:
        about = {
            "HOME": str(_home(folder, name, worker)),
            "FAKE_WORKER": f"{folder}|{name}/{worker}",
            "JAX_COORDINATOR_ADDRESS": f"localhost:{tpu['port']}",
            "JAX_NUM_PROCESSES": str(tpu["workers"]),
            "JAX_PROCESS_ID": str(worker),
        }
        with contextlib.ExitStack() as files:
            out = None
            if "--output-directory" in options:
                log = Path(options["--output-directory"]) / f"{worker}.log"
                out = files.enter_context(log.open("w"))
            arguments = ["bash", "-c", options["--command"]]
            how = {"cwd": about["HOME"], "env": os.environ | about, "start_new_session": True}
            shell = subprocess.Popen(arguments, **how, stdout=out, stderr=out and subprocess.STDOUT)
            started.append(shell)
    codes = [shell.wait() for shell in started]
    return next((code if code > 0 else 255 for code in codes if code), 0)


def _workers(folder: Path, name: str, options: dict[str, str]) -> list[int]:
    """The workers that a command speaks of; none where the TPU is not there."""
    tpu = _read(folder, name)
    if tpu is None or tpu["states"][0] != "ACTIVE" or tpu["node"] != "READY":
        return []
    chosen = options["--worker"]
    return list(range(tpu["workers"])) if chosen == "all" else [int(chosen)]


def _home(folder: Path, name: str, worker: int) -> Path:
    home = folder / name / f"worker-{worker}"
    home.mkdir(parents=True, exist_ok=True)
    return home


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def _read(folder: Path, name: str) -> dict | None:
    file = folder / f"{name}.json"
    return json.loads(file.read_text()) if file.exists() else None


def _write(folder: Path, name: str, tpu: dict) -> None:
    aside = folder / f"{name}.part"
    aside.write_text(json.dumps(tpu))
    os.replace(aside, folder / f"{name}.json")


def _change(folder: Path, name: str, node: str, state: str) -> None:
    tpu = _read(folder, name)
    assert tpu is not None
    _write(folder, name, {**tpu, "node": node, "states": [state]})


def _refuse(message: str, code: int = 1) -> int:
    print(f"ERROR: (gcloud) {message}", file=sys.stderr)
    return code


COMMANDS = {
    "compute tpus queued-resources create": _create,
    "compute tpus queued-resources describe": _describe_request,
    "compute tpus queued-resources list": _list_requests,
    "compute tpus queued-resources delete": _delete,
    "compute tpus tpu-vm describe": _describe_node,
    "compute tpus tpu-vm scp": _copy,
    "compute tpus tpu-vm ssh": _ssh,
}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
