"""Batches that grow by micro-batches, lengths in examples, and the gradient noise scale."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxft
from jaxft.config.load import check_resume
from jaxft.data.batching.plans import Layout, TrainPlan
from jaxft.device.mesh import batch_sharding, make_mesh, place_batch
from jaxft.durations import Duration, Growth, Pace, resolve_steps
from jaxft.engine.gradients.compared import Compared, compared_gradients
from jaxft.engine.gradients.micro_batches import MicroBatches, accumulated, noise_terms
from jaxft.engine.length import check_growth, with_growth
from jaxft.engine.setup import build
from jaxft.errors import UserError
from jaxft.layerwise.schedules import Schedule, make_schedule
from jaxft.training import noise
from jaxft.training.noise import NoiseScale
from tests.support.laid_out import goes_on_to_the_same_bits, with_sections
from tests.support.launch import cache  # noqa: F401 a fixture
from tests.support.tiny import tiny_config

pytestmark = pytest.mark.usefixtures("cache")
GROWTH = Growth((3, 0, 2))


# ----------------------------------------------------------------------------------- arithmetic
def test_growth_counts_the_micro_batches():
    each = [GROWTH.parts_at(step) for step in range(8)]
    assert each == [1, 1, 1, 3, 3, 4, 4, 4]
    assert [GROWTH.before(step) for step in range(9)] == np.cumsum([0, *each]).tolist()
    for step in range(9):
        assert GROWTH.steps_of(GROWTH.before(step) / 4) == pytest.approx(step)
    assert Growth().before(5) == Growth().steps_of(5) == 5


def test_a_length_in_examples_is_that_of_the_examples_that_steps_read():
    pace = Pace(steps_per_epoch=10, examples_per_step=8)
    steps = partial(resolve_steps, Duration.parse("40 examples"), 100)
    assert steps(pace) == 5
    growing = Pace(10, 8, GROWTH)  # 2, 2, 2, 6, 6, 8, 8 examples
    assert steps(growing) == 5
    assert steps(growing, start=True) == 8
    assert resolve_steps(Duration.parse("1 epoch"), None, growing, start=True) == 13
    assert str(Duration.parse("1 examples")) == "1 example"
    with pytest.raises(ValueError, match="40 examples at an unknown number of examples a step"):
        steps(10)
    with pytest.raises(ValueError, match=r"0\.5 is not a whole number of examples"):
        Duration.parse("0.5 examples")


def test_a_run_of_so_many_epochs_completes_them():
    for spe in (3, 8, 11):
        for growth in (Growth(), GROWTH, Growth((8, 4, 3))):
            for epochs in (2, 3, 7):
                pace = Pace(spe, growth=growth)
                steps = resolve_steps(Duration(epochs, "epochs"), None, pace, start=True)
                assert pace.whole_epochs(steps) == epochs
    assert [Pace(8).whole_epochs(steps) for steps in (7, 8, 15, 16, 17)] == [0, 1, 1, 2, 2]


def test_gradual_unfreezing_goes_on_at_each_epoch_of_growing_batches(tmp_path):
    growing = {"length": "2 epochs", "accumulate": 4, "batch_warmup": "1 epoch"}
    wide = {"batch_size": 32}  # eight devices, four micro-batches
    setup = build(tiny_config(tmp_path, phases="gradual_unfreezing", train=growing, data=wide))
    epoch = resolve_steps(Duration(1, "epochs"), None, setup.length.pace, start=True)
    assert setup.length.total_steps > 2 * setup.length.steps_per_epoch
    assert [phase.stop for phase in setup.phases] == [epoch, setup.length.total_steps]


def test_a_warm_up_in_examples_ends_with_them():
    schedule = Schedule("constant", warmup=Duration.parse("18 examples"))
    rates = make_schedule(schedule, 1.0, 20, Pace(10, 8, GROWTH))
    assert [float(rates(step)) for step in (0, 5, 6)] == pytest.approx([0, 1, 1])
    assert float(rates(4)) < 1


@pytest.mark.parametrize(("warmup", "growth"), [("6 steps", (2, 2, 2)), ("48 examples", (8, 4, 3))])
def test_the_batch_grows_evenly_with_steps_or_examples(warmup, growth):
    plan = TrainPlan(np.ones(80, np.int64), 0, 8, 1, 1)
    layout = with_growth(build_layout(plan), Duration.parse(warmup), 4, 80)
    assert tuple(layout.growth) == growth
    check_growth(layout, 4)
    with pytest.raises(UserError, match="batches grow in 4 micro-batches, and 2 would read other"):
        check_growth(layout, 2)


def build_layout(plan):
    return Layout(plan.rows, plan.row_length, plan.segments, 8.0, 0.0)


def test_growing_batches_read_the_same_examples_in_the_same_order():
    lengths = np.ones(40, np.int64)
    whole, growing = (TrainPlan(lengths, 0, 8, 1, 1, growth=g) for g in ((), GROWTH.steps))
    read = []
    for step in range(12):
        parts = growing.batch(step).reshape(2, 4).T  # row i x 4 + k is of micro-batch k
        used = (parts >= 0).all(axis=1)
        assert used.tolist() == [number < GROWTH.parts_at(step) for number in range(4)]
        assert growing.share(step) == used.mean()
        read += parts[used].tolist()
    expected = [row for n in range(12) for row in whole.batch(n).reshape(2, 4).T.tolist()]
    assert read == expected[: len(read)]
    assert growing.epoch_of(12) == len(read) / 20


# -------------------------------------------------------------------------------------- gradients
WIDTH = 5


def summed_loss(params, fixed, batch, key):
    del fixed, key
    losses = jnp.square(batch["x"] @ params["kernel"] - batch["y"]) / 2
    total, weight = (losses * batch["weights"]).sum(), batch["weights"].sum()
    return total, {"loss": (total, weight)}


def drawn(rows=16, absent=()):
    draw = np.random.default_rng(0)
    batch = {
        "x": draw.normal(size=(rows, WIDTH)).astype(np.float32),
        "y": draw.normal(size=rows).astype(np.float32),
        "weights": draw.integers(1, 4, rows).astype(np.float32),
        "example_ids": np.arange(rows, dtype=np.int32)[:, None],
    }
    for part in absent:
        batch["example_ids"][part::4] = -1
        batch["weights"][part::4] = 0
    return {"kernel": draw.normal(size=WIDTH).astype(np.float32)}, batch


def run(params, batch, grows, count=4):
    micro = MicroBatches(count, batch_sharding(make_mesh(1, 1, 1, jax.devices()[:1])), grows)
    step = jax.jit(partial(accumulated, jax.grad(summed_loss, has_aux=True), micro))
    return step, step(params, {}, batch, jax.random.key(0))


def test_one_program_takes_any_number_of_micro_batches():
    params, batch = drawn()
    step, whole = run(params, batch, grows=True)
    for absent in ((), (3,), (1, 2, 3)):
        params, batch = drawn(absent=absent)
        gradients, sums = step(params, {}, batch, jax.random.key(0))
        there = batch["weights"] > 0
        error = (batch["x"] @ params["kernel"] - batch["y"]) * batch["weights"]
        expected = (error[there] @ batch["x"][there]) / batch["weights"].sum()
        np.testing.assert_allclose(gradients["kernel"], expected, rtol=2e-5)
        assert float(sums["loss"][1]) == batch["weights"].sum()
    assert step._cache_size() == 1
    np.testing.assert_allclose(whole[0]["kernel"], run(*drawn(), grows=False)[1][0]["kernel"])


def test_absent_micro_batches_are_not_computed():
    """A row that would make the gradient infinite does nothing in one."""
    params, batch = drawn(absent=(2, 3))
    batch["x"][3] = np.inf
    assert np.isfinite(run(params, batch, grows=True)[1][0]["kernel"]).all()
    assert not np.isfinite(run(params, batch, grows=False)[1][0]["kernel"]).all()


def test_rows_of_growing_batches_that_are_compared():
    """The gradients are those of the rows that are there."""

    def represent(params, batch, key):
        del key
        return {"rows": jnp.tanh(batch["x"] * params["kernel"])}

    def compare(params, rows, batch):
        del params
        scores = rows["rows"] @ rows["rows"].T * batch["weights"][:, None] * batch["weights"]
        return {"loss": (scores.sum(), batch["weights"].sum())}

    params, batch = drawn(absent=(2, 3))
    for grows in (True, False):
        micro = MicroBatches(4, batch_sharding(make_mesh(1, 1, 1, jax.devices()[:1])), grows)
        step = partial(compared_gradients, Compared(represent, compare), micro)
        gradients, _ = jax.jit(step)(params, {}, batch, jax.random.key(0))
        there = {name: array[batch["weights"] > 0] for name, array in batch.items()}

        def loss(params, rows):
            return compare(params, represent(params, rows, None), rows)["loss"][0]

        expected = jax.jit(jax.grad(loss))(params, there)["kernel"] / there["weights"].sum()
        np.testing.assert_allclose(gradients["kernel"], expected, rtol=2e-5)


# -------------------------------------------------------------------------------------- noise scale
def noise_of(batch, params, count=4):
    """McCandlish et al., equations A.2 and A.3, for micro-batches of one size."""
    errors = batch["x"] @ params["kernel"] - batch["y"]
    each = (errors[:, None] * batch["x"]).astype(np.float64)
    small = [np.square(each[part::count].mean(0)).sum() for part in range(count)]
    big, rows = np.square(each.mean(0)).sum(), len(each)
    square = (rows * big - rows / count * np.mean(small)) / (rows - rows / count)
    variance = (np.mean(small) - big) / (count / rows - 1 / rows)
    return variance, square


def test_the_terms_of_the_noise_scale_are_the_papers():
    params, batch = drawn()
    batch["weights"][:] = 1
    _, (_, sums) = run(params, batch, grows=False)
    terms = [float(sums[name][0] / sums[name][1]) for name in noise.TERMS]
    assert terms == pytest.approx(noise_of(batch, params), rel=1e-4)


def test_over_devices_the_terms_are_the_same():
    params, batch = drawn()
    rows = batch_sharding(make_mesh(2, 2, 1, jax.devices()[:4]))
    step = partial(accumulated, jax.grad(summed_loss, has_aux=True), MicroBatches(4, rows))
    _, sums = jax.jit(step)(params, {}, place_batch(batch, rows), jax.random.key(0))
    _, (_, alone) = run(params, batch, grows=False)
    for name in noise.TERMS:
        assert float(sums[name][0]) == pytest.approx(float(alone[name][0]), rel=1e-4)


def test_the_scale_is_that_of_a_gradient_of_known_noise():
    """Gradients of weighted examples: a mean of norm 2, and a variance of 12 in all."""
    draw, scale = np.random.default_rng(0), NoiseScale()
    for _ in range(400):
        each = draw.normal(size=(8, 4, 3)) * 2 + np.array([0, 0, 2.0])  # parts of 4 examples
        sums, weights = each.sum(1), np.full(8, 4.0)
        squares, mean = (np.square(sums).sum(1) / weights).sum(), sums.sum(0) / 32
        pairs = noise_terms_of(squares, np.square(mean).sum())
        terms = {name: float(total) for name, (total, _) in pairs.items()}
        scale.add({**terms, "weight": 32.0}, 32)
    assert scale.scale == pytest.approx(12 / 4, rel=0.3)
    assert "about" in scale.line(32)
    scale = NoiseScale()
    scale.add({"weight": 1.0, **dict.fromkeys(noise.TERMS, float("nan"))}, 1)
    assert scale.scale is None is scale.line(1)


def noise_terms_of(squares, square):
    return noise_terms(jnp.float32(squares), jnp.float32(square), 32.0, jnp.float32(8))


# --------------------------------------------------------------------------------------------- runs
def growing_config(folder, **train):
    train = {"length": "3 epochs", "accumulate": 4, "batch_warmup": "96 examples"} | train
    often = {"log_every": 1, "evaluate_every": "100%"}
    return tiny_config(
        folder,
        data={"pack": False, "batch_size": 32},
        optimizer={"lr": 1e-3, "scale": "sqrt", "reference_batch": 32},
        schedule={"kind": "constant"},
        train={**often, **train},
        checkpoint={"every": "3 steps", "keep": 20},
    )


@pytest.mark.slow
def test_a_run_with_growing_batches_reads_each_example_once_and_goes_on(tmp_path, monkeypatch):
    scale = property(lambda self: 12.0 if self._steps > 1 else None)
    monkeypatch.setattr(NoiseScale, "scale", scale)
    config = growing_config(tmp_path)
    built = build(config)
    growth = built.plan.growth
    assert growth.steps == (6, 3, 2)
    total = built.length.total_steps
    index = [built.plan.batch(step) for step in range(total)]
    read = np.concatenate([one[one >= 0] for one in index])
    examples = len(built.splits["train"].examples)
    assert np.unique(read).tolist() == list(range(examples))
    assert abs(len(read) - 3 * examples) <= 16  # to the nearest step
    finished = jaxft.train(config, quiet=True)
    lines = (finished.folder / "metrics.jsonl").read_text().splitlines()
    events = [e for e in map(json.loads, lines) if "rates" in e]
    rates = {event["step"]: event["rates"]["rest"] for event in events}
    for step, rate in rates.items():
        assert rate == pytest.approx(1e-3 * built.plan.share(step - 1) ** 0.5, rel=1e-6)
    assert len(rates) == total
    assert [event.get("noise_scale") for event in events] == [None] * 7 + [12.0] * (total - 7)
    assert any("The gradient noise scale is about 12 examples" in line for line in lines)
    goes_on_to_the_same_bits(finished, config, 6, tmp_path / "again")
    other = with_sections(config, {"train": {"batch_warmup": "48 examples"}})
    with pytest.raises(UserError, match=r"train\.batch_warmup"):
        check_resume(config, other)


@pytest.mark.parametrize(
    ("train", "sentence"),
    [
        ({"accumulate": 1}, "batch_warmup grows a step from one micro-batch to train.accumulate"),
        ({"batch_warmup": "10%"}, "it must be in steps, epochs or examples, not 10%"),
    ],
)
def test_a_warm_up_that_cannot_be(tmp_path, train, sentence):
    with pytest.raises(UserError, match=sentence):
        growing_config(tmp_path, **train)
