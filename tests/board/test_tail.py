"""Events are read as they are written, in bounded memory, and whatever the file holds."""

import json
import os
import tracemalloc

import pytest

from jaxft.board import tail as board_tail
from jaxft.board.tail import MOST_MEANS, MOST_PICKED, Tail
from jaxft.report.events import METRICS, EventLog


def line(step, kind="train", **values):
    return json.dumps({"kind": kind, "step": step, **values}) + "\n"


@pytest.fixture
def file(tmp_path):
    return tmp_path / METRICS


def test_what_is_appended_is_read_once(tmp_path, file):
    tail = Tail(tmp_path)
    assert tail.advance() is False
    assert tail.events() == []
    file.write_text(line(1, loss=3.0) + line(2, loss=2.0)[:-5])
    tail.advance()
    assert [event["step"] for event in tail.events()] == [1]
    with file.open("a") as more:
        more.write(line(2, loss=2.0)[-5:])
    version = tail.version
    tail.advance()
    assert [event["loss"] for event in tail.events()] == [3.0, 2.0]
    assert tail.version > version
    version = tail.version
    tail.advance()
    assert tail.version == version


def test_a_resumed_runs_file_is_read_again(tmp_path, file):
    file.write_text("".join(line(step, loss=1.0) for step in range(1, 6)))
    tail = Tail(tmp_path)
    tail.advance()
    with EventLog(tmp_path, tensorboard=False, resume_step=3) as log:
        log.train(4, {"loss": 9.0})
    tail.advance()
    assert [event["step"] for event in tail.events()] == [1, 2, 3, 4]
    assert tail.events()[-1]["loss"] == 9.0
    file.unlink()
    tail.advance()
    assert tail.events() == []


def test_a_cut_file_is_read_again(tmp_path, file):
    file.write_text(line(1) + line(2))
    tail = Tail(tmp_path)
    tail.advance()
    os.truncate(file, len(line(1)))
    tail.advance()
    assert [event["step"] for event in tail.events()] == [1]


def test_a_long_file_is_read_in_parts(tmp_path, file, monkeypatch):
    monkeypatch.setattr(board_tail, "CHUNK", 64)
    file.write_text("".join(line(step) for step in range(100)))
    tail = Tail(tmp_path)
    assert tail.advance(most_bytes=1000) is True
    assert 0 < len(tail.events()) < 100
    while tail.advance(most_bytes=1000):
        pass
    assert [event["step"] for event in tail.events()] == list(range(100))


def test_a_long_run_is_thinned_to_means_and_the_newest(tmp_path, file):
    count = 20_000
    with file.open("w") as written:
        for step in range(1, count + 1):
            written.write(line(step, loss=float(step), time=step / 2, rates={"a": 1.0}))
            written.write(line(step, "layers", grad_norm={"0": float(step)}))
    tail = Tail(tmp_path)
    tracemalloc.start()
    while tail.advance():
        pass
    memory, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert memory < 8 << 20  # the file has 3 MB; its events as Python objects about 40
    events = tail.events()
    train = [event for event in events if event["kind"] == "train"]
    layers = [event for event in events if event["kind"] == "layers"]
    assert MOST_MEANS / 2 <= len(train) <= MOST_MEANS + 1
    assert MOST_PICKED / 2 <= len(layers) <= MOST_PICKED + 1
    assert train[-1] == {**train[-1], "step": count, "loss": float(count), "time": count / 2}
    assert layers[-1]["step"] == count
    width = train[1]["step"] - train[0]["step"]
    for event in train[:-2]:  # the mean of a group that begins at its step
        assert event["loss"] == pytest.approx(event["step"] + (width - 1) / 2)


def test_what_is_no_event_is_counted_and_passed_over(tmp_path, file):
    bad = ["[]", "1", "{", '{"kind": "train"}', '{"kind": 1, "step": 1}', '{"step": 1}', "\x00"]
    bad += ['{"kind": "train", "step": true}', "[" * 5000, '{"kind": "train", "step": 1e3}']
    good = line(3, loss=float("nan"), accuracy=0.5, odd=["x"], text="t" * 5000)
    huge = '{"kind": "train", "step": 4, "loss": 1' + "0" * 400 + "}\n"
    file.write_text("\n".join(bad) + "\n" + "x" * (3 << 20) + "\n" + good + huge)
    tail = Tail(tmp_path)
    tail.advance()
    assert tail.unread == len(bad) + 1
    first, second = tail.events()
    assert set(first) == {"kind", "step", "accuracy", "text"}
    assert len(first["text"]) == 2000
    assert second == {"kind": "train", "step": 4}


def test_a_pipe_is_not_waited_for(tmp_path, file):
    os.mkfifo(file)
    tail = Tail(tmp_path)
    assert tail.advance() is False
    assert tail.events() == []


def test_members_of_a_study_are_curves_of_their_own(tmp_path, file):
    file.write_text("".join(line(step, member=m, loss=1.0 * m) for step in (1, 2) for m in (0, 1)))
    tail = Tail(tmp_path)
    tail.advance()
    assert sorted((e["member"], e["step"], e["loss"]) for e in tail.events()) == [
        (0, 1, 0.0),
        (0, 2, 0.0),
        (1, 1, 1.0),
        (1, 2, 1.0),
    ]
