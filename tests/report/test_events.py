"""metrics.jsonl and TensorBoard: flushed line by line, exact after a kill and a resume."""

import json
import math

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from jaxft.errors import UserError
from jaxft.report.events import METRICS, EventLog, read_events, thinned_events
from jaxft.runs.digests import Digests


def scalars(folder):
    """(tag, step) -> every value that the TensorBoard files hold for it."""
    found = {}
    for path in (folder / "tensorboard").glob("events.*"):
        data = path.read_bytes()
        while data:
            # A record: length (8 bytes), its checksum (4), the event, its checksum (4).
            length = int.from_bytes(data[:8], "little")
            event = Event.FromString(data[12 : 12 + length])
            data = data[12 + length + 4 :]
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    found.setdefault((value.tag, event.step), []).append(value.simple_value)
    return found


def test_each_event_is_on_disk_at_once(tmp_path):
    log = EventLog(tmp_path, tensorboard=False)
    log.train(10, {"epoch": 0.5, "loss": np.float32(0.25), "rates": {"head": 5e-4}})
    log.eval(10, "eval", {"accuracy": 0.75})
    log.note(11, "the step was not finite")
    train, evaluated, note = read_events(tmp_path)  # the log is still open
    log.close()
    assert train.pop("time") <= evaluated.pop("time") <= note.pop("time")
    assert train == {
        "kind": "train",
        "step": 10,
        "epoch": 0.5,
        "loss": 0.25,
        "rates": {"head": 5e-4},
    }
    assert evaluated == {"kind": "eval", "step": 10, "split": "eval", "accuracy": 0.75}
    assert note == {"kind": "note", "step": 11, "text": "the step was not finite"}


def test_what_is_not_finite_is_null(tmp_path):
    with EventLog(tmp_path, tensorboard=False) as log:
        log.train(1, {"loss": math.nan, "grad_norm": np.float32(math.inf)})
    line = (tmp_path / "metrics.jsonl").read_text()
    event = json.loads(line, parse_constant=pytest.fail)
    assert event["loss"] is None
    assert event["grad_norm"] is None


def test_a_resumed_run_has_no_step_twice(tmp_path):
    with EventLog(tmp_path) as log:
        for step in (10, 20, 30):
            log.train(step, {"loss": step / 100})
        log.eval(20, "eval", {"accuracy": 0.5})
    with EventLog(tmp_path, resume_step=20) as log:
        log.train(30, {"loss": 0.5})
    events = read_events(tmp_path)
    assert [(event["kind"], event["step"]) for event in events] == [
        ("train", 10),
        ("train", 20),
        ("eval", 20),
        ("train", 30),
    ]
    assert events[-1]["loss"] == 0.5
    assert scalars(tmp_path) == {
        ("train/loss", 10): [pytest.approx(0.1)],
        ("train/loss", 20): [pytest.approx(0.2)],
        ("eval/accuracy", 20): [0.5],
        ("train/loss", 30): [0.5],
    }


def test_rates_have_their_own_tensorboard_section(tmp_path):
    with EventLog(tmp_path) as log:
        log.train(10, {"rates": {"head": 0.5, "rest": 0.25}})
    assert scalars(tmp_path) == {("rates/head", 10): [0.5], ("rates/rest", 10): [0.25]}


def test_a_fresh_log_starts_empty(tmp_path):
    with EventLog(tmp_path, tensorboard=False) as log:
        log.train(10, {"loss": 1.0})
    EventLog(tmp_path, tensorboard=False).close()
    assert read_events(tmp_path) == []


def test_a_torn_last_line_is_passed_over_and_gone_after_a_resume(tmp_path):
    with EventLog(tmp_path, tensorboard=False) as log:
        log.train(10, {"loss": 1.0})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 2')
    assert [event["step"] for event in read_events(tmp_path)] == [10]
    with EventLog(tmp_path, tensorboard=False, resume_step=10) as log:
        log.train(20, {"loss": 0.5})
    assert [event["step"] for event in read_events(tmp_path)] == [10, 20]


@pytest.mark.parametrize("line", ["{", "[]", '{"kind": "train"}', '{"kind": "note", "step": "1"}'])
def test_a_broken_line_is_named(tmp_path, line):
    good = '{"kind": "train", "step": 1}'
    (tmp_path / "metrics.jsonl").write_text(f"{good}\n{line}\n{good}\n")
    with pytest.raises(UserError, match="line 2"):
        read_events(tmp_path)


def test_without_a_file_there_are_no_events(tmp_path):
    assert read_events(tmp_path) == []


def test_the_lines_up_to_the_last_save_have_a_digest(tmp_path):
    digests = Digests(tmp_path)
    with EventLog(tmp_path, tensorboard=False, digests=digests) as log:
        for step in (1, 2):
            log.train(step, {"loss": 0.5})
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"kind": "train", "st')  # by a later start, which was killed
    assert [event["step"] for event in read_events(tmp_path)] == [1, 2]
    for damaged in (whole[:-40], whole.replace(b"0.5", b"0.7"), b""):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"metrics\.jsonl is damaged"):
            read_events(tmp_path)
    path.unlink()
    with pytest.raises(UserError, match=r"metrics\.jsonl is damaged"):
        read_events(tmp_path)
    path.write_bytes(whole)
    with EventLog(tmp_path, False, 1, digests=Digests(tmp_path)) as log:
        assert [event["step"] for event in read_events(tmp_path)] == [1]
        log.train(2, {"loss": 0.25})
    assert [event["loss"] for event in read_events(tmp_path)] == [0.5, 0.25]


def test_a_linked_tensorboard_folder_keeps_what_is_not_of_the_run(tmp_path):
    (tmp_path / "scratch").mkdir()
    (tmp_path / "scratch" / "notes.txt").write_text("mine")
    run = tmp_path / "run"
    run.mkdir()
    (run / "tensorboard").symlink_to(tmp_path / "scratch")
    for resume_step in (None, 1):
        with EventLog(run, resume_step=resume_step) as log:
            log.train(1, {"loss": 0.5}) if resume_step is None else log.train(2, {"loss": 0.4})
    assert scalars(run) == {("train/loss", 1): [0.5], ("train/loss", 2): [pytest.approx(0.4)]}
    assert (tmp_path / "scratch" / "notes.txt").read_text() == "mine"


def test_events_of_a_long_run_are_thinned_kind_by_kind(tmp_path):
    lines = []
    for step in range(1, 1001):
        lines.append({"kind": "train", "step": step})
        if step % 100 == 0:
            lines.append({"kind": "eval", "step": step})
    path = tmp_path / METRICS
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    events = thinned_events(tmp_path, most=100)
    trained = [event["step"] for event in events if event["kind"] == "train"]
    assert trained == [*range(1, 1000, 16), 1000]
    assert sum(event["kind"] == "eval" for event in events) == 10
    order = [lines.index(event) for event in events]
    assert order == sorted(order)
    assert thinned_events(tmp_path) == lines == read_events(tmp_path)


def test_a_line_nested_deep_is_no_event(tmp_path):
    deep = "[" * 100_000 + "]" * 100_000
    (tmp_path / METRICS).write_text(f'{{"kind": "train", "step": 1, "x": {deep}}}\n')
    with pytest.raises(UserError, match="line 1: not an event"):
        read_events(tmp_path)
