"""Moments in few bits: what rounding keeps, what it costs, and that a run goes on to its bits.

Budget: after 30 steps of AdamW the parameters differ from those under float32 moments by at most
1% of the way they went with bfloat16 and 5% with int8, and the loss by 1e-4.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import jaxft
from jaxft.config.load import parse_config
from jaxft.device.mesh import make_mesh
from jaxft.engine.initial_state import abstract_state, load_params
from jaxft.engine.remat import phase_setups
from jaxft.engine.setup import build
from jaxft.engine.trained import open_trained
from jaxft.errors import UserError
from jaxft.layerwise.moments import from_int8, to_bfloat16, to_int8
from jaxft.report.events import read_events
from tests.layerwise.test_optimizer import Run, gradients_at
from tests.support.laid_out import goes_on_to_the_same_bits
from tests.support.tiny import tiny_config

SHAPES = {"embeddings/word": (64, 4), "blocks/0/kernel": (130, 128), "blocks/0/bias": (128,)}
DEPTHS = {"embeddings/word": 0, "blocks/0/kernel": 1, "blocks/0/bias": 1}
KINDS = ["bfloat16", "int8"]
FARTHEST = {"bfloat16": 0.01, "int8": 0.05}


def words(step):
    return jnp.array([step, 7], jnp.uint32)


def test_bfloat16_is_one_of_the_neighbours_and_right_on_average():
    value = np.float32(1.0 + 0.3 * 2**-7)
    many = jnp.full((400, 500), value)
    rounded = np.asarray(to_bfloat16(many, words(0)), np.float32)
    assert set(np.unique(rounded)) == {1.0, np.float32(1.0 + 2**-7)}
    # Four standard deviations of the mean of 200,000 independent roundings.
    assert abs(rounded.mean() - value) < 4 * 2**-7 * (0.3 * 0.7 / many.size) ** 0.5
    by_step = [float(to_bfloat16(many[:1, :1], words(step))[0, 0]) for step in range(2000)]
    assert abs(np.mean(by_step) - value) < 4 * 2**-7 * (0.3 * 0.7 / 2000) ** 0.5
    exact = jnp.array([[0.0, -1.5, 2.0**-120]])
    np.testing.assert_array_equal(to_bfloat16(exact, words(1)), exact)
    np.testing.assert_array_equal(to_bfloat16(-many, words(0)), -rounded)


def test_int8_is_within_a_step_of_its_block_and_right_on_average():
    moment = np.random.default_rng(0).normal(size=(64, 96)).astype(np.float32)
    moment[:32] *= 1000  # blocks have scales of their own
    moment[:, 5] = 0
    largest = np.abs(moment.reshape(2, 32, 96)).max(1)
    rounded = []
    for step in range(400):
        values, scales = to_int8(jnp.asarray(moment), words(step))
        assert values.dtype == jnp.int8
        np.testing.assert_allclose(scales, largest / 127, rtol=1e-6)
        rounded.append(np.asarray(from_int8(values, scales)))
    step_size = np.repeat(largest / 127, 32, axis=0)
    assert (np.abs(np.stack(rounded) - moment) <= 1.001 * step_size).all()
    # An element's rounding has a standard deviation of half a step at most.
    assert (np.abs(np.mean(rounded, 0) - moment) <= 5 * 0.5 * step_size / 400**0.5).all()


def test_rounding_does_not_depend_on_the_layout():
    mesh = make_mesh(2, 2, 2, jax.devices()[:8])
    moment = jnp.asarray(np.random.default_rng(0).normal(size=(64, 96)), jnp.float32)
    cut = jax.device_put(moment, NamedSharding(mesh, PartitionSpec("fsdp", "tensor")))
    for function in (to_bfloat16, to_int8):
        one, eight = jax.jit(function)(moment, words(3)), jax.jit(function)(cut, words(3))
        jax.tree.map(np.testing.assert_array_equal, one, eight)


def expected_bytes(moments, first_only):
    """The bytes of the state of `SHAPES`, by hand: 130 rows are in 5 blocks of 26."""
    matrices, scales, bias = 64 * 4 + 130 * 128, 2 * 4 + 5 * 128, 128
    first = 2 * matrices if moments == "bfloat16" else matrices + 4 * scales
    second = 0 if first_only else 2 * matrices
    return first + second + 4 * bias * (1 if first_only else 2)


@pytest.mark.parametrize("moments", KINDS)
@pytest.mark.parametrize("name", ["adamw", "lamb", "lion", "sgd", "lars"])
def test_the_state_has_the_bytes_that_the_table_says(name, moments):
    run = Run(shapes=SHAPES, depths=DEPTHS, name=name, moments=moments)
    run.step(gradients_at(0, SHAPES))
    stored = [
        leaf.nbytes
        for path, leaf in jax.tree.leaves_with_path(run.state)
        if any(part in jax.tree_util.keystr(path) for part in SHAPES)
    ]
    wanted = expected_bytes(moments, name in ("lion", "sgd", "lars"))
    assert sum(stored) == wanted == sum(row["optimizer_bytes"] for row in run.table.summary())


@pytest.mark.parametrize("name", ["adamw", "lion", "sgd", "lamb", "lars"])
def test_the_first_step_is_that_of_float32(name):
    """The update is computed before the moments are rounded."""
    wide, narrow = (
        Run(shapes=SHAPES, depths=DEPTHS, name=name, moments=moments)
        for moments in ("float32", "int8")
    )
    for run in (wide, narrow):
        run.step(gradients_at(0, SHAPES))
    for leaf, value in wide.params.items():
        np.testing.assert_array_equal(narrow.params[leaf], value)


def test_a_small_second_moment_is_not_lost():
    """With a linear scale for the second moment it would be 0 beside a large one in its block."""
    run = Run(shapes=SHAPES, depths=DEPTHS, name="adamw", moments="int8")
    gradient = {name: jnp.full(shape, 1e-6) for name, shape in SHAPES.items()}
    gradient["blocks/0/kernel"] = gradient["blocks/0/kernel"].at[0].set(1.0)
    before = run.params["blocks/0/kernel"]
    for _ in range(3):
        run.step(gradient)
    moved = np.abs(np.asarray(run.params["blocks/0/kernel"] - before))
    assert np.isfinite(moved).all()
    nu = [x for x in jax.tree.leaves(run.state) if x.dtype == jnp.bfloat16 and x.shape[0] == 130]
    assert (np.asarray(nu[0], np.float32)[1:] > 0).all()


@pytest.mark.parametrize("moments", KINDS)
def test_a_step_that_is_not_finite_keeps_what_was_stored(moments):
    run = Run(shapes=SHAPES, depths=DEPTHS, name="adamw", moments=moments)
    run.step(gradients_at(0, SHAPES))
    before = jax.tree.map(np.asarray, run.state)
    _, state = run.optimizer.update(
        {n: jnp.full(shape, jnp.nan) for n, shape in SHAPES.items()},
        run.state,
        run.params,
        rates=jnp.full(1, 0.1),
        multipliers=jnp.asarray(run.table.multipliers()),
        weight_decay=jnp.zeros(1),
        finite=jnp.asarray(False),
    )
    jax.tree.map(np.testing.assert_array_equal, state, before)


@pytest.mark.parametrize("name", ["adafactor", "schedule_free_adamw"])
def test_a_rule_without_such_moments_says_so(tmp_path, name):
    written = tiny_config(tmp_path, schedule={"kind": "constant"}).dump()
    written["optimizer"] |= {"name": name, "moments": "int8"}
    with pytest.raises(UserError, match=f"moments' is int8, which {name} does not support"):
        parse_config(written)


def test_each_device_has_its_share_of_moments_and_scales(tmp_path):
    config = tiny_config(tmp_path, optimizer={"moments": "int8"}, mesh={"data": 1, "fsdp": 2})
    setup = build(config, devices=jax.devices()[:2])
    (now,) = phase_setups(setup)
    state = abstract_state(setup, now).opt_state
    kernel = "blocks/0/mlp/down/kernel"  # [64, 32]: two blocks of 32 rows in each column
    own = {
        str(leaf.dtype): leaf.sharding.shard_shape(leaf.shape)
        for path, leaf in jax.tree.leaves_with_path(state)
        if getattr(path[-1], "key", "") == kernel
    }
    assert own == {"int8": (32, 32), "float32": (1, 32), "bfloat16": (32, 32)}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Thirty steps under each kind of moments."""

    def run(moments):
        config = tiny_config(
            tmp_path_factory.mktemp(moments),
            model={"dropout": 0.0},
            optimizer={"moments": moments},
            train={"length": "30 steps", "evaluate_every": "30 steps"},
            checkpoint={"every": "11 steps", "keep": 9},
        )
        return jaxft.train(config, quiet=True), config

    return {moments: run(moments) for moments in ["float32", *KINDS]}


def params(run):
    return open_trained(run.folder, "last").model.params


def last_loss(run):
    return [e["loss"] for e in read_events(run.folder) if e["kind"] == "eval"][-1]


@pytest.mark.slow
@pytest.mark.parametrize("moments", KINDS)
def test_thirty_steps_are_those_of_float32_within_the_budget(runs, moments):
    (wide, config), (narrow, _) = runs["float32"], runs[moments]
    start, end, other = (
        jax.device_get(each)
        for each in (load_params(build(config)).params, params(wide), params(narrow))
    )
    way = optax.tree.norm(optax.tree.sub(end, start))
    apart = optax.tree.norm(optax.tree.sub(end, other)) / way
    assert 0 < apart < FARTHEST[moments]
    assert last_loss(narrow) == pytest.approx(last_loss(wide), abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("moments", KINDS)
def test_a_resumed_run_is_the_run(runs, moments, tmp_path):
    goes_on_to_the_same_bits(*runs[moments], 11, tmp_path)
