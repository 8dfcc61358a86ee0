"""Schedules against optax's own and against the values that their papers give."""

from dataclasses import replace

import jax
import numpy as np
import optax
import pytest

from jaxft.config.optimizer import OptimizerSection
from jaxft.config.recipe import Group, LayerDecaySection, ScheduleSection
from jaxft.durations import Duration
from jaxft.engine.length import Length, resolve_rates
from jaxft.engine.recipe import as_schedule, table_from
from jaxft.errors import UserError
from jaxft.layerwise.phases import WHOLE, Phase
from jaxft.layerwise.schedules import Schedule, make_schedule, rate_table

TOTAL, WARMUP, PEAK, END, DECAY = 1000, 100, 0.01, 0.1, 200
STEPS = [0, 1, 50, 99, 100, 101, 550, 799, 800, 801, 900, 999, 1000, 1001]


def in_steps(kind, *, warmup=0, decay=0, **numbers):
    """A schedule whose durations are in steps."""
    return Schedule(kind, Duration(warmup, "steps"), decay=Duration(decay, "steps"), **numbers)


def inverse_sqrt(step):
    """Vaswani et al. 2017: climbs to the peak at the last warm-up step, then 1 / sqrt(step)."""
    return PEAK * min(step / WARMUP, (WARMUP / max(step, 1)) ** 0.5)


def line(knots):
    """Straight lines between knots (step -> share of the peak), level after the last."""
    return lambda step: PEAK * np.interp(step, list(knots), list(knots.values()))


# optax's own where it has one, else the definition in float64.
TWINS = {
    "constant": optax.warmup_constant_schedule(0, PEAK, WARMUP),
    "linear": line({0: 0, WARMUP: 1, TOTAL: END}),
    "cosine": optax.warmup_cosine_decay_schedule(0, PEAK, WARMUP, TOTAL, PEAK * END),
    "wsd": line({0: 0, WARMUP: 1, TOTAL - DECAY: 1, TOTAL: END}),
    "inverse_sqrt": inverse_sqrt,
}


@pytest.mark.parametrize("kind", TWINS)
def test_every_kind_is_its_twin(kind):
    ours = make_schedule(in_steps(kind, warmup=WARMUP, end=END, decay=DECAY), PEAK, TOTAL)
    for step in STEPS:
        assert float(ours(step)) == pytest.approx(float(TWINS[kind](step)), abs=1e-6 * PEAK), step


@pytest.mark.parametrize(
    ("kind", "wanted"),
    {
        "constant": [0, PEAK, PEAK, PEAK, PEAK],
        "linear": [0, PEAK, 0.55 * PEAK, 0.1 * PEAK, 0.1 * PEAK],
        "cosine": [0, PEAK, 0.55 * PEAK, 0.1 * PEAK, 0.1 * PEAK],
        "wsd": [0, PEAK, PEAK, 0.1 * PEAK, 0.1 * PEAK],
        "inverse_sqrt": [0, PEAK, PEAK * (100 / 550) ** 0.5, PEAK * 0.1**0.5, None],
    }.items(),
)
def test_values_at_the_knots(kind, wanted):
    """At step 0, the end of warm-up, half of the rest, the end and one after."""
    spec = in_steps(kind, warmup=WARMUP, end=END, decay=DECAY)
    ours = make_schedule(spec, PEAK, TOTAL)
    for step, value in zip([0, 100, 550, 1000, 1001], wanted, strict=True):
        if value is not None:
            assert float(ours(step)) == pytest.approx(value, rel=1e-6), step


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine", "wsd", "inverse_sqrt"])
def test_without_warmup_the_first_step_is_the_peak(kind):
    ours = make_schedule(in_steps(kind, decay=DECAY), PEAK, TOTAL)
    assert float(ours(0)) == pytest.approx(PEAK)
    if kind in ("linear", "cosine", "wsd"):
        assert float(ours(TOTAL)) == pytest.approx(0, abs=1e-9)


def test_slanted_triangular_has_the_papers_values():
    ours = make_schedule(in_steps("slanted_triangular", cut_frac=0.1, ratio=32), PEAK, TOTAL)
    golden = {0: 3.125e-4, 50: 5.15625e-3, 100: 1e-2, 550: 5.15625e-3, 1000: 3.125e-4}
    for step, value in golden.items():
        assert float(ours(step)) == pytest.approx(value, rel=1e-6), step


@pytest.mark.parametrize("total", [1, 3, 7, 10, 999])
def test_slanted_triangular_of_any_length_ends_where_it_began(total):
    ours = make_schedule(in_steps("slanted_triangular"), PEAK, total)
    values = np.array([float(ours(step)) for step in range(total + 1)])
    assert np.isfinite(values).all()
    assert values.max() == pytest.approx(PEAK, rel=1e-6)
    assert values[0] == pytest.approx(PEAK / 32, rel=1e-5)
    if total > 1:
        assert values[-1] == pytest.approx(PEAK / 32, rel=1e-5)


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine", "wsd", "inverse_sqrt"])
def test_warmup_longer_than_the_run_is_an_error(kind):
    make_schedule(in_steps(kind, warmup=TOTAL), PEAK, TOTAL)
    with pytest.raises(UserError, match="need 1001 steps, and the run has 1000"):
        make_schedule(in_steps(kind, warmup=TOTAL + 1), PEAK, TOTAL)


def test_warmup_and_decay_that_overlap_are_an_error():
    make_schedule(in_steps("wsd", warmup=800, decay=200), PEAK, TOTAL)
    with pytest.raises(UserError, match="need 1001 steps, and the run has 1000") as caught:
        make_schedule(in_steps("wsd", warmup=801, decay=200), PEAK, TOTAL)
    assert "schedule.warmup" in str(caught.value)


def test_slanted_triangular_takes_no_warmup():
    with pytest.raises(UserError, match="climbs by itself"):
        make_schedule(in_steps("slanted_triangular", warmup=10), PEAK, TOTAL)


def test_an_unknown_kind_is_an_error():
    with pytest.raises(UserError, match="'sawtooth' is not a schedule"):
        make_schedule(in_steps("sawtooth"), PEAK, TOTAL)


def test_the_rate_table_is_every_schedule_at_every_step():
    kinds = ["constant", "linear", "cosine", "slanted_triangular"]
    schedules = [make_schedule(in_steps(kind), PEAK, 50) for kind in kinds]
    rates = rate_table(schedules, 50)
    assert rates.shape == (51, 4)
    assert rates.dtype == np.float32
    for column, schedule in enumerate(schedules):
        one_by_one = [float(schedule(step)) for step in range(51)]
        np.testing.assert_allclose(rates[:, column], one_by_one, atol=1e-6 * PEAK)


def test_a_config_resolves_into_rates_by_group():
    """Durations become steps once; each group has its own peak and schedule; frozen have none."""
    shapes = {
        name: jax.ShapeDtypeStruct((2, 2), np.float32) for name in ("low/a", "mid/b", "top/c")
    }
    table = table_from(
        shapes,
        depths={"low/a": 0, "mid/b": 1, "top/c": 2},
        tops=dict.fromkeys(shapes, 2),
        no_decay=[],
        groups=[
            Group(name="trunk", depth=(0, 0), freeze=True),
            Group(name="top", match="top/.*", lr=1.0, schedule=ScheduleSection(kind="constant")),
        ],
        layer_decay=LayerDecaySection(),
        optimizer=OptimizerSection(lr=0.5),
        schedule=ScheduleSection(kind="linear", warmup="10%"),
    )
    length = Length(total_steps=40, steps_per_epoch=20, evaluate_every=20, save_every=20)
    rates = resolve_rates(Phase(0, 0, 40, WHOLE, table), length)
    assert [group.name for group in table.training_groups] == ["top", "rest"]
    np.testing.assert_array_equal(rates[:, 0], np.ones(41))
    np.testing.assert_allclose(rates[[0, 2, 4, 22, 40], 1], [0, 0.25, 0.5, 0.25, 0], atol=1e-7)
    spec = replace(WHOLE, rewarm=Duration(11, "steps"))
    with pytest.raises(UserError, match=r"phases\[1\]\.rewarm is 11 steps, and the phase has 10"):
        resolve_rates(Phase(1, 30, 40, spec, table), length)


@pytest.mark.parametrize(("written", "steps"), [("25%", 10), ("0.5 epochs", 10), (7, 7)])
def test_durations_of_a_schedule_are_in_steps(written, steps):
    section = ScheduleSection(kind="wsd", warmup=written, decay=written)
    ours = make_schedule(as_schedule(section), 1.0, 40, 20)
    wanted = make_schedule(in_steps("wsd", warmup=steps, decay=steps), 1.0, 40)
    np.testing.assert_array_equal(rate_table([ours], 40), rate_table([wanted], 40))


def test_a_function_is_a_schedule():
    """Step -> multiplier of the peak."""
    ours = make_schedule(optax.linear_schedule(1, 0, 40), PEAK, 40)
    np.testing.assert_array_equal(
        rate_table([ours], 40), rate_table([lambda step: PEAK * (1 - step / 40)], 40)
    )
