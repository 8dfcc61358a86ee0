"""Updates in the backward pass: the same step, with the gradients of one piece at a time."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxft.config.load import override_config
from jaxft.config.optimizer import NUMBERS
from jaxft.device.mesh import batch_sharding, place_batch
from jaxft.engine import setup as setups
from jaxft.engine.gradients.fused import Fused, advance_fused
from jaxft.engine.initial_state import initial_state, load_params
from jaxft.engine.setup import build
from jaxft.errors import UserError
from jaxft.models.tower import stretch
from jaxft.training.story import train
from tests.support.families import make_pair
from tests.support.phases import phase_of, stage_of
from tests.support.tiny import tiny_checkpoint, tiny_config

EIGHT, ONE = jax.devices(), jax.devices()[:1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a BERT of four blocks."""
    folder = tmp_path_factory.mktemp("fused")
    tiny_config(folder)
    tiny_checkpoint(folder / "deep", num_hidden_layers=4)
    return folder


def config_of(folder, *overrides, **sections):
    names = [one.removeprefix("optimizer.name=") for one in overrides if "optimizer.name=" in one]
    # Keys' biases have no gradient but rounding, by which Adam would divide.
    own = {"eps": 1e-4} if "eps" in NUMBERS.get((*names, "adamw")[0], {}) else {}
    optimizer = {"lr": 1e-2, "clip": None, **own} | sections.pop("optimizer", {})
    config = tiny_config(
        folder,
        model={"checkpoint": str(folder / "deep")},
        optimizer=optimizer,
        schedule={"kind": "constant"},
        **sections,
    )
    return override_config(config, overrides)


@pytest.fixture(autouse=True)
def _two_pieces(monkeypatch):
    monkeypatch.setattr(stretch, "FEW", 2)


def steps(config, count=3, devices=ONE):
    """All parameters after some steps, and each step's metrics."""
    built = build(config, devices=devices)
    model = load_params(built)
    stage = stage_of(built, model.params)
    state = initial_state(built, phase_of(built), model.params)
    rows, metrics = built.splits["train"].examples, []
    for number in range(count):
        batch = rows.collate(built.plan.batch(number), built.layout.row_length)
        placed = place_batch(batch, batch_sharding(built.mesh))
        state, one = stage.step(state, stage.frozen, placed, stage.inputs(number))
        metrics.append(jax.device_get(one))
    return jax.tree.map(np.array, stage.params(state)), metrics


def assert_alike(config, devices=ONE, rtol=1e-6):
    usual, theirs = steps(config, devices=devices)
    fused, ours = steps(override_config(config, ["optimizer.fused=true"]), devices=devices)
    start = {name: np.array(leaf) for name, leaf in load_params(build(config)).params.items()}
    moved = 0
    for name, value in usual.items():
        reach = np.abs(value - start[name]).max()
        moved += reach > 0
        np.testing.assert_allclose(fused[name], value, atol=rtol * max(reach, 1.0), err_msg=name)
    assert moved > 4
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        for name, value in other.items():
            np.testing.assert_allclose(one[name], value, rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ["train.scan=true", "train.remat=full", "optimizer.clip=0.1"],
        pytest.param(
            ["groups=[{name: trunk, depth: [0, 2], freeze: true}]", "layer_decay.rate=0.8"],
            marks=pytest.mark.full,
        ),
        pytest.param(["optimizer.name=sgd"], marks=pytest.mark.full),
        pytest.param(["optimizer.clip=0.1"], marks=pytest.mark.full),
        pytest.param(["train.scan=true", "train.remat=full"], marks=pytest.mark.full),
        pytest.param(["optimizer.name=adafactor"], marks=pytest.mark.full),
        pytest.param(["optimizer.name=lamb", "train.ema=0.9"], marks=pytest.mark.full),
        pytest.param(["optimizer.name=muon"], marks=pytest.mark.full),
        pytest.param(["optimizer.name=schedule_free_adamw"], marks=pytest.mark.full),
        pytest.param(["adapter={kind: lora, rank: 2}"], marks=pytest.mark.full),
        pytest.param(["regularise.l2_sp=0.01"], marks=pytest.mark.full),
    ],
    ids=lambda overrides: " ".join(overrides),
)
def test_a_fused_step_is_the_usual_step(folder, overrides):
    assert_alike(config_of(folder, *overrides))


@pytest.mark.full
def test_so_is_one_with_rounded_moments(folder):
    """Where numbers differ in their last bit, a moment may be rounded the other way."""
    config = config_of(folder, "optimizer.moments=bfloat16", "train.scan=true", "train.remat=full")
    assert_alike(config, rtol=1e-4)


@pytest.mark.full
def test_so_is_one_over_eight_devices(folder):
    sections = ["mesh={data: 2, fsdp: 4}", "train.scan=true", "train.remat=full"]
    assert_alike(config_of(folder, *sections, "optimizer.clip=0.1"), EIGHT, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "head"),
    [
        ("t5", "seq2seq"),
        pytest.param("llama", "causal_lm", marks=pytest.mark.full),
        pytest.param("clip", "contrastive", marks=pytest.mark.full),
        pytest.param("qwen3_moe", "causal_lm", marks=pytest.mark.full),
    ],
)
def test_blocks_read_more_than_their_stream(tmp_path, kind, head):
    """T5's read a table of positions that trains too, and its decoder its encoder's output."""
    pair = make_pair(kind, head, 0, tmp_path)
    model, optimizer = pair.ours, optax.with_extra_args_support(optax.adam(1e-2))
    output = "logits_per_text" if head == "contrastive" else "logits"

    def loss(trainable, fixed, batch, key):
        total = jnp.square(model.apply({**fixed, **trainable}, batch, key)[output]).sum()
        return total, {"loss": (total, jnp.float32(1))}

    gradient = jax.grad(loss, has_aux=True)
    params, state = model.params, optimizer.init(model.params)
    slopes, _ = jax.jit(gradient)(params, {}, pair.batch, jax.random.key(0))
    moved, after = optimizer.update(slopes, state, params)
    wanted = optax.apply_updates(params, moved)
    blocks = {n for n in params if 0 < model.depths[n] < model.tops[n]}
    fused = Fused(optimizer, frozenset(blocks), None)

    def of_batch(trainable):
        return gradient(trainable, {}, pair.batch, jax.random.key(0))

    @jax.jit
    def step(params, state):
        own = advance_fused(fused, of_batch, params, state, {})
        return own.trainable, own.opt_state, own.norms

    new, opt_state, norms = step(params, state)
    strong = [n for n in params if np.abs(slopes[n]).max() > 1e-4]  # Adam divides by the gradient
    assert {n for n in strong if n in blocks}
    for name in strong:
        np.testing.assert_allclose(norms[name], np.square(slopes[name]).sum(), rtol=1e-4)
        scale = np.abs(after[0].mu[name]).max()
        np.testing.assert_allclose(opt_state[0].mu[name], after[0].mu[name], atol=1e-5 * scale)
        firm = np.abs(slopes[name]) > 1e-3 * np.abs(slopes[name]).max()
        np.testing.assert_allclose(new[name] * firm, wanted[name] * firm, atol=1e-5, err_msg=name)
    assert opt_state[0].count == 1


@pytest.mark.slow
def test_gradients_of_one_block_exist_at_a_time(folder):
    """By XLA's own account of the step's memory, for a model that is nearly all blocks."""

    wide = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 6}
    tiny_checkpoint(folder / "wide", **wide)

    def temporary(*overrides):
        config = config_of(folder, "optimizer.name=sgd", "train.remat=full", *overrides)
        config = override_config(
            config, [f"model.checkpoint={folder / 'wide'}", "data.batch_size=2"]
        )
        built = build(config, devices=ONE)
        params = load_params(built).params
        stage, state = stage_of(built, params), initial_state(built, phase_of(built), params)
        batch = built.splits["train"].examples.collate(built.plan.batch(0), built.layout.row_length)
        placed = place_batch(batch, batch_sharding(built.mesh))
        compiled = stage.step.lower(state, stage.frozen, placed, stage.inputs(0)).compile()
        blocks = sum(leaf.nbytes for name, leaf in params.items() if name.startswith("blocks/"))
        return compiled.memory_analysis().temp_size_in_bytes, blocks

    (ours, blocks), (usual, _) = temporary("optimizer.fused=true"), temporary()
    assert usual > blocks  # their gradients
    assert ours < 0.7 * blocks


@pytest.mark.slow
def test_what_is_not_finite_leaves_everything_as_it_was(folder):
    config = config_of(folder, "optimizer.fused=true", "optimizer.lr=1e30")
    built = build(config, devices=ONE)
    model = load_params(built)
    stage = stage_of(built, model.params)
    state = initial_state(built, phase_of(built), model.params)
    broken = {**state.trainable, "head/bias": state.trainable["head/bias"] * np.nan}
    state = dataclasses.replace(state, trainable=broken)
    batch = built.splits["train"].examples.collate(built.plan.batch(0), built.layout.row_length)
    before = jax.tree.map(np.array, (state.trainable, state.opt_state))
    after, metrics = stage.step(
        state, stage.frozen, place_batch(batch, batch_sharding(built.mesh)), stage.inputs(0)
    )
    assert metrics["bad_steps"] == 1
    jax.tree.map(np.testing.assert_array_equal, before, (after.trainable, after.opt_state))


@pytest.mark.full
def test_a_run_of_it_resumes_bit_for_bit(folder):
    sections = ["optimizer.fused=true", "train.length=4 steps", "train.evaluate_every=2 steps"]
    whole = config_of(folder, *sections, "checkpoint.every=2 steps", "run.name=whole")
    one = train(whole, quiet=True)
    part = override_config(whole, ["run.name=part", "train.length=2 steps"])
    train(part, quiet=True)
    other = train(override_config(part, ["train.length=4 steps"]), resume=True, quiet=True)
    assert one.metrics == other.metrics


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.accumulate=2", "train.accumulate 2 sums the gradients of several: set it to 1"),
        ("optimizer.moments=int8", "does not support optimizer.moments int8: use bfloat16"),
        ("sampling.method=lisa", "'sampling' both choose what is updated when: leave one out"),
    ],
)
def test_what_it_cannot_be_combined_with_is_said(folder, override, message):
    with pytest.raises(UserError, match=message):
        config_of(folder, "optimizer.fused=true", override)


def test_a_task_that_runs_the_model_twice_is_refused(folder, monkeypatch):
    once = setups.outputs_of

    def twice(setup, compute):
        forward = once(setup, compute)

        def both(params, batch, key=None):
            first, second = forward(params, batch, key), forward(params, batch, key)
            return {name: first[name] + second[name] for name in first}

        return both

    monkeypatch.setattr(setups, "outputs_of", twice)
    with pytest.raises(UserError, match="the task runs the model twice in a step"):
        steps(config_of(folder, "optimizer.fused=true"), 1)
