"""The board's server: who may ask, what it shows and sends as runs go on, and stopping them."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from starlette.testclient import TestClient

from jaxft.board.folders import check_board_folder, find_folders
from jaxft.board.guard import is_of_this_machine, machine_names
from jaxft.board.live_run import event_text
from jaxft.board.live_study import ranking_so_far
from jaxft.board.server import Board, make_app, stream
from jaxft.board.status import StatusReader, ago
from jaxft.board.stop import Stopper
from jaxft.cli.main import main
from jaxft.errors import UserError
from jaxft.report.events import EventLog
from tests.support.synthetic_run import write_json, write_run
from tests.support.synthetic_study import write_study

EVIL = "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>"
HERE = "http://127.0.0.1:8420"
# A process that holds a run's lock as training does, and notes the signals that it gets.
TRAINER = """
import signal, sys, time
from pathlib import Path
from jaxft.storage import files
run = Path(sys.argv[1])
with files.lock(run / "run.lock"):
    signal.signal(signal.SIGTERM, lambda *_: (run / "asked").write_text("SIGTERM"))
    print("ready", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def top(tmp_path):
    return tmp_path / "runs"


@pytest.fixture
def run(top):
    return write_run(top)


def client(top, token="secret", names=frozenset()):
    return TestClient(make_app(top, token, names), base_url=HERE)


def key_of(top, name):
    return next(folder.key for folder in find_folders(top) if folder.name == name)


def set_running(run, total=960):
    about = json.loads((run / "run.json").read_text())
    write_json(run / "run.json", {**about, "state": "running", "resolved": {"total_steps": total}})
    (run / "result.json").unlink(missing_ok=True)


@pytest.fixture
def trainer(run):
    set_running(run)
    process = subprocess.Popen(
        [sys.executable, "-c", TRAINER, str(run)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def status_of(top, name="sentiment"):
    return StatusReader(next(one for one in find_folders(top) if one.name == name)).read()


# ---------------------------------------------------------------------------------- who may ask


@pytest.mark.parametrize("query", ["", "?token=", "?token=secre", "?token=secret2", "?token=é"])
@pytest.mark.parametrize("path", ["/", "/runs", "/study", "/events", "/stop", "/nothing"])
def test_without_the_token_nothing_is_told(run, top, path, query):
    answer = client(top).get(f"{path}{query}")
    assert answer.status_code == 403
    assert "sentiment" not in answer.text


def test_a_name_that_points_here_is_refused(run, top):
    asked = client(top, names=frozenset({"lab"}))
    for host in ("evil.example", "evil.example:8420", "127.0.0.1.evil.example", "", "a b", "[::1"):
        assert asked.get("/?token=secret", headers={"host": host}).status_code == 403, host
    for host in ("127.0.0.1:8420", "localhost:9", "[::1]:8420", "10.0.0.7", "LAB:8420"):
        assert asked.get("/?token=secret", headers={"host": host}).status_code == 200, host


def test_names_of_this_machine():
    assert machine_names("127.0.0.1") == frozenset()
    assert socket.gethostname().lower() in machine_names("0.0.0.0")
    assert not is_of_this_machine("localhost.evil.example", frozenset())


def test_only_a_page_of_the_board_may_stop_a_run(run, top, trainer):
    asked, address = client(top, token=""), f"/stop?run={key_of(top, 'sentiment')}"
    assert asked.get(address).status_code == 405
    for origin in (None, "null", "http://evil.example", "http://127.0.0.1:1"):
        headers = {} if origin is None else {"origin": origin}
        assert asked.post(address, headers=headers).status_code == 403, origin
    assert not (run / "asked").exists()


def test_answers_are_for_nobody_else(run, top):
    headers = client(top).get("/?token=secret").headers
    assert headers["cache-control"] == "no-store"
    assert headers["referrer-policy"] == "no-referrer"
    assert "frame-ancestors 'none'" in headers["content-security-policy"]


# --------------------------------------------------------------------------------- what is shown


def test_the_list_has_runs_and_studies(top):
    write_run(top / "deep" / "er", "b")
    write_run(top, "a.old-2026-03-02T091244Z")
    write_run(top, "a")
    write_run(top / "a", "inside")
    write_study(top)
    (top / "link").symlink_to(top / "a")
    assert [one.name for one in find_folders(top)] == ["a", "decay-study", "deep/er/b"]
    text = client(top).get("/?token=secret").text
    assert "0 running, 2 finished, 1 failed" in text
    assert "step 50 of 200" in text
    assert [one.name for one in find_folders(top / "a")] == ["a"]


def test_the_page_of_a_run_is_the_reports(run, top):
    text = client(top).get(f"/runs?run={key_of(top, 'sentiment')}&token=secret").text
    for part in ("0.8312", "Layer table", "Worst mistakes", "Resolved config", 'id="figure-pr"'):
        assert part in text
    assert text.count('"id": "score-loss"') == 1
    assert "Notable events" in text


def test_runs_side_by_side_differ_in_their_configs(top):
    write_run(top, "a", lr=1e-4)
    write_run(top, "b", lr=3e-4)
    query = "".join(f"&run={key_of(top, name)}" for name in "ab")
    text = client(top).get(f"/runs?token=secret{query}").text
    assert "2 runs compared" in text
    assert "optimizer.lr" in text.split("Config differences")[1].split("</table>")[0]


def test_a_study_is_ranked_as_it_goes(top):
    write_study(top)
    text = client(top).get(f"/study?study={key_of(top, 'decay-study')}&token=secret").text
    ranking = text.split("Ranking")[1].split("</table>")[0]
    assert re.findall(r"0\.\d{4}", ranking)[::2] == ["0.6200", "0.6100", "0.6000", "0.5900"]
    assert "Drift by depth" in text


@pytest.mark.parametrize("content", ["{}", "[]", '{"parts": [1], "members": 3}', "no JSON"])
def test_a_broken_study_is_a_sentence(top, content):
    (write_study(top) / "study.json").write_text(content)
    asked = client(top)
    assert asked.get("/?token=secret").status_code == 200
    answer = asked.get(f"/study?study={key_of(top, 'decay-study')}&token=secret")
    assert answer.status_code == 404
    assert answer.text.count("\n") == 0


@pytest.mark.parametrize("content", ["{", "[1]", "null", '{"state": {}, "resolved": 3}', "\x00"])
def test_broken_runs_have_a_page(top, content):
    for name in ("run.json", "config.yaml", "metrics.jsonl", "table.json"):
        (write_run(top, name.replace(".", "-")) / name).write_text(content)
    asked = client(top)
    assert asked.get("/?token=secret").status_code == 200
    query = "".join(f"&run={folder.key}" for folder in find_folders(top))
    assert asked.get(f"/runs?token=secret{query}").status_code == 200


@pytest.mark.parametrize("path", ["/runs?", "/runs?run=../../etc", "/study?study=x", "/nothing?"])
def test_what_is_not_there_is_a_sentence(run, top, path):
    assert client(top).get(f"{path}&token=secret").status_code == 404


def test_texts_of_a_run_are_never_markup(top):
    run = write_run(top).rename(top / EVIL.replace("/", "\\"))
    about = json.loads((run / "run.json").read_text())
    write_json(run / "run.json", {**about, "state": EVIL, "command": EVIL, "best_metric": EVIL})
    with (run / "metrics.jsonl").open("a") as more:
        note = {"kind": "note", "step": 1, "time": 1.0, "text": EVIL}
        more.write(
            json.dumps(note) + "\n" + json.dumps({"kind": "eval", "step": 2, EVIL: 1.0}) + "\n"
        )
    asked = client(top)
    key = find_folders(top)[0].key
    for address in ("/?token=secret", f"/runs?run={key}&token=secret"):
        text = asked.get(address).text
        assert "&lt;img src=x" in text
        assert "<img src=x" not in text
    board = Board(top, "secret")
    for path, keys in (("/", ()), ("/runs", (key,))):
        message = json.loads(board.changes(path, keys, "load").next())
        assert "<img src=x" not in "".join(message["regions"].values())


# ------------------------------------------------------------------------------ what is sent


def test_only_what_changed_is_sent(run, top):
    board, keys = Board(top, "secret"), (key_of(top, "sentiment"),)
    text = board.open("/runs", keys)
    changes = board.changes("/runs", keys, re.search(r"load=(\w+)", text)[1])
    assert changes.next() is None
    with EventLog(run, tensorboard=False, resume_step=480) as log:
        log.train(490, {"loss": 0.123, "accuracy": 0.9})
    message = json.loads(changes.next())
    assert {figure["id"] for figure in message["figures"]} == {"score-loss", "score-accuracy"}
    assert set(message["regions"]) == {"overview", "log"}
    assert "loss 0.1230" in message["regions"]["log"]
    assert len(message["names"]) == 18
    assert changes.next() is None
    (run / "predictions-test.jsonl").unlink()
    assert "details-0" in json.loads(changes.next())["regions"]


def test_a_row_of_the_list_is_sent_alone(run, top):
    write_run(top, "other")
    board = Board(top, "secret")
    text = board.open("/", ())
    changes = board.changes("/", (), re.search(r"load=(\w+)", text)[1])
    set_running(run)
    message = json.loads(changes.next())
    assert set(message["regions"]) == {"head", f"row-{key_of(top, 'sentiment')}"}
    set_running(top / "other")
    message = json.loads(changes.next())
    assert message["announcement"] == "other: failed"


def test_events_are_streamed_until_the_reader_leaves(run, top):
    board = Board(top, "secret")

    async def read():
        sent = stream(board, board.changes("/", (), "load"))
        first = await anext(sent)
        streams = board.streams
        await sent.aclose()
        return first, streams

    first, streams = asyncio.run(read())
    assert first.startswith("data: {")
    assert first.endswith("\n\n")
    assert (streams, board.streams) == (1, 0)


# ----------------------------------------------------------------------------------- processes


def test_a_killed_run_is_shown_as_killed(run, top, trainer):
    assert status_of(top).state == "running"
    assert status_of(top).can_stop
    trainer.kill()
    trainer.wait()
    assert status_of(top).state == "killed"
    assert not status_of(top).can_stop
    (run / "run.lock.owner").unlink()
    assert status_of(top).state == "failed"


def test_a_run_of_another_machine_is_left_alone(run, top):
    set_running(run)
    (run / "run.lock").touch()
    owner = run / "run.lock.owner"
    owner.write_text(f"process {os.getpid()} on elsewhere (jaxft train)")
    assert (status_of(top).state, status_of(top).can_stop) == ("running", False)
    with pytest.raises(UserError, match="It runs on elsewhere"):
        Stopper().stop(find_folders(top)[0])


def test_a_process_that_does_not_hold_the_lock_is_not_stopped(run, top):
    """Whoever hands a run folder on can name any process in it."""
    set_running(run)
    (run / "run.lock").touch()
    owner = run / "run.lock.owner"
    owner.write_text(f"process {os.getpid()} on {socket.gethostname()} (jaxft train)")
    assert status_of(top).state == "killed"
    with pytest.raises(UserError, match="No process of this machine"):
        Stopper().stop(find_folders(top)[0])


def test_stop_asks_once(run, top, trainer):
    asked, address = client(top), f"/stop?run={key_of(top, 'sentiment')}&token=secret"
    answer = asked.post(address, headers={"origin": HERE})
    assert (answer.status_code, answer.text) == (200, "sentiment was asked to save and stop.")
    limit = time.monotonic() + 60
    while not (run / "asked").exists() and time.monotonic() < limit:
        time.sleep(0.05)
    assert (run / "asked").read_text() == "SIGTERM"
    answer = asked.post(address, headers={"origin": HERE})
    assert (answer.status_code, answer.text) == (404, "sentiment was asked already and is saving.")
    assert trainer.poll() is None


def test_a_study_is_not_stopped(top):
    write_study(top)
    with pytest.raises(UserError, match="is a study"):
        Stopper().stop(find_folders(top)[0])


def test_the_time_left_is_that_of_the_last_steps(run, top, trainer):
    status = status_of(top)
    assert (status.step, status.total) == (480, 960)
    assert status.left == pytest.approx(0.52 * 480)


# ------------------------------------------------------------------------------------- the command


def test_bad_input_is_one_sentence(run, top, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for words, sentence in (
            ([str(tmp_path / "empty")], "There is no run and no study below"),
            ([str(tmp_path / "nowhere")], "There is no folder"),
            (["gs://bucket/runs"], "is in a bucket"),
            ([str(top), "--port", port], f"The board cannot listen on 127.0.0.1, port {port}"),
            ([str(top), "--host", "0.0.0.0", "--no-token"], "Without a token anyone"),
            ([str(top), "--host", "192.0.2.1", "--port", "0"], "cannot listen on 192.0.2.1"),
            ([str(top), "--port", "70000"], "Invalid value for '--port'"),
        ):
            assert main(["board", *words]) == 2, words
            error = capsys.readouterr().err
            assert sentence in error
            assert error.count("\n") == 1


def test_a_board_is_served_until_it_is_interrupted(run, top):
    command = [sys.executable, "-m", "jaxft", "board", str(top), "--port", "0"]
    board = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        address = board.stdout.readline().strip()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/\?token=[\w-]{32}", address)
        with urllib.request.urlopen(address, timeout=60) as answer:
            assert b"sentiment" in answer.read()
        board.send_signal(signal.SIGINT)
        _, errors = board.communicate(timeout=60)
        assert errors == ""
    finally:
        board.kill()
        board.communicate()


# -------------------------------------------------------------------------------------- texts


def test_lines_of_the_log():
    train = {"kind": "train", "step": 1200, "loss": 0.5, "examples_per_second": 3, "rates": {}}
    assert event_text(train) == "step 1,200  loss 0.5000"
    scored = {"kind": "eval", "step": 1, "split": "eval", "accuracy": 0.25}
    assert event_text(scored) == "step 1  eval  accuracy 0.2500"
    assert event_text({"kind": "note", "step": 1, "text": "\x1b[2J"}) == "step 1  \\u001b[2J"
    assert event_text({"kind": "layers", "step": 1}) == ""
    assert event_text({**train, "time": 1e300}) == "step 1,200  loss 0.5000"


def test_times_ago():
    now = time.time()
    assert ago(None) == ""
    assert [ago(now - seconds) for seconds in (0, 7, 61, 7300, 90_000)] == [
        "now",
        "5 seconds ago",
        "1 minute ago",
        "2 hours ago",
        "1 day ago",
    ]


def test_a_setting_is_ranked_by_the_mean_of_its_scored_members():
    about = {
        "metric": "loss",
        "lower_is_better": True,
        "vary": {"optimizer.lr": [1, 2], "run.seed.init": [0, 1]},
        "members": [
            {"index": index, "values": {"optimizer.lr": lr, "run.seed.init": seed}}
            for index, (lr, seed) in enumerate([(1, 0), (1, 1), (2, 0), (2, 1)])
        ],
    }
    scores = [(0, 1, 3.0), (0, 2, 1.0), (0, 3, 2.0), (1, 1, 2.0), (2, 1, 1.0)]
    events = [{"kind": "eval", "member": m, "step": s, "loss": v} for m, s, v in scores]
    first, second = ranking_so_far(about, events)
    assert (first["values"], first["members"]) == ({"optimizer.lr": 2}, [2, 3])
    assert (second["best"]["mean"], second["last"]["mean"], second["step"]) == (1.5, 2.0, 2)


def test_a_folder_with_runs_passes(run, top):
    check_board_folder(top)
