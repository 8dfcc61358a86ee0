"""A wait that lasts too long is reported once, and the others are not."""

import time

from jaxft.storage.buckets import reached
from jaxft.storage.waiting import Watch, reported


def test_each_long_wait_is_reported_once(monkeypatch):
    monkeypatch.setattr("jaxft.storage.waiting.LOOK_SECONDS", 0.01)
    sentences = []
    with Watch(sentences.append) as watch:
        watch.expect(60, lambda: "never")
        watch.arrived()
        watch.expect(0.05, lambda: "late")
        time.sleep(0.3)
        watch.expect(60, lambda: "never")
        time.sleep(0.05)
        watch.expect(0.05, lambda: "late again")
        time.sleep(0.3)
    assert sentences == ["late", "late again"]


def test_a_block_that_ends_in_time_is_not_reported():
    sentences = []
    with reported(0.05, lambda: "late", sentences.append):
        time.sleep(0.3)
    with reported(60, lambda: "never", sentences.append):
        pass
    assert sentences == ["late"]


def test_a_bucket_that_answers_slowly_is_shown(monkeypatch, capsys):
    monkeypatch.setattr("jaxft.storage.buckets.SLOW_SECONDS", 0.05)
    monkeypatch.setattr("jaxft.storage.buckets.check_network", lambda path: None)
    for path in ("gs://bucket/\x1bruns", "local/folder"):
        with reached(path):
            time.sleep(0.3)
    shown = capsys.readouterr().err
    assert shown == "jaxft: waiting for gs://bucket/\\u001bruns, which answers slowly.\n"
