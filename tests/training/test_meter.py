"""Throughput: a rate is over the time in which its steps ran, or there is none."""

from types import SimpleNamespace

import pytest

from jaxft.training import meter
from jaxft.training.meter import Clock, Pace


@pytest.fixture
def clock(monkeypatch):
    """A clock whose steps end at the second that stands for their result."""
    now = [0.0]
    monkeypatch.setattr(meter, "time", SimpleNamespace(monotonic=lambda: now[0]))
    waiting = SimpleNamespace(block_until_ready=lambda second: now.__setitem__(0, second))
    monkeypatch.setattr(meter, "jax", waiting)
    return Clock()


def test_steps_that_are_read_late_have_the_time_in_which_they_ran(clock):
    """The last steps are read together, after all have ended: their time is not that of reading."""
    ended = [clock.ends(second).result() for second in (5.0, 6.0, 7.0, 8.0)]
    pace = Pace()
    for moment in ended[:2]:
        pace.add(moment.active, examples=16)
    assert pace.rates() == {"examples": 16.0}
    for moment in ended[2:]:
        pace.add(moment.active, examples=16)
    assert pace.rates() == {"examples": 16.0}
    clock.close()


def test_a_step_that_is_compiled_is_not_timed():
    pace = Pace()
    pace.add(60.0, examples=8)  # a minute of compilation
    assert pace.rates() == {}, "one step in all has no rate"
    pace.add(61.0, examples=8)
    pace.add(62.0, examples=8)
    pace.interrupt()  # a new phase
    pace.add(90.0, examples=8)
    pace.add(92.0, examples=8)
    assert pace.rates() == {"examples": 24 / 4}


def test_evaluations_and_saves_are_no_training_time(clock):
    assert clock.ends(2.0).result().active == 2.0
    with clock.paused():
        meter.jax.block_until_ready(30.0)
    moment = clock.ends(31.0).result()
    assert (moment.active, moment.wall) == (3.0, 31.0)
    clock.close()


def test_a_step_that_fails_has_an_end(clock, monkeypatch):
    def fail(result):
        raise RuntimeError("a device was lost")

    monkeypatch.setattr(meter.jax, "block_until_ready", fail)
    assert clock.ends(1.0).result(timeout=60).active == 0.0
    clock.close()
