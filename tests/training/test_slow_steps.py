"""The first step that takes far longer than those before it is reported, and only that."""

import time

import pytest

from jaxft.storage.waiting import Watch
from jaxft.training.meter import FEWEST, LEAST_SECONDS, TIMES, Clock, SlowSteps


@pytest.fixture
def slow():
    """Steps of a phase, a second each, none of which is watched while it runs."""
    steps = SlowSteps(Clock(), Watch())
    sentences = [steps.add(step, 0, 100.0 + step) for step in range(FEWEST + 5)]
    assert sentences == [None] * len(sentences)
    return steps


def test_a_slow_step_is_reported_once(slow):
    last = 100.0 + FEWEST + 4
    assert slow.add(FEWEST + 5, 0, last + TIMES - 1) is None
    sentence = slow.add(FEWEST + 6, 0, last + TIMES - 1 + 61)
    assert sentence == "Step 26 took 61 s; the median of the steps before is 1 s."
    assert slow.add(FEWEST + 7, 0, last + 500) is None


def test_the_first_step_of_a_phase_is_compiled(slow):
    assert slow.add(FEWEST + 5, 1, 1000.0) is None
    assert slow.add(FEWEST + 6, 1, 2000.0) is None, "there is no median yet"


def test_steps_of_milliseconds_may_wait():
    steps = SlowSteps(Clock(), Watch())
    for step in range(FEWEST + 2):
        assert steps.add(step, 0, 0.001 * step) is None
    assert steps.add(FEWEST + 2, 0, LEAST_SECONDS) is None
    assert "took 11 s" in steps.add(FEWEST + 3, 0, 2 * LEAST_SECONDS + 1)


def test_a_step_that_does_not_end_is_reported_while_it_runs(monkeypatch):
    monkeypatch.setattr("jaxft.storage.waiting.LOOK_SECONDS", 0.01)
    monkeypatch.setattr("jaxft.training.meter.LEAST_SECONDS", 0.05)
    clock, sentences = Clock(), []
    with Watch(sentences.append) as watch:
        steps = SlowSteps(clock, watch)
        for step in range(FEWEST + 2):
            steps.add(step, 0, 0.001 * step)
        with clock.paused():
            time.sleep(0.3)
        assert sentences == []
        steps.add(FEWEST + 2, 0, 0.001 * (FEWEST + 2))
        time.sleep(0.3)
    assert len(sentences) == 1
    assert sentences[0].startswith("step 23 has not ended for 0 s; the median of the steps before")
