"""Several processes on this machine, joined as hosts are, train as one process does."""

import json
import os
import re
import signal
import socket
import time
from pathlib import Path

import numpy as np
import pytest

from jaxft.cli.main import main
from jaxft.config.load import parse_config
from jaxft.launch.supervise import PEER_LOST
from tests.support.launch import (  # noqa: F401 two fixtures
    cache,
    content,
    ended,
    events,
    launch_hosts,
    write_config,
)
from tests.support.tiny import tiny_checkpoint, tiny_config, tiny_reviews
from tests.support.xla import xla_flags

STEPS = 16
HOST = socket.gethostname()
# The program is not what is looked at, and several processes compile it.
QUICK = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
pytestmark = pytest.mark.usefixtures("cache", "ended")


@pytest.fixture(scope="module")
def config(tmp_path_factory, cache):  # noqa: F811 the fixture above
    """Eight rows a step, on any of these meshes; with frozen layers, an average and packing."""
    return tiny_config(
        tmp_path_factory.mktemp("alone"),
        data={"batch_size": 24},
        groups=[{"name": "low", "depth": [0, 1], "freeze": True}],
        model={"dropout": 0.0},
        train={
            "length": f"{STEPS} steps",
            "evaluate_every": "8 steps",
            "log_every": 1,
            "ema": 0.9,
        },
        checkpoint={"every": 4, "best": "loss"},
    )


@pytest.fixture(scope="module")
def alone(config):
    """The run folder of one process with eight devices."""
    file = write_config(config, Path(config.run.dir).parent / "tiny.yaml")
    assert main(["train", file, "--quiet"]) == 0
    return Path(config.run.dir) / "tiny"


@pytest.fixture
def file(config, tmp_path):
    """The same config, for a run of its own in `tmp_path`."""
    moved = config.dump()
    moved["run"]["dir"] = str(tmp_path / "runs")
    return write_config(parse_config(moved), tmp_path / "tiny.yaml")


def assert_same(run, alone):
    """One diary, and what it says is what one process says of the same rows in the same order."""
    for kind in ("train", "eval"):
        ours, theirs = events(run, kind), events(alone, kind)
        assert [event["step"] for event in ours] == [event["step"] for event in theirs]
        for name in ("loss", "grad_norm", "accuracy"):
            if name in theirs[0]:
                said = [[event[name] for event in part] for part in (ours, theirs)]
                np.testing.assert_allclose(*said, atol=1e-5, rtol=0, err_msg=name)
    first, second = (json.loads((one / "result.json").read_text()) for one in (run, alone))
    assert first["metrics"].keys() == second["metrics"].keys()
    np.testing.assert_allclose(first["metrics"]["loss"], second["metrics"]["loss"], atol=1e-5)
    for name in ("predictions-eval.jsonl", "predictions-test.jsonl"):
        ours, theirs = (_lines(one / name) for one in (run, alone))
        assert [line["text"] for line in ours] == [line["text"] for line in theirs]
        losses = [[line["loss"] for line in part] for part in (ours, theirs)]
        np.testing.assert_allclose(*losses, atol=1e-5, rtol=0, err_msg=name)
    names = [sorted(path.name for path in one.iterdir()) for one in (run, alone)]
    assert names[0] == names[1], "no file more, none less"


def _lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def reached(run, step):
    return any(event["step"] >= step for event in events(run, "train")[-1:])


def end_all(hosts, seconds=400):
    """Wait for all; their exit codes."""
    return [host.end(seconds) for host in hosts]


# ------------------------------------------------------------------------------ equal to one


@pytest.mark.slow
def test_one_that_is_killed_is_named_and_one_process_goes_on_as_if_alone(file, alone, tmp_path):
    run = tmp_path / "runs" / "tiny"
    hosts = launch_hosts(tmp_path, 2, "train", file, **QUICK)
    hosts[0].until(lambda: reached(run, 9))
    since = time.monotonic()
    os.kill(hosts[1].child(), signal.SIGKILL)
    assert end_all(hosts, 30) == [PEER_LOST, 128 + signal.SIGKILL], hosts[0].said
    assert time.monotonic() - since < 30
    wanted = (
        f"jaxft: Process 1 on {HOST} was killed by signal 9 (SIGKILL), and the run of 2 processes "
        "ended. Run it again with --resume, on any number of processes."
    )
    for host in hosts:
        assert wanted in host.said
    assert "step 8" in hosts[0].said
    assert "step" not in hosts[1].said.replace("--resume", ""), "the first alone reports"
    before = events(run, "train")
    assert main(["train", file, "--resume", "--quiet"]) == 0
    assert json.loads((run / "run.json").read_text())["state"] == "finished"
    assert_same(run, alone)
    kept = [event["loss"] for event in events(alone, "train")[: len(before)]]
    np.testing.assert_allclose([event["loss"] for event in before], kept, atol=1e-5, rtol=0)


@pytest.mark.full
@pytest.mark.parametrize(("count", "devices"), [(2, 1), (2, 2), (4, 1)])
def test_several_equal_one(count, devices, file, alone, tmp_path):
    hosts = launch_hosts(tmp_path, count, "train", file, devices=devices)
    assert end_all(hosts) == [0] * count, hosts[0].said
    run = tmp_path / "runs" / "tiny"
    assert_same(run, alone)
    assert hosts[0].said.rstrip().endswith(str(run))
    for host in hosts[1:]:
        assert "step" not in host.said, "the first alone reports"


@pytest.mark.full
@pytest.mark.parametrize(
    "section",
    [
        {"phases": "auto_freeze", "freezing": {"every": "4 steps", "percentile": 100}},
        {"layer_decay": {"preset": "auto_rgn"}},
    ],
)
def test_what_the_diary_decides_is_decided_by_all(section, config, tmp_path):
    """The first process alone has a diary."""
    for name in ("one", "several"):
        moved = config.dump() | section | {"groups": []}
        moved["train"] |= {"log_every": 1}
        moved["run"]["dir"] = str(tmp_path / name)
        file = write_config(parse_config(moved), tmp_path / f"{name}.yaml")
        if name == "one":
            assert main(["train", file, "--quiet"]) == 0
        else:
            hosts = launch_hosts(tmp_path, 2, "train", file)
            assert end_all(hosts) == [0, 0], hosts[0].said
    kind = "freeze" if "phases" in section else "multipliers"
    ours, theirs = (events(tmp_path / name / "tiny", kind) for name in ("one", "several"))
    assert len(ours) == len(theirs) > 0
    if kind == "freeze":
        assert [event["depth"] for event in ours] == [event["depth"] for event in theirs]
    ours, theirs = (events(tmp_path / name / "tiny", "train") for name in ("one", "several"))
    losses = [[event["loss"] for event in part] for part in (ours, theirs)]
    np.testing.assert_allclose(*losses, atol=1e-5, rtol=0)


# -------------------------------------------------------------------------- signals, elastic


@pytest.mark.full
def test_a_signal_to_one_saves_the_same_step_in_all_and_other_counts_go_on(file, alone, tmp_path):
    """From one process with eight devices over 4 x 1 and 2 x 2 to 8 again."""
    run, before = tmp_path / "runs" / "tiny", 0
    for count, devices, stopped in ((4, 1, 3), (2, 2, 9)):
        words = ("train", file, *(["--resume"] if before else []))
        hosts = launch_hosts(tmp_path, count, *words, devices=devices)
        hosts[0].until(lambda stopped=stopped: reached(run, stopped))
        os.kill(hosts[-1].pid, signal.SIGTERM)
        assert end_all(hosts) == [143] * count, hosts[0].said
        assert json.loads((run / "run.json").read_text())["state"] == "stopped"
        last = max(int(path.name) for path in (run / "checkpoints").iterdir())
        assert last == events(run, "train")[-1]["step"] >= stopped
        assert f"stopped and saved at step {last}" in hosts[0].said
        before = last
    assert main(["train", file, "--resume", "--quiet"]) == 0
    assert_same(run, alone)


# --------------------------------------------------------------------------------- faults


@pytest.mark.full
@pytest.mark.parametrize(
    ("who", "what", "said", "codes"),
    [
        ("child of 0", signal.SIGKILL, "Process 0 on {} was killed by signal 9", (137, 75)),
        ("parent of 1", signal.SIGKILL, "Process 1 on {} is gone with its parent", (75, -9)),
        ("parent of 0", signal.SIGKILL, "Process 0 on {} is gone with its parent", (-9, 75)),
        ("child of 1", signal.SIGSTOP, "Process 1 on {} stopped answering", (75, 75)),
    ],
)
def test_whoever_dies_is_named(who, what, said, codes, file, tmp_path):
    run = tmp_path / "runs" / "tiny"
    hosts = launch_hosts(tmp_path, 2, "train", file, "train.length=20000 steps")
    hosts[0].until(lambda: reached(run, 5))
    host = hosts[int(who[-1])]
    os.kill(host.child() if "child" in who else host.pid, what)
    since = time.monotonic()
    children = [Path(f"/proc/{h.pid}/task/{h.pid}/children").read_text() for h in hosts]
    assert tuple(end_all(hosts, 90)) == codes, hosts[0].said + hosts[1].said
    assert time.monotonic() - since < 60
    for host, code in zip(hosts, codes, strict=True):
        assert code == -9 or f"jaxft: {said.format(HOST)}" in host.said
    assert [number for number in " ".join(children).split() if alive(number)] == []


@pytest.mark.full
@pytest.mark.parametrize("stopped", [0, 1])
def test_a_host_that_stops_is_named_and_one_process_goes_on_as_if_alone(
    stopped, file, alone, tmp_path
):
    """As a paused machine, or one behind a dead link: its parent process is silent too."""
    run = tmp_path / "runs" / "tiny"
    hosts = launch_hosts(tmp_path, 2, "train", file, **QUICK)
    hosts[0].until(lambda: (run / "checkpoints/8").exists())
    host, other = hosts[stopped], hosts[1 - stopped]
    processes = [host.pid, host.child()]
    for process in processes:
        os.kill(process, signal.SIGSTOP)
    since = time.monotonic()
    assert other.end(60) == PEER_LOST, other.said
    print(f"named after {time.monotonic() - since:.0f} s")
    assert f"jaxft: Process {stopped} on {HOST} stopped answering, and the run" in other.said
    for process in processes:
        os.kill(process, signal.SIGKILL)
    assert main(["train", file, "--resume", "--quiet"]) == 0
    assert_same(run, alone)


def alive(number):
    """Whether a process is there, and no zombie."""
    status = Path(f"/proc/{number}/stat")
    try:
        return status.read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# ------------------------------------------------------------------------------- bad input


def refused(tmp_path, *words, **differing):
    """The sentence with which both of two processes end, the second of which differs."""
    began = time.monotonic()
    hosts = launch_hosts(tmp_path, 2, *words, **differing)
    assert end_all(hosts) == [2, 2], hosts[0].said + hosts[1].said
    assert time.monotonic() - began < 60
    said = [re.findall(r"jaxft: (.*)", host.said) for host in hosts]
    assert said[0] == said[1]
    assert len(said[0]) == 1
    assert "Traceback" not in hosts[0].said + hosts[1].said
    first, second = f"process 0 on {HOST}", f"Process 1 on {HOST}"
    assert said[0][0].startswith(f"{second} differs from {first} in "), said
    return said[0][0].partition(" differs from ")[2].partition(" in ")[2]


@pytest.mark.slow
def test_configs_that_differ_are_refused(file, tmp_path):
    before = content(tmp_path)
    said = refused(tmp_path, "train", file, "--quiet", last_words=["optimizer.lr=0.5"])
    assert said == (
        "optimizer.lr: 0.5 there, 0.001 on the first. Start every process with the same command."
    )
    assert content(tmp_path).items() >= before.items()
    assert not (tmp_path / "runs").exists()


@pytest.mark.full
def test_versions_that_differ_are_refused(file, tmp_path):
    other = tmp_path / "other" / "orbax_checkpoint-9.9.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: orbax-checkpoint\nVersion: 9.9\n")
    path = os.pathsep.join([str(other.parent), os.environ.get("PYTHONPATH", "")])
    said = refused(tmp_path, "train", file, "--quiet", last_variables={"PYTHONPATH": path})
    assert said.startswith("the version of orbax-checkpoint: 9.9 there, ")


@pytest.mark.full
def test_devices_that_differ_are_refused(file, tmp_path):
    flags = {"XLA_FLAGS": xla_flags(3)}
    said = refused(tmp_path, "train", file, "--quiet", last_variables=flags)
    assert said.startswith("devices: 3 x cpu there, 1 x cpu on the first. ")


@pytest.mark.full
@pytest.mark.parametrize("what", ["reviews.csv", "checkpoint", "runs"])
def test_files_that_differ_are_refused(what, config, tmp_path, monkeypatch):
    """Relative paths, and each process stands in a folder of its own."""
    folders = [tmp_path / "first", tmp_path / "second"]
    for number, folder in enumerate(folders):
        tiny_reviews(folder, seed=number if what == "reviews.csv" else 0)
        tiny_checkpoint(folder / "checkpoint", seed=number if what == "checkpoint" else 0)
        if what != "runs":
            (folder / "runs").symlink_to(tmp_path, target_is_directory=True)
    moved = config.dump()
    moved["run"]["dir"] = "runs"
    moved["model"]["checkpoint"] = "checkpoint"
    for split, part in (("train", "[:70%]"), ("eval", "[70%:85%]"), ("test", "[85%:]")):
        moved["data"][split] = f"csv:reviews.csv{part}"
    file = write_config(parse_config(moved), tmp_path / "tiny.yaml")
    monkeypatch.chdir(folders[0])
    said = refused(tmp_path, "train", file, "--quiet", last_cwd=folders[1])
    wanted = {
        "reviews.csv": ("the rows of data.train: ", "Every host has to read the same data."),
        "checkpoint": ("model.checkpoint: ", "Every host has to read the same checkpoint."),
        "runs": ("the run in runs/tiny: nothing there, ", "run.dir must be a folder that "),
    }[what]
    assert said.startswith(wanted[0])
    assert wanted[1] in said


def test_a_range_test_of_several_processes_is_refused(file, monkeypatch, capsys):
    for name, value in {
        "JAX_COORDINATOR_ADDRESS": "127.0.0.1:9",
        "JAX_NUM_PROCESSES": "2",
        "JAX_PROCESS_ID": "1",
    }.items():
        monkeypatch.setenv(name, value)
    assert main(["study", file, "--lr-range"]) == 2
    assert capsys.readouterr().err == (
        "jaxft: --lr-range runs in one process. Start it on one host.\n"
    )
    assert main(["report", file]) == 2
    assert (
        "jaxft report runs in one process, and this is one of several." in capsys.readouterr().err
    )
