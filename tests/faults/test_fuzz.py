"""Random hostile inputs, each of which is accepted or refused in a sentence."""

import json
from pathlib import Path

import pytest

from jaxft.errors import LONGEST, UserError
from tests.faults.grammar import Draw
from tests.faults.judge import LONGEST as SENTENCE
from tests.faults.judge import SECONDS, Case, count, in_own_process, judged
from tests.faults.readers import MAKERS

# Kinds that hold whatever is in a file: it is a problem that the page names.
NEVER_REFUSED = {"run"}


def check(counts, inputs):
    assert not counts.others, counts.lines()
    assert counts.tried == inputs
    assert counts.slowest[0] < SECONDS
    assert counts.refused.keys() | NEVER_REFUSED == counts.accepted.keys() | NEVER_REFUSED
    assert len(counts.accepted) >= len(MAKERS)


@pytest.mark.slow
def test_two_thousand_inputs(tmp_path):
    check(in_own_process("tests.faults.fuzz", tmp_path, "--inputs", "2000"), 2000)


@pytest.mark.full
def test_fifty_thousand_inputs(tmp_path):
    words = ("--inputs", "50000", "--seed", "1")
    counts = in_own_process("tests.faults.fuzz", tmp_path, *words)
    check(counts, 50_000)
    print(counts.lines())


# ------------------------------------------------------------------------------------- the judge


def test_what_ends_otherwise_is_counted(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.faults.judge._limit_memory", lambda: None)
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("before")

    def read():
        if (text := Path("file").read_text()) == "wrong":
            raise UserError("The file is wrong.", "Mend it.")
        json.loads(text)

    cases = [Case(f"file: {t}", {"file": t.encode()}, read) for t in ("wrong", "1", "{", "[]")]
    counts = count(cases, tmp_path)
    assert (counts.refused, counts.accepted) == ({"file": 1}, {"file": 2})
    assert "file: {: JSONDecodeError" in counts.others[0]
    assert counts.tried == 4
    assert Path("file").read_text() == "before"


def test_a_crash_is_named(tmp_path):
    with pytest.raises(AssertionError, match=r"ended with -?\d+ at the input 'none'"):
        in_own_process("tests.faults.fuzz", tmp_path, "--unknown")


def test_an_input_follows_from_its_number():
    assert Draw("0/7").value() == Draw("0/7").value()
    texts = {Draw(f"0/{number}").json({"a": [1, 2]}) for number in range(20)}
    assert len(texts) > 10


def test_a_long_message_has_no_middle():
    def refuse():
        raise UserError("The value is " + "9" * 5000 + " in rows.csv.", "Lower it.")

    sentence = judged(refuse)
    assert len(sentence) <= LONGEST + 20 < SENTENCE
    assert sentence.startswith("The value is 9")
    assert sentence.endswith("9 in rows.csv. Lower it.")


def test_a_long_message_and_a_long_hint_are_one_sentence_still():
    def refuse():
        raise UserError("The field " + "9" * 5000 + " is unknown.", "Set " + "9" * 5000 + ".")

    assert len(judged(refuse)) < SENTENCE
