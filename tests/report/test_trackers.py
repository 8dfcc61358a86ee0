"""Weights & Biases and Trackio: told what the diary is told, never waited for, left when they fail.

Here stand-ins of their names; the true ones where they are installed, in `make test-all`.
"""

import importlib.util
import json
import sqlite3
import sys
import threading
import time

import pytest

from jaxft.errors import UserError
from jaxft.report import trackers
from jaxft.report.events import EventLog
from jaxft.report.trackers import TITLES, check_trackers, open_trackers

ABOUT = {"name": "tiny", "id": "0123456789abcdef", "dir": ".", "resumed": True}
STAND_IN = """
import json, pathlib
OUT = pathlib.Path(__file__).with_suffix(".jsonl")

def write(**told):
    with OUT.open("a") as file:
        file.write(json.dumps(told) + "\\n")

class Run:
    def log(self, values, step=None):
        write(step=step, values=values)

    def finish(self):
        write(finished=True)

def init(**told):
    write(began=told)
    return Run()
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Writes a module of a tracker's name; what it was told is in a file beside it."""

    def write(name, text=STAND_IN):
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, name, raising=False)
        return tmp_path / f"{name}.jsonl"

    yield write
    # One that was left may import its module only now, and leave it behind for the next test.
    for thread in threading.enumerate():
        if thread.name in TITLES:
            thread.join(2)  # one that nobody ends waits for ever
    for name in TITLES:
        sys.modules.pop(name, None)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def tell(tracker_names, said, events=3):
    with open_trackers(tracker_names, ABOUT, {"a": 1}, said.append) as opened:
        for tracker in opened:
            for step in range(events):
                tracker.log(step, {"train/loss": 0.5})


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_new_run_goes_on_with_no_other_of_its_name(name, stand_in):
    """Trackio knows a run by its name, which an overwritten one and one elsewhere have too."""
    out, about = stand_in(name), {**ABOUT, "resumed": False}
    with open_trackers([name], about, {}, lambda _: None):
        pass
    began = lines(out)[0]["began"]
    assert began["resume"] == ("never" if name == "trackio" else "allow")


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_tracker_is_told_the_config_and_every_number(name, stand_in, tmp_path):
    out, said = stand_in(name), []
    with (
        open_trackers([name], ABOUT, {"optimizer": {"lr": 0.5}}, said.append) as opened,
        EventLog(tmp_path, tensorboard=False, trackers=opened) as log,
    ):
        log.train(10, {"loss": 0.25, "rates": {"head": 0.5}})
        log.note(10, "a sentence")
        log.of_kind("multipliers", 10, {"blocks/0": 1.0})
        log.eval(20, "eval", {"accuracy": 0.75})
    began, *told = lines(out)
    assert began["began"]["project"] == "jaxft"
    assert began["began"]["name"] == "tiny"
    assert began["began"]["config"] == {"optimizer": {"lr": 0.5}}
    assert began["began"]["resume"] == "allow"
    assert ("id" in began["began"]) == (name == "wandb")
    assert told == [
        {"step": 10, "values": {"train/loss": 0.25, "rates/head": 0.5}},
        {"step": 20, "values": {"eval/accuracy": 0.75}},
        {"finished": True},
    ]
    assert said == []


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("import nowhere_at_all", "ModuleNotFoundError: No module named 'nowhere_at_all'"),
        ("def init(**told): raise SystemExit('log in first')", "SystemExit: log in first"),
        (STAND_IN.replace("write(step=step", "raise OSError(28, 'No space') #"), "No space"),
        (STAND_IN.replace("write(finished", "raise OSError('gone') #"), "OSError: gone"),
    ],
    ids=["import", "init", "log", "finish"],
)
def test_one_that_fails_is_told_once_and_left(text, why, stand_in):
    said = []
    stand_in("wandb", text)
    tell(["wandb"], said)
    assert len(said) == 1
    assert said[0].startswith("Weights & Biases is no longer logged to: ")
    assert why in said[0]


def test_the_others_go_on_without_one_that_fails(stand_in):
    said = []
    stand_in("wandb", "def init(**told): raise RuntimeError('no')")
    out = stand_in("trackio")
    tell(["wandb", "trackio"], said)
    assert len(lines(out)) == 5
    assert len(said) == 1


def test_a_slow_one_slows_no_step(stand_in, monkeypatch):
    released = threading.Event()
    stand_in("wandb", STAND_IN.replace("write(step=step", "RELEASED.wait(); write(step=step"))
    monkeypatch.setattr("builtins.RELEASED", released, raising=False)
    monkeypatch.setattr(trackers, "WAITING", 4)
    monkeypatch.setattr(trackers, "LAST_SECONDS", 0.05)
    said, start = [], time.monotonic()
    tell(["wandb"], said, events=50)
    released.set()
    assert time.monotonic() - start < 30  # it would have waited for ever
    assert said == ["Weights & Biases is no longer logged to: it is too slow"]


def test_one_that_does_not_end_is_not_waited_for(stand_in, monkeypatch):
    released = threading.Event()
    stand_in("wandb", STAND_IN.replace("write(finished", "RELEASED.wait(); write(finished"))
    monkeypatch.setattr("builtins.RELEASED", released, raising=False)
    monkeypatch.setattr(trackers, "LAST_SECONDS", 0.5)
    said = []
    tell(["wandb"], said)
    released.set()
    assert said == ["Weights & Biases is no longer logged to: it did not finish within 0 seconds"]


def test_one_that_is_not_installed_is_a_sentence(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError) as refused:
        check_trackers(["trackio"])
    assert refused.value.message == "run.trackers: Trackio is not installed."
    assert refused.value.hint == "pip install 'jaxft[trackio]'"
    check_trackers([])


@pytest.mark.full
def test_the_true_wandb_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is an extra of its own")
    monkeypatch.setenv("WANDB_MODE", "offline")
    said, about = [], {**ABOUT, "dir": str(tmp_path)}
    with open_trackers(["wandb"], about, {"a": 1}, said.append) as (tracker,):
        tracker.log(1, {"train/loss": 0.5})
        tracker.log(None, {"result/accuracy": 0.75})
    assert said == []
    (kept,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    assert b"train/loss" in kept.read_bytes()
    assert b"result/accuracy" in kept.read_bytes()


@pytest.mark.full
def test_the_true_trackio_in_a_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))  # read when it is imported
    pytest.importorskip("trackio", reason="trackio is an extra of its own")
    said = []
    with open_trackers(["trackio"], ABOUT, {"a": 1}, said.append) as (tracker,):
        tracker.log(1, {"train/loss": 0.5})
        tracker.log(None, {"result/accuracy": 0.75})
    assert said == []
    with sqlite3.connect(next(tmp_path.glob("*.db"))) as kept:
        told = " ".join(str(row) for row in kept.execute("select metrics from metrics"))
    assert "train/loss" in told
    assert "result/accuracy" in told
