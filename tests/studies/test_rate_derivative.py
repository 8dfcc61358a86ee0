"""The derivative of the loss after some steps by each multiplier, against finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxft.config.optimizer import OptimizerSection
from jaxft.config.recipe import LayerDecaySection, ScheduleSection
from jaxft.device.mesh import batch_sharding, make_mesh
from jaxft.engine.recipe import optimizer_from, table_from
from jaxft.engine.state import TrainState
from jaxft.engine.step import step_function
from jaxft.studies.tuning.derivative import Multipliers, derivative, mean_gradient, trained

LAYERS, WIDTH, ROWS, STEPS = 4, 6, 16, 5


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def objective(params, batch, key):
    """The squared error of a deep tanh network; no layer of the library casts it to float32."""
    x = batch["x"]
    for layer in range(LAYERS):
        x = jnp.tanh(x @ params[f"blocks/{layer}/kernel"])
    error = jnp.sum((x - batch["y"]) ** 2, axis=-1)
    return {"loss": (error.sum(), jnp.asarray(float(len(error)), error.dtype))}


def make_problem(name: str, rate: float, scales=(1.0,) * LAYERS, columns=WIDTH, **optimizer):
    """The derivative of a network's loss after steps on rows that another network has made.

    Columns of the rows from `columns` on are 0: their weights have no gradient at any step.
    """
    draw = np.random.default_rng(0)
    teacher, start = (
        {f"blocks/{n}/kernel": draw.normal(0, 0.7, (WIDTH, WIDTH)) for n in range(LAYERS)}
        for _ in range(2)
    )
    start = {n: value * scales[i] for i, (n, value) in enumerate(start.items())}
    x = draw.normal(size=(STEPS + 1, ROWS, WIDTH)) * (np.arange(WIDTH) < columns)
    y = x
    for kernel in teacher.values():
        y = np.tanh(y @ kernel)
    section = OptimizerSection(name=name, lr=rate, clip=0.5, **optimizer)
    table = table_from(
        start,
        depths={f"blocks/{n}/kernel": n + 1 for n in range(LAYERS)},
        tops=dict.fromkeys(start, LAYERS + 1),
        no_decay=(),
        groups=[],
        layer_decay=LayerDecaySection(rate=0.9),
        optimizer=section,
        schedule=ScheduleSection(),
    )
    rows = batch_sharding(make_mesh(1, 1, 1, jax.devices()[:1]))
    made = optimizer_from(table, section)
    params = {n: jnp.asarray(value) for n, value in start.items()}
    state = TrainState(
        jnp.zeros((), jnp.int32),
        params,
        made.init(params),
        jax.random.key(0),
        None,
        {},
        jnp.zeros((), jnp.int32),
    )
    step = step_function(objective, made, accumulate=1, ema=None, rows=rows)
    multipliers = Multipliers(table.multipliers().astype(float), np.arange(LAYERS), LAYERS)
    train = {"x": jnp.asarray(x[:-1]), "y": jnp.asarray(y[:-1])}
    score = {"x": jnp.asarray(x[-1]), "y": jnp.asarray(y[-1])}
    rates, decay = jnp.full((STEPS, 1), rate), jnp.asarray(table.weight_decays(), float)

    @jax.jit
    def ends(logs):
        return trained(step, multipliers, logs, state, {}, train, rates, decay)

    @jax.jit
    def summed(params, batch):
        def loss(params):
            total, weight = objective(params, batch, None)["loss"]
            return total, (total, weight)

        gradients, sums = jax.grad(loss, has_aux=True)(params)
        return sums, gradients

    def slope(logs):
        end = ends(logs)
        loss, gradient = mean_gradient(summed, end.trainable, [score])
        return float(loss), np.asarray(derivative(end.tangents, gradient))

    return slope


@pytest.mark.parametrize("optimizer", [{"name": "adamw"}, {"name": "sgd", "momentum": 0.9}])
def test_it_is_that_of_finite_differences(x64, optimizer):
    slope = make_problem(rate=0.02, weight_decay=0.1, **optimizer)
    logs, reach = np.array([0.3, -0.2, 0.1, 0.0]), 1e-5
    _, exact = slope(jnp.asarray(logs))
    differences = [
        (slope(jnp.asarray(logs + step))[0] - slope(jnp.asarray(logs - step))[0]) / (2 * reach)
        for step in reach * np.eye(LAYERS)
    ]
    assert exact.shape == (LAYERS,)
    np.testing.assert_allclose(exact, differences, rtol=1e-6, atol=1e-6 * abs(exact).max())


def test_weights_without_a_gradient_leave_it_finite(x64):
    loss, exact = make_problem("adamw", 0.02, columns=WIDTH - 1)(jnp.zeros(LAYERS))
    assert np.isfinite([loss, *exact]).all()
    assert exact.any()


def test_a_block_that_was_made_small_is_given_the_highest_rate(x64):
    slope = make_problem("sgd", 0.05, scales=(1.0, 1.0, 0.1, 1.0))
    logs = np.zeros(LAYERS)
    for _ in range(10):
        logs -= 0.3 * (one := slope(jnp.asarray(logs))[1]) / abs(one).max()
    assert logs.argmax() == 2


def test_the_mean_over_batches_is_by_their_weight():
    def gradient(params, batch):
        total = jnp.sum(params["w"] * batch["x"])
        return (total, jnp.asarray(float(len(batch["x"])))), {"w": batch["x"].sum()}

    batches = [{"x": jnp.array([1.0, 2.0])}, {"x": jnp.array([6.0])}]
    loss, gradients = mean_gradient(gradient, {"w": jnp.array(2.0)}, batches)
    assert (float(loss), float(gradients["w"])) == (6.0, 3.0)
