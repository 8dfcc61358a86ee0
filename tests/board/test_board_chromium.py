"""The board in a real browser, while runs go on: Debian's `chromium`."""

import json
import subprocess
import sys
import time

import pytest

from jaxft.report.browser import find_browser
from jaxft.report.events import EventLog
from tests.board.test_board import EVIL, TRAINER, key_of, set_running
from tests.support.synthetic_run import write_json, write_run
from tests.support.synthetic_study import write_study

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(find_browser() is None, reason="chromium is not installed"),
]
POINTS = "figures.find(one => one.id === 'score-loss').series[0].x.length"


@pytest.fixture(scope="module")
def top(tmp_path_factory):
    """Two finished runs, one that a living process holds the lock of, and a study."""
    top = tmp_path_factory.mktemp("world") / "runs"
    for number, name in enumerate(("one", "two", "going")):
        write_run(top, name, lr=1e-4 * 3**number, seed=number)
    set_running(top / "going")
    write_study(top)
    return top


@pytest.fixture(scope="module")
def trainer(top):
    process = subprocess.Popen(
        [sys.executable, "-c", TRAINER, str(top / "going")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.fixture(scope="module")
def address(top, trainer):
    command = [sys.executable, "-m", "jaxft", "board", str(top), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as board:
        yield board.stdout.readline().strip()
        board.terminate()


def page_of(address, path, *keys):
    base, token = address.split("?")
    return f"{base}{path}?{token}" + "".join(
        f"&{'run' if path == 'runs' else path}={k}" for k in keys
    )


def append(run, step, **values):
    with EventLog(run, tensorboard=False, resume_step=10**6) as log:
        log.train(step, values)


def test_a_curve_grows_and_the_log_with_it(browser, top, address):
    browser.open(page_of(address, "runs", key_of(top, "going")))
    browser.wait("document.querySelectorAll('.figure .main-svg').length > 0")
    points = browser.ask(POINTS)
    append(top / "going", 490, loss=0.123, accuracy=0.9)
    browser.wait(f"{POINTS} === {points} + 1")
    browser.wait("document.querySelector('.log').textContent.includes('loss 0.1230')")
    browser.wait("document.querySelector('.tiles').textContent.includes('490')")
    plot = "document.getElementById('figure-score-loss')"
    browser.ask("scrollTo(0, document.documentElement.scrollHeight)")
    browser.ask("new Promise(done => setTimeout(done, 500))")
    append(top / "going", 491, loss=0.123, accuracy=0.9)
    browser.wait(f"{POINTS} === {points} + 2")
    assert browser.ask(f"{plot}.data[0].x.length") < points + 2  # drawn when it is seen
    browser.ask(f"{plot}.scrollIntoView()")
    browser.wait(f"{plot}.data[0].x.length === {points} + 2")


def test_the_list_keeps_what_is_ticked_and_focused(browser, top, address):
    browser.open(address)
    tick = f"document.getElementById('tick-{key_of(top, 'going')}')"
    browser.ask(f"{tick}.focus(), {tick}.click()")
    row = f"document.querySelector('[data-region=\"row-{key_of(top, 'going')}\"]').textContent"
    before = browser.ask(row)
    append(top / "going", 500, loss=0.1, accuracy=0.9)
    browser.wait(f"{row} !== {json.dumps(before)}")
    write_run(top, "later")
    browser.wait("document.body.textContent.includes('later')")
    assert browser.ask(f"{tick}.checked && document.activeElement === {tick}")
    browser.ask(f"document.getElementById('tick-{key_of(top, 'one')}').click()")
    browser.ask("document.querySelector('#compare button').click()")
    browser.wait("document.querySelector('h1')?.textContent === '2 runs compared'")


def test_a_study_is_ranked_and_grows(browser, top, address):
    browser.open(page_of(address, "study", key_of(top, "decay-study")))
    browser.wait("document.querySelectorAll('.figure .main-svg').length > 0")
    assert browser.ask("document.querySelectorAll('tbody tr').length") >= 4


@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_spills_over_the_sides(browser, top, address, width, scheme):
    browser.size(width, 900)
    keys = [key_of(top, name) for name in ("going", "one", "two")]
    study = page_of(address, "study", key_of(top, "decay-study"))
    for page in (
        address,
        page_of(address, "runs", *keys),
        page_of(address, "runs", keys[0]),
        study,
    ):
        browser.open(page, scheme)
        assert browser.ask("document.documentElement.scrollWidth") <= width, page
    browser.call("Emulation.clearDeviceMetricsOverride")


def test_texts_of_a_run_that_goes_on_do_not_run(browser, tmp_path, top, address):
    run = write_run(tmp_path / "evil")
    about = json.loads((run / "run.json").read_text())
    write_json(run / "run.json", {**about, "state": EVIL, "command": EVIL})
    run = run.rename(top / EVIL.replace("/", "\\"))
    name = EVIL.replace("/", "\\").replace("\\", "\\")
    for page in (address, page_of(address, "runs", key_of(top, name))):
        browser.open(page)
        with (run / "metrics.jsonl").open("a") as more:
            more.write(json.dumps({"kind": "note", "step": 7, "time": 9e9, "text": EVIL}) + "\n")
        browser.wait("document.body.textContent.includes('window.hacked = 1')")
        time.sleep(2)
        assert browser.ask("typeof window.hacked") == "undefined"


def test_stop_and_then_a_kill_are_shown(browser, top, address, trainer):
    browser.open(page_of(address, "runs", key_of(top, "going")))
    browser.ask("document.querySelector('.stop summary').click()")
    browser.ask("document.querySelector('button[data-stop]').click()")
    browser.wait(
        "document.querySelector('.announcement').textContent.includes('asked to save and stop')"
    )
    assert (top / "going" / "asked").read_text() == "SIGTERM"
    trainer.kill()
    trainer.wait()
    browser.wait("document.querySelector('.state').textContent === 'killed'")
    assert browser.ask("document.querySelector('.announcement').textContent") == "going: killed"
    assert browser.ask("document.querySelector('.stop') === null")
